"""From generations to the records of `results.jsonl`: figures by seed, pooled, and differences.

A record has the keys section, condition, seed, step, dataset, metric, value, n (responses behind it),
ci_low, ci_high (95 %, bootstrap). The seed is a number; or `all`: pooled, with an interval over problems
within these seeds; or `any`: a paired difference with an interval over problems and seeds, where there are
several seeds.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdistill.analysis.measure import by_problem
from sdistill.analysis.statistics import Estimate, bootstrap_mean, paired_bootstrap
from sdistill.types import Response

Record = dict[str, Any]

DIFFERENCES = ("accuracy", "length", "words")
"""Metrics whose paired differences between conditions are recorded."""


@dataclass(frozen=True)
class Cell:
    """What was evaluated: one condition on one data set after a number of steps."""

    condition: str
    step: int
    dataset: str


class Results:
    """Figures of one section: for each cell and seed, metric → problem → value."""

    def __init__(self, section: str):
        """No figures yet."""
        self.section = section
        self._figures: dict[Cell, dict[int, dict[str, dict[str, float]]]] = {}
        self._counts: dict[Cell, dict[int, int]] = {}

    def add(self, cell: Cell, seed: int, generations: Sequence[Response]) -> None:
        """Measures the generations of one cell and seed."""
        self._figures.setdefault(cell, {})[seed] = by_problem(generations)
        self._counts.setdefault(cell, {})[seed] = len(generations)

    def alias(self, cell: Cell, like: Cell, seed: int) -> None:
        """Gives one cell the figures of another: step 0 of a run is the model it started from."""
        self._figures.setdefault(cell, {})[seed] = self._figures[like][seed]
        self._counts.setdefault(cell, {})[seed] = self._counts[like][seed]

    def cells(self) -> list[Cell]:
        """All cells, in the order they were added."""
        return list(self._figures)

    def records(self) -> list[Record]:
        """Every metric of every cell: one record a seed, and one over all of them."""
        records = []
        for cell, seeds in self._figures.items():
            metrics = set.intersection(*(set(figures) for figures in seeds.values()))
            for metric in sorted(metrics):
                strata = {seed: np.asarray(list(f[metric].values())) for seed, f in seeds.items()}
                records += self._estimates(cell, metric, strata, self._counts[cell])
        return records

    def differences(self, pairs: Iterable[tuple[Cell, Cell]]) -> list[Record]:
        """Paired differences, first minus second, over the problems and seeds that both have.

        The metric is named after the second's condition, which is `base` for a run's own step 0.
        """
        records = []
        for cell, other in pairs:
            ours, theirs = self._figures.get(cell, {}), self._figures.get(other, {})
            shared = sorted(seed for seed in ours if seed in theirs)
            reference = "base" if other.condition == cell.condition else other.condition
            for metric in DIFFERENCES if shared else ():
                paired = {seed: _pairs(ours[seed][metric], theirs[seed][metric]) for seed in shared}
                if not all(paired.values()):
                    continue
                name, counts = f"{metric}_minus:{reference}", self._counts[cell]
                strata = {seed: np.asarray([a - b for a, b in p.values()]) for seed, p in paired.items()}
                records += self._estimates(cell, name, strata, counts)
                problems = [p for p in paired[shared[0]] if all(p in figures for figures in paired.values())]
                if len(shared) > 1 and problems:
                    table = np.asarray([[figures[p] for p in problems] for figures in paired.values()])
                    estimate = paired_bootstrap(table[..., 0], table[..., 1])
                    n = sum(counts[seed] for seed in shared)
                    records.append(self.record(cell, "any", name, estimate, n))
        return records

    def _estimates(
        self, cell: Cell, metric: str, strata: Mapping[int, np.ndarray], counts: Mapping[int, int]
    ) -> list[Record]:
        estimates: dict[int | str, Estimate] = {
            seed: bootstrap_mean([values]) for seed, values in sorted(strata.items())
        }
        estimates["all"] = bootstrap_mean([values for _, values in sorted(strata.items())])
        n: dict[int | str, int] = {seed: counts[seed] for seed in strata}
        n["all"] = sum(counts[seed] for seed in strata)
        return [self.record(cell, seed, metric, estimate, n[seed]) for seed, estimate in estimates.items()]

    def record(self, cell: Cell, seed: int | str, metric: str, value: Estimate | float, n: int) -> Record:
        """One record; a bare number has no interval."""
        low, high = (value.low, value.high) if isinstance(value, Estimate) else (None, None)
        return {
            "section": self.section,
            "condition": cell.condition,
            "seed": seed,
            "step": cell.step,
            "dataset": cell.dataset,
            "metric": metric,
            "value": value.value if isinstance(value, Estimate) else value,
            "n": n,
            "ci_low": low,
            "ci_high": high,
        }


def _pairs(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Problem → both figures, of the problems that both have."""
    return {problem: (value, theirs[problem]) for problem, value in ours.items() if problem in theirs}


TRAINING_METRICS = (
    "train_accuracy",
    "solved_groups",
    "length",
    "num_epistemic",
    "finished",
    "teacher_fraction",
    "loss",
    "divergence",
    "divergence_epistemic",
    "divergence_other",
    "entropy",
    "teacher_entropy",
    "shaped",
    "negative",
    "forks",
    "gradient_norm",
)


def training_records(
    results: Results, condition: str, seed: int, metrics: Sequence[Mapping[str, float]], every: int, n: int
) -> list[Record]:
    """Training metrics as means over each `every` steps, `n` responses a step, without interval."""
    records = []
    for start in range(0, len(metrics), every):
        window = metrics[start : start + every]
        cell = Cell(condition, int(window[-1]["step"]), "train")
        for name in TRAINING_METRICS:
            if name in window[0]:
                mean = float(np.mean([row[name] for row in window]))
                records.append(results.record(cell, seed, name, mean, n * len(window)))
    return records
