import random

import numpy as np
import pytest

from sdistill.analysis.comparison import contrasts, last_values
from sdistill.analysis.statistics import paired_bootstrap
from sdistill.report.evidence import separate_difference
from tests.analysis.synthetic import generation, record, write_generations

FILE = "runs/on_policy/grpo/seed{seed}/k4_test-000040.jsonl.gz"


def side(path, value, seeds=(), problems=range(8)):
    """A run's directory and records; its responses are kept for these seeds."""
    accuracies = []
    for seed in seeds:
        rng = random.Random(f"{path.name} {seed}")
        rows = [generation(problem, sample, rng) for problem in problems for sample in (0, 1)]
        write_generations(path / FILE.format(seed=seed), rows)
        right = {p: [r["correct"] for r in rows if r["problem"] == f"8 4 {p} = 1"] for p in problems}
        accuracies.append([np.mean(right[p]) for p in problems])
    records = {
        metric: record("on_policy", "grpo", "k4", metric, value, step=40)
        for metric in ("accuracy", "length", "words")
    }
    return (path, records), np.asarray(accuracies)


def test_the_same_problems_and_seeds_are_paired(tmp_path):
    first, theirs = side(tmp_path / "a", 0.5, seeds=(0, 1, 2))
    second, ours = side(tmp_path / "b", 0.6, seeds=(1, 2, 3))
    found = contrasts(first, second)["accuracy"]
    expected = paired_bootstrap(ours[:2], theirs[1:])  # seeds 1 and 2
    assert found.paired and (found.value, found.low, found.high) == expected


@pytest.mark.parametrize(("seeds", "problems"), [((), range(8)), ((5,), range(8)), ((0,), range(8, 16))])
def test_without_pairs_the_values_are_subtracted(tmp_path, seeds, problems):
    first, _ = side(tmp_path / "a", 0.5, seeds=(0,))
    second, _ = side(tmp_path / "b", 0.6, seeds=seeds, problems=problems)
    found = contrasts(first, second)["words"]
    expected = separate_difference(second[1]["words"], first[1]["words"])
    assert not found.paired and (found.value, found.low, found.high) == expected


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-20]),  # cut short
        lambda file: write_generations(file, [{"text": "of another version"}]),
        lambda file: write_generations(file, []),
    ],
)
def test_responses_that_cannot_be_read_are_not_paired(tmp_path, spoil):
    first, _ = side(tmp_path / "a", 0.5, seeds=(0,))
    second, _ = side(tmp_path / "b", 0.6, seeds=(0,))
    spoil(tmp_path / "b" / FILE.format(seed=0))
    assert not contrasts(first, second)["accuracy"].paired


def test_the_last_pooled_step_counts():
    rows = [
        record("sft", "sft_guided", "k3", "accuracy", 0.1, step=10),
        record("sft", "sft_guided", "k3", "accuracy", 0.2, step=20),
        record("sft", "sft_guided", "k3", "accuracy", 0.3, step=30, seed=0),
        record("sft", "base", "k3", "accuracy", 0.4),
        record("sft", "base", "k4", "accuracy", None),
    ]
    values = {key: r["value"] for key, r in last_values(rows, "sft", "accuracy").items()}
    assert values == {("base", "k3"): 0.4, ("sft_guided", "k3"): 0.2}
    assert list(values) == [("base", "k3"), ("sft_guided", "k3")]
