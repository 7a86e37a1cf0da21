import dataclasses

import numpy as np
import pytest

from sdistill.analysis.measure import BASE, DIFFERENCES, Cell, Results, by_problem
from sdistill.analysis.statistics import bootstrap_mean, paired_bootstrap
from sdistill.types import Condition, Measurement
from tests import tiny

GRPO, SDPO, OTHER = Condition("grpo"), Condition("sdpo", "answer", "ema"), Condition("sft", "none")


def generation(problem, correct, answer="+", *, length=10, words=2, substrings=3, finish="stop", **more):
    more |= {"finish": finish, "length": length, "num_epistemic": words}
    return tiny.response(problem, "", correct, answer=answer, num_epistemic_substrings=substrings, **more)


GENERATIONS = [
    generation("p", True, "+", length=4, words=0, substrings=1),
    generation("q", False, "-", length=8, words=1, substrings=1),
    generation("p", False, "-", length=6, words=1, substrings=1),
    generation("q", False, None, length=10, words=4, substrings=6, finish="length"),
]


def test_figures_of_each_problem():
    assert by_problem(GENERATIONS) == {
        "accuracy": {"p": 0.5, "q": 0.0},
        "length": {"p": 5.0, "q": 9.0},
        "num_epistemic": {"p": 0.5, "q": 2.5},
        "num_epistemic_substrings": {"p": 1.0, "q": 3.5},
        "finished": {"p": 1.0, "q": 0.5},
        "pass@2": {"p": 1.0, "q": 0.0},
        "maj@2": {"p": 0.5, "q": 0.0},
    }


def test_richness_is_measured_where_bits_are():
    figures = by_problem(
        [generation("p", True, length=4, bits=2.0), generation("p", True, length=1, bits=-1.0)]
    )
    assert figures["bits_per_response"] == {"p": 0.5}
    assert figures["bits_per_token"] == {"p": pytest.approx((0.5 - 1) / 2)}


def test_a_problem_with_more_samples_is_measured_at_what_all_have():
    figures = by_problem([*GENERATIONS, generation("p", False, "-")])
    assert set(figures) >= {"pass@2", "maj@2"} and "pass@3" not in figures
    assert figures["accuracy"]["p"] == pytest.approx(1 / 3)
    assert figures["pass@2"]["p"] == pytest.approx(2 / 3)


def some_generations(problems, seed, samples=4, **more):
    rng = np.random.default_rng(seed)
    return [
        generation(
            p, bool(rng.random() < 0.5), length=int(rng.integers(1, 50)), words=int(rng.integers(5)), **more
        )
        for p in problems
        for _ in range(samples)
    ]


def differences(results, *pairs):
    found = results.measurements(lambda cell: [other for ours, other in pairs if ours == cell])
    return [m for m in found if m.baseline is not None]


def find(records, **keys):
    (found,) = [r for r in records if all(getattr(r, k) == v for k, v in keys.items())]
    return found


@pytest.fixture
def results():
    results = Results("on_policy")
    for seed in (1, 0):
        results.add(Cell(BASE, 0, "k3"), seed, some_generations("abc", seed))
        results.add(Cell(SDPO, 20, "k3"), seed, some_generations("bcd", 10 + seed))
    results.add(Cell(GRPO, 20, "k3"), 1, some_generations("abc", 20))
    return results


def test_one_record_a_seed_and_one_over_all(results):
    records = results.measurements()
    figures = [by_problem(some_generations("abc", seed)) for seed in (0, 1)]
    strata = [np.array(list(f["accuracy"].values())) for f in figures]
    pooled = bootstrap_mean(strata)
    found = find(records, condition=BASE, metric="accuracy", seed="all")
    assert found == Measurement(
        section="on_policy",
        condition=BASE,
        seed="all",
        step=0,
        dataset="k3",
        metric="accuracy",
        value=pooled.value,
        n=24,
        ci_low=pooled.low,
        ci_high=pooled.high,
    )
    for seed in (0, 1):
        found = find(records, condition=BASE, metric="accuracy", seed=seed)
        assert (found.value, found.ci_low, found.ci_high) == bootstrap_mean([strata[seed]])
        assert found.n == 12
    for condition, seeds in ((BASE, [0, 1, "all"]), (GRPO, [1, "all"])):
        assert [r.seed for r in records if (r.condition, r.metric) == (condition, "length")] == seeds


def test_every_metric_is_recorded(results):
    metrics = {r.metric for r in results.measurements() if r.condition == SDPO}
    assert metrics == {
        *("accuracy", "length", "num_epistemic", "num_epistemic_substrings"),
        *("finished", "pass@4", "maj@4"),
    }


def test_differences_are_paired_by_problem_and_seed(results):
    pair = (Cell(SDPO, 20, "k3"), Cell(BASE, 0, "k3"))
    records = differences(results, pair)
    assert {(r.metric, r.baseline) for r in records} == {(metric, BASE) for metric in DIFFERENCES}
    strata = []
    for seed in (0, 1):
        ours = by_problem(some_generations("bcd", 10 + seed))["length"]
        theirs = by_problem(some_generations("abc", seed))["length"]
        strata.append(np.array([ours[p] - theirs[p] for p in "bc"]))
    found = find(records, metric="length", seed="all")
    assert (found.value, found.ci_low, found.ci_high) == bootstrap_mean(strata)
    assert (found.condition, found.step, found.dataset) == (SDPO, 20, "k3")
    found = find(records, metric="length", seed="any")
    across = paired_bootstrap(np.asarray(strata))
    assert (found.value, found.ci_low, found.ci_high) == across
    assert found.n == 24


def test_what_other_seeds_would_give_is_not_estimated_from_one(results):
    pair = (Cell(GRPO, 20, "k3"), Cell(BASE, 0, "k3"))
    assert {r.seed for r in differences(results, pair)} == {1, "all"}


def test_differences_take_the_seeds_that_both_have(results):
    records = differences(results, (Cell(SDPO, 20, "k3"), Cell(GRPO, 20, "k3")))
    assert {r.seed for r in records} == {1, "all"}
    assert {r.baseline for r in records} == {GRPO}
    assert find(records, metric="num_epistemic", seed="all").n == 12


def test_a_runs_own_start_is_its_base(results):
    results.alias(Cell(SDPO, 0, "k3"), Cell(BASE, 0, "k3"), 0)
    start, end = Cell(SDPO, 0, "k3"), Cell(SDPO, 20, "k3")
    records = differences(results, (end, start))
    assert {(r.metric, r.baseline) for r in records} == {(metric, BASE) for metric in DIFFERENCES}
    base = find(results.measurements(), condition=BASE, seed=0, metric="num_epistemic")
    alias = find(results.measurements(), condition=SDPO, step=0, seed=0, metric="num_epistemic")
    assert alias == dataclasses.replace(base, condition=SDPO)


def test_nothing_in_common_gives_no_difference(results):
    results.add(Cell(OTHER, 20, "k3"), 0, some_generations("xyz", 0))
    base, absent = Cell(BASE, 0, "k3"), Cell(Condition("none"), 0, "k3")
    assert differences(results, (Cell(OTHER, 20, "k3"), base), (absent, base)) == []


def test_cells_are_in_the_order_they_came(results):
    assert results.cells() == [Cell(BASE, 0, "k3"), Cell(SDPO, 20, "k3"), Cell(GRPO, 20, "k3")]


def test_training_metrics_are_means_over_windows():
    metrics = [{"step": s, "loss": float(s), "train_accuracy": 0.5, "logprob_diff": 9.0} for s in range(1, 6)]
    results = Results("coverage")
    results.add_training(GRPO, 2, metrics, every=2, n=8)
    records = results.measurements()
    losses = [r for r in records if r.metric == "loss"]
    assert [(r.step, r.value, r.n) for r in losses] == [(2, 1.5, 16), (4, 3.5, 16), (5, 5.0, 8)]
    assert {r.metric for r in records} == {"loss", "train_accuracy"}
    assert {(r.section, r.condition, r.seed, r.dataset) for r in records} == {("coverage", GRPO, 2, "train")}
    assert {(r.ci_low, r.ci_high) for r in records} == {(None, None)}
