from dataclasses import replace

import pytest

from sdistill.analysis.measure import BASE
from sdistill.analysis.statistics import minimum_detectable
from sdistill.report.claims import Comparison, Outcome, difference, informative_by_bits, judge
from sdistill.report.lookup import ANSWER, ANSWER_EMA, GRPO, SFT, SOLUTION, Index
from tests.report.synthetic import coverage_measurements, measured, narrow, paper_measurements, shown


def verdicts(rows):
    return {claim.text: claim.outcome for claim in judge(Index(rows))}


def verdict(rows, start):
    (found,) = (outcome for text, outcome in verdicts(rows).items() if text.startswith(start))
    return found


def test_run_that_agrees_with_the_paper_reproduces_every_claim():
    found = verdicts(paper_measurements())
    assert set(found.values()) == {Outcome.REPRODUCED}, found


def test_nothing_measured():
    assert set(verdicts([]).values()) == {Outcome.NOT_MEASURED}


@pytest.mark.parametrize(
    ("value", "half", "guided", "unguided"),
    [
        (-0.10, 0.02, Outcome.REPRODUCED, Outcome.NOT_REPRODUCED),
        (-0.02, 0.03, Outcome.INCONCLUSIVE, Outcome.INCONCLUSIVE),
        (-0.01, 0.015, Outcome.INCONCLUSIVE, Outcome.REPRODUCED),  # within the margin of no loss
        (-0.02, 0.005, Outcome.REPRODUCED, Outcome.REPRODUCED),  # certainly below, by less than the margin
        (0.00, 0.05, Outcome.INCONCLUSIVE, Outcome.REPRODUCED),
        (0.10, 0.02, Outcome.NOT_REPRODUCED, Outcome.REPRODUCED),
        (-0.10, None, Outcome.INCONCLUSIVE, Outcome.INCONCLUSIVE),  # no interval
        (-0.10, 0.0, Outcome.INCONCLUSIVE, Outcome.INCONCLUSIVE),  # that of a single problem
        (None, None, Outcome.NOT_MEASURED, Outcome.NOT_MEASURED),  # undefined
    ],
)
def test_every_verdict_of_a_difference(value, half, guided, unguided):
    rows = [measured("sft", c, "k3", "accuracy", value, half=half, baseline=BASE) for c in SFT[:2]]
    assert verdict(rows, "SFT on guided") is guided
    assert verdict(rows, "SFT on unguided") is unguided


def test_richness_claim_needs_the_fall_and_no_clear_rise():
    def rows(words):
        for bits, (prompt, value) in enumerate(
            zip([("none", None), ("partial", 0.5), ("solution", None)], words, strict=True)
        ):
            yield measured("richness", shown(*prompt), "walk", "bits_per_response", float(bits))
            yield measured("richness", shown(*prompt), "walk", "num_epistemic", value, half=0.1)

    claim = "epistemic words fall"
    assert verdict(list(rows((6.0, 3.0, 1.0))), claim) is Outcome.REPRODUCED
    assert verdict(list(rows((6.0, 1.0, 1.02))), claim) is Outcome.REPRODUCED  # a rise within noise
    assert verdict(list(rows((6.0, 7.0, 1.0))), claim) is Outcome.NOT_REPRODUCED
    assert verdict(list(rows((1.0, 1.0, 1.05))), claim) is Outcome.INCONCLUSIVE
    assert verdict(list(rows((1.0, 3.0, 6.0))), claim) is Outcome.NOT_REPRODUCED


def test_one_contrary_context_refutes_a_claim_about_both():
    def rows(answer):
        for run, change in ((SOLUTION, -5.0), (ANSWER, answer)):
            yield measured("on_policy", run, "k3", "length", change, step=9, baseline=BASE)

    assert verdict(list(rows(-4.0)), "SDPO shortens") is Outcome.REPRODUCED
    assert verdict(list(rows(4.0)), "SDPO shortens") is Outcome.NOT_REPRODUCED


def test_step_zero_of_a_training_run_settles_nothing():
    rows = [measured("on_policy", GRPO, "k3", "accuracy", 0.0, baseline=BASE)]
    assert verdict(rows, "GRPO raises accuracy out") is Outcome.NOT_MEASURED


def test_difference_prefers_paired_then_mirrored_then_separate_intervals():
    c = Comparison("on_policy", ANSWER, "k4", "above", baseline=ANSWER_EMA)
    separate = [
        measured("on_policy", ANSWER, "k4", "accuracy", 0.6, half=0.03, step=5),
        measured("on_policy", ANSWER_EMA, "k4", "accuracy", 0.5, half=0.04, step=5),
        measured("on_policy", ANSWER_EMA, "k4", "accuracy", 0.1, half=0.04, step=9),
    ]
    found = difference(Index(separate), c)
    assert not found.paired and found.point.step == 5  # the last step that both have
    assert (found.point.value, found.point.low, found.point.high) == pytest.approx((0.1, 0.05, 0.15))

    mirrored = [measured("on_policy", ANSWER_EMA, "k4", "accuracy", -0.2, half=0.1, step=7, baseline=ANSWER)]
    found = difference(Index(separate + mirrored), c)
    assert found.paired
    assert (found.point.value, found.point.low, found.point.high) == pytest.approx((0.2, 0.1, 0.3))

    paired = [measured("on_policy", ANSWER, "k4", "accuracy", 0.3, step=8, baseline=ANSWER_EMA)]
    assert difference(Index(separate + mirrored + paired), c).point.value == 0.3


def test_gain_on_few_problems_is_against_the_runs_own_start_and_skips_a_single_problem():
    claims = judge(Index(coverage_measurements()))
    (claim,) = (c for c in claims if c.text.startswith("SDPO on at most"))
    gain, change = claim.evidence
    assert gain.comparison.condition == narrow("sdpo", 8) and gain.point.step == 60
    assert gain.point.value == pytest.approx(0.14) and change.point.value == pytest.approx(-18)


def test_the_interval_over_problems_and_seeds_decides_where_there_is_one():
    c = Comparison("on_policy", GRPO, "k3", "above")
    of = ("on_policy", GRPO, "k3", "accuracy", 0.05)
    within = measured(*of, half=0.02, step=9, baseline=BASE)
    across = measured(*of, half=0.08, step=9, baseline=BASE, seed="any")
    assert verdicts([within])["GRPO raises accuracy"] is Outcome.REPRODUCED
    assert verdicts([within, across])["GRPO raises accuracy"] is Outcome.INCONCLUSIVE
    assert not difference(Index([within]), c).across_seeds
    assert difference(Index([within, across]), c).across_seeds


def test_the_detectable_difference_comes_from_the_interval():
    c = Comparison("on_policy", GRPO, "k3", "above")
    row = measured("on_policy", GRPO, "k3", "accuracy", 0.05, half=0.02, step=9, baseline=BASE)
    assert difference(Index([row]), c).point.detectable == minimum_detectable(0.03, 0.07)
    row = replace(row, ci_low=None, ci_high=None)
    assert difference(Index([row]), c).point.detectable is None


def test_contexts_are_ordered_by_bits_without_those_that_say_nothing():
    bits = {
        ("none", None): 0.0,
        ("partial", 0.0): 0.2,
        ("partial", 0.25): 9.0,
        ("answer", None): 8.0,
        ("partial_solution", 0.5): 70.0,
    }
    sections = (("richness", BASE, 1), ("trained_richness", GRPO, -1))
    index = Index(
        [
            measured(section, shown(*prompt, model=model), "walk", "bits_per_response", sign * value)
            for section, model, sign in sections
            for prompt, value in bits.items()
        ]
    )
    prompts = [("none", None), ("answer", None), ("partial", 0.25)]
    assert informative_by_bits(index) == [shown(*prompt) for prompt in prompts]
    of_grpo = informative_by_bits(index, "trained_richness", GRPO)
    assert of_grpo == [shown(*prompt, model=GRPO) for prompt in reversed(prompts)]
