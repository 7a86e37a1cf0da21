import random

import numpy as np
import pytest

from sdistill.analysis.measure import BASE
from sdistill.analysis.statistics import paired_bootstrap
from sdistill.report.claims import separate_difference
from sdistill.report.comparison import contrast, kept_values, last_values
from sdistill.report.lookup import GRPO, SFT, Index, Point
from tests.report.synthetic import measured, response, write_rows

FILE = "runs/on_policy/grpo/seed{seed}/k4_test-000040.jsonl.gz"


def side(path, value, seeds=(), problems=range(8)):
    """A run's point and the values of the responses that it keeps for these seeds; and their accuracies."""
    accuracies = []
    for seed in seeds:
        rng = random.Random(f"{path.name} {seed}")
        rows = [response(problem, sample, rng) for problem in problems for sample in (0, 1)]
        write_rows(path / FILE.format(seed=seed), rows)
        correct = {p: [r["correct"] for r in rows if r["problem"] == f"8 4 {p} = 1"] for p in problems}
        accuracies.append([np.mean(correct[p]) for p in problems])
    values = kept_values(path, "on_policy", (GRPO, "k4"), 40)
    return (Point(40, value, value - 0.02, value + 0.02), values), np.asarray(accuracies)


def test_the_same_problems_and_seeds_are_paired(tmp_path):
    first, theirs = side(tmp_path / "a", 0.5, seeds=(0, 1, 2))
    second, ours = side(tmp_path / "b", 0.6, seeds=(1, 2, 3))
    found, paired = contrast("accuracy", first, second)
    expected = paired_bootstrap(ours[:2] - theirs[1:])  # seeds 1 and 2
    assert paired and (found.value, found.low, found.high) == expected


@pytest.mark.parametrize(("seeds", "problems"), [((), range(8)), ((5,), range(8)), ((0,), range(8, 16))])
def test_without_pairs_the_values_are_subtracted(tmp_path, seeds, problems):
    first, _ = side(tmp_path / "a", 0.5, seeds=(0,))
    second, _ = side(tmp_path / "b", 0.6, seeds=seeds, problems=problems)
    assert contrast("num_epistemic", first, second) == (separate_difference(second[0], first[0]), False)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-20]),  # cut short
        lambda file: write_rows(file, [{"text": "of another version"}]),
        lambda file: write_rows(file, []),
    ],
)
def test_responses_that_cannot_be_read_are_not_paired(tmp_path, spoil):
    side(tmp_path, 0.6, seeds=(0, 1))
    assert sorted(kept_values(tmp_path, "on_policy", (GRPO, "k4"), 40)) == [0, 1]
    spoil(tmp_path / FILE.format(seed=0))
    assert kept_values(tmp_path, "on_policy", (GRPO, "k4"), 40) == {}


def test_the_last_pooled_step_counts():
    guided = SFT[1]
    rows = [
        measured("sft", guided, "k3", "accuracy", 0.1, step=10),
        measured("sft", guided, "k3", "accuracy", 0.2, step=20),
        measured("sft", guided, "k3", "accuracy", 0.3, step=30, seed=0),
        measured("sft", BASE, "k3", "accuracy", 0.4),
        measured("sft", BASE, "k4", "accuracy", None),
    ]
    values = {key: p.value for key, p in last_values(Index(rows), "sft", "accuracy").items()}
    assert list(values.items()) == [((BASE, "k3"), 0.4), ((guided, "k3"), 0.2)]
