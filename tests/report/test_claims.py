import pytest

from sdistill.analysis.statistics import minimum_detectable
from sdistill.report.claims import informative_by_bits, judge
from sdistill.report.evidence import Comparison, Outcome, difference
from tests.analysis.synthetic import coverage_records, record, synthetic_records


def verdicts(rows):
    return {claim.text: claim.outcome for claim in judge(rows)}


def verdict(rows, start):
    (found,) = (outcome for text, outcome in verdicts(rows).items() if text.startswith(start))
    return found


def test_run_that_agrees_with_the_paper_reproduces_every_claim():
    found = verdicts(synthetic_records())
    assert set(found.values()) == {Outcome.REPRODUCED}, found


def test_nothing_measured():
    claims = judge([])
    assert {claim.outcome for claim in claims} == {Outcome.NOT_MEASURED}


@pytest.mark.parametrize(
    ("value", "half", "guided", "unguided"),
    [
        (-0.10, 0.02, Outcome.REPRODUCED, Outcome.NOT_REPRODUCED),
        (-0.02, 0.03, Outcome.INCONCLUSIVE, Outcome.INCONCLUSIVE),
        (-0.01, 0.015, Outcome.INCONCLUSIVE, Outcome.REPRODUCED),  # within the margin of no loss
        (-0.02, 0.005, Outcome.REPRODUCED, Outcome.REPRODUCED),  # certainly below, by less than it
        (0.00, 0.05, Outcome.INCONCLUSIVE, Outcome.REPRODUCED),
        (0.10, 0.02, Outcome.NOT_REPRODUCED, Outcome.REPRODUCED),
        (-0.10, None, Outcome.INCONCLUSIVE, Outcome.INCONCLUSIVE),  # no interval
        (-0.10, 0.0, Outcome.INCONCLUSIVE, Outcome.INCONCLUSIVE),  # that of a single problem
        (None, None, Outcome.NOT_MEASURED, Outcome.NOT_MEASURED),  # undefined
    ],
)
def test_every_verdict_of_a_difference(value, half, guided, unguided):
    rows = [
        record("sft", run, "k3", "accuracy_minus:base", value, half=half)
        for run in ("sft_guided", "sft_unguided")
    ]
    assert verdict(rows, "SFT on guided") is guided
    assert verdict(rows, "SFT on unguided") is unguided


def test_richness_claim_needs_the_fall_and_no_clear_rise():
    def rows(words):
        order = zip(("unguided", "partial_50", "solution"), words, strict=True)
        for bits, (condition, value) in enumerate(order):
            yield record("richness", condition, "walk", "bits_per_response", float(bits))
            yield record("richness", condition, "walk", "words", value, half=0.1)

    claim = "epistemic words fall"
    assert verdict(list(rows((6.0, 3.0, 1.0))), claim) is Outcome.REPRODUCED
    assert verdict(list(rows((6.0, 1.0, 1.02))), claim) is Outcome.REPRODUCED  # a rise within noise
    assert verdict(list(rows((6.0, 7.0, 1.0))), claim) is Outcome.NOT_REPRODUCED
    assert verdict(list(rows((1.0, 1.0, 1.05))), claim) is Outcome.INCONCLUSIVE
    assert verdict(list(rows((1.0, 3.0, 6.0))), claim) is Outcome.NOT_REPRODUCED


def test_one_contrary_context_refutes_a_claim_about_both():
    def rows(answer):
        for run, change in (("sdpo_solution_fixed", -5.0), ("sdpo_answer_fixed", answer)):
            yield record("on_policy", run, "k3", "length_minus:base", change, step=9)

    assert verdict(list(rows(-4.0)), "SDPO shortens") is Outcome.REPRODUCED
    assert verdict(list(rows(4.0)), "SDPO shortens") is Outcome.NOT_REPRODUCED


def test_step_zero_of_a_training_run_settles_nothing():
    rows = [record("on_policy", "grpo", "k3", "accuracy_minus:base", 0.0)]
    assert verdict(rows, "GRPO raises accuracy out") is Outcome.NOT_MEASURED


def test_difference_prefers_paired_then_mirrored_then_separate_intervals():
    c = Comparison("on_policy", "sdpo_answer_fixed", "sdpo_answer_ema", "k4", "accuracy", "above")
    separate = [
        record("on_policy", "sdpo_answer_fixed", "k4", "accuracy", 0.6, half=0.03, step=5),
        record("on_policy", "sdpo_answer_ema", "k4", "accuracy", 0.5, half=0.04, step=5),
        record("on_policy", "sdpo_answer_ema", "k4", "accuracy", 0.1, half=0.04, step=9),
    ]
    found = difference(separate, c)
    assert not found.paired and found.step == 5  # the last step that both have
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.05, 0.15))

    metric = "accuracy_minus:sdpo_answer_fixed"
    mirrored = [record("on_policy", "sdpo_answer_ema", "k4", metric, -0.2, half=0.1, step=7)]
    found = difference(separate + mirrored, c)
    assert found.paired
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.1, 0.3))

    metric = "accuracy_minus:sdpo_answer_ema"
    paired = [record("on_policy", "sdpo_answer_fixed", "k4", metric, 0.3, step=8)]
    assert difference(separate + mirrored + paired, c).value == 0.3


def test_gain_on_few_problems_is_against_the_runs_own_start_and_skips_a_single_problem():
    (claim,) = (c for c in judge(coverage_records()) if c.text.startswith("SDPO on at most"))
    gain, change = claim.evidence
    assert gain.comparison.condition == "sdpo_8" and gain.step == 60
    assert gain.value == pytest.approx(0.14) and change.value == pytest.approx(-18)


def test_the_interval_about_other_seeds_decides_where_there_is_one():
    metric, c = "accuracy_minus:base", Comparison("on_policy", "grpo", "base", "k3", "accuracy", "above")
    within = record("on_policy", "grpo", "k3", metric, 0.05, half=0.02, step=9)
    across = record("on_policy", "grpo", "k3", metric, 0.05, half=0.08, step=9, seed="any")
    assert verdicts([within])["GRPO raises accuracy"] is Outcome.REPRODUCED
    assert verdicts([within, across])["GRPO raises accuracy"] is Outcome.INCONCLUSIVE
    assert not difference([within], c).across and difference([within, across], c).across


def test_what_a_difference_would_have_found_comes_from_its_interval():
    c = Comparison("on_policy", "grpo", "base", "k3", "accuracy", "above")
    rows = [record("on_policy", "grpo", "k3", "accuracy_minus:base", 0.05, half=0.02, step=9)]
    assert difference(rows, c).detectable == minimum_detectable(0.03, 0.07)
    rows = [record("on_policy", "grpo", "k3", "accuracy_minus:base", 0.05, half=None, step=9)]
    assert difference(rows, c).detectable is None


def test_contexts_are_ordered_by_bits_and_those_that_say_nothing_are_left_out():
    bits = {"unguided": 0.0, "partial_0": 0.2, "partial_25": 9.0, "answer": 8.0, "partial_solution_50": 70.0}
    rows = [record("richness", c, "walk", "bits_per_response", value) for c, value in bits.items()]
    rows += [
        record("trained_richness", f"grpo@{c}", "walk", "bits_per_response", -v) for c, v in bits.items()
    ]
    assert informative_by_bits(rows) == ["unguided", "answer", "partial_25"]
    of_grpo = informative_by_bits(rows, "trained_richness", "grpo@")
    assert of_grpo == ["grpo@partial_25", "grpo@answer", "grpo@unguided"]
