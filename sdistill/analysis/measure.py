"""From responses to measurements: figures by seed, pooled over seeds, and paired differences."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sdistill.analysis.statistics import Estimate, bootstrap_mean, maj_at_k, paired_bootstrap, pass_at_k
from sdistill.types import Condition, Measurement, Response, Seed, group_by_problem

BASE = Condition("base")

DIFFERENCES = ("accuracy", "length", "num_epistemic")
"""Metrics whose paired differences between conditions are recorded."""

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
"""What is recorded of `metrics.jsonl`, where a run has it."""


def _mean(field: str) -> Callable[[Sequence[Response]], float]:
    return lambda group: float(np.mean([getattr(response, field) for response in group]))


METRICS: Mapping[str, Callable[[Sequence[Response]], float]] = {
    "accuracy": _mean("correct"),
    "length": _mean("length"),
    "num_epistemic": _mean("num_epistemic"),
    "num_epistemic_substrings": _mean("num_epistemic_substrings"),
    "finished": lambda group: float(np.mean([r.finish == "stop" for r in group])),
}
RICHNESS_METRICS: Mapping[str, Callable[[Sequence[Response]], float]] = {
    "bits_per_response": _mean("bits"),
    "bits_per_token": lambda group: float(np.mean([(r.bits or 0.0) / r.length for r in group])),
}


def by_problem(responses: Sequence[Response]) -> dict[str, dict[str, float]]:
    """Metric → problem → figure. pass@n and maj@n take all n samples that every problem has."""
    groups = group_by_problem(responses)
    metrics = {**METRICS, **(RICHNESS_METRICS if responses[0].bits is not None else {})}
    n = min(len(group) for group in groups.values())
    metrics[f"pass@{n}"] = lambda group: pass_at_k([r.correct for r in group], n)
    metrics[f"maj@{n}"] = lambda group: maj_at_k([r.answer for r in group], [r.correct for r in group], n)
    return {name: {p: metric(group) for p, group in groups.items()} for name, metric in metrics.items()}


@dataclass(frozen=True)
class Cell:
    """One condition on one data set after a number of training steps."""

    condition: Condition
    step: int
    dataset: str


class Figures(NamedTuple):
    """What n responses measure: metric → problem → figure."""

    n: int
    metrics: dict[str, dict[str, float]]


class Results:
    """The figures of one section."""

    def __init__(self, section: str):
        """No figures yet."""
        self.section = section
        self._cells: dict[Cell, dict[int, Figures]] = {}  # by seed
        self._training: list[Measurement] = []

    def add(self, cell: Cell, seed: int, responses: Sequence[Response]) -> None:
        """Measures the responses of one cell and seed."""
        self._cells.setdefault(cell, {})[seed] = Figures(len(responses), by_problem(responses))

    def alias(self, cell: Cell, like: Cell, seed: int) -> None:
        """Gives one cell the figures of another: step 0 of a run is the model it started from."""
        self._cells.setdefault(cell, {})[seed] = self._cells[like][seed]

    def add_training(
        self, condition: Condition, seed: int, metrics: Sequence[Mapping[str, float]], every: int, n: int
    ) -> None:
        """Adds means of training metrics over `every` steps each, of `n` responses per step; no intervals."""
        for start in range(0, len(metrics), every):
            window = metrics[start : start + every]
            cell = Cell(condition, int(window[-1]["step"]), "train")
            for name in TRAINING_METRICS:
                if name in window[0]:
                    mean = float(np.mean([row[name] for row in window]))
                    self._training.append(self.measurement(cell, seed, name, mean, n * len(window)))

    def cells(self) -> list[Cell]:
        """All cells, in the order they were added."""
        return list(self._cells)

    def measurements(
        self, baselines: Callable[[Cell], Iterable[Cell]] = lambda cell: ()
    ) -> list[Measurement]:
        """Every metric of every cell, their differences to baselines, and the training metrics.

        A metric has one measurement a seed, and one over all of them.

        Args:
          baselines: The cells that a cell is compared with, where they are there. The base has none.
        """
        found = []
        for cell, seeds in self._cells.items():
            for metric in sorted(set.intersection(*(set(figures.metrics) for figures in seeds.values()))):
                strata = {seed: np.asarray([*f.metrics[metric].values()]) for seed, f in seeds.items()}
                found += self._pooled(cell, metric, strata)
        for cell in self._cells:
            for other in baselines(cell) if cell.condition != BASE else ():
                found += self._differences(cell, other)
        return found + self._training

    def _differences(self, cell: Cell, other: Cell) -> list[Measurement]:
        """Paired differences, first minus second, over the problems and seeds that both have.

        The baseline is the second's condition, or the base model where the second is a run's own step 0.
        """
        ours, theirs, found = self._cells[cell], self._cells.get(other, {}), list[Measurement]()
        shared = sorted(ours.keys() & theirs.keys())
        baseline = BASE if other.condition == cell.condition else other.condition
        for metric in DIFFERENCES if shared else ():
            # Seed → problem → difference.
            pairs = {seed: (ours[seed].metrics[metric], theirs[seed].metrics[metric]) for seed in shared}
            paired = {seed: {p: a[p] - b[p] for p in a if p in b} for seed, (a, b) in pairs.items()}
            if not all(paired.values()):
                continue
            strata = {seed: np.asarray([*of.values()]) for seed, of in paired.items()}
            found += self._pooled(cell, metric, strata, baseline)
            problems = [p for p in paired[shared[0]] if all(p in of for of in paired.values())]
            if len(shared) > 1 and problems:
                estimate = paired_bootstrap(np.asarray([[of[p] for p in problems] for of in paired.values()]))
                n = sum(ours[seed].n for seed in shared)
                found.append(self.measurement(cell, "any", metric, estimate, n, baseline=baseline))
        return found

    def _pooled(
        self, cell: Cell, metric: str, strata: Mapping[int, np.ndarray], baseline: Condition | None = None
    ) -> list[Measurement]:
        """One measurement a seed, and one over all of them."""
        found = []
        seeds = sorted(strata)
        parts: list[tuple[Seed, list[int]]] = [*((seed, [seed]) for seed in seeds), ("all", seeds)]
        for name, part in parts:
            estimate = bootstrap_mean([strata[seed] for seed in part])
            n = sum(self._cells[cell][seed].n for seed in part)
            found.append(self.measurement(cell, name, metric, estimate, n, baseline=baseline))
        return found

    def measurement(
        self,
        cell: Cell,
        seed: Seed,
        metric: str,
        value: Estimate | float,
        n: int,
        *,
        baseline: Condition | None = None,
        group: str | None = None,
    ) -> Measurement:
        """A measurement of this section; a bare number has no interval."""
        low, high = (value.low, value.high) if isinstance(value, Estimate) else (None, None)
        number = value.value if isinstance(value, Estimate) else value
        of = (self.section, cell.condition, seed, cell.step, cell.dataset, metric)
        return Measurement(*of, number, n, low, high, baseline, group)
