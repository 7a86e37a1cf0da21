"""The same condition in two runs: paired by problem and seed where both kept their responses."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdistill.analysis.measure import by_problem
from sdistill.analysis.records import DIFFERENCES, Record
from sdistill.analysis.statistics import paired_bootstrap
from sdistill.report.evidence import separate_difference
from sdistill.report.lookup import POOLED, condition_rank
from sdistill.storage import read_responses

Figures = dict[int, dict[str, dict[str, float]]]
"""Seed → metric → problem → figure."""


@dataclass(frozen=True)
class Contrast:
    """The second run minus the first.

    Attributes:
      value: In the metric's unit.
      low, high: Its 95 % interval, None if there is none.
      paired: Whether it is paired by problem and seed; if not, the runs are taken as independent.
    """

    value: float
    low: float | None
    high: float | None
    paired: bool


def last_values(records: Sequence[Record], section: str, metric: str) -> dict[tuple[str, str], Record]:
    """(Condition, data set) → the pooled record of the last step, conditions in the paper's order."""
    found: dict[tuple[str, str], Record] = {}
    for r in records:
        key = (r["condition"], r["dataset"])
        wanted = (r["section"], r["metric"], r["seed"]) == (section, metric, POOLED)
        if wanted and r["value"] is not None and r["step"] >= found.get(key, r)["step"]:
            found[key] = r
    return dict(sorted(found.items(), key=lambda item: (condition_rank(item[0][0]), item[0][1])))


def contrasts(
    first: tuple[Path, Mapping[str, Record]], second: tuple[Path, Mapping[str, Record]]
) -> dict[str, Contrast]:
    """Metric → contrast of one condition on one data set, of accuracy, length and words.

    Args:
      first: A run's directory, and its record of each metric at the last step.
      second: The same of the other run.
    """
    ours, theirs = (_figures(path, records["accuracy"]) for path, records in (second, first))
    found = {}
    for metric in DIFFERENCES:
        left, right = second[1].get(metric), first[1].get(metric)
        if left is None or right is None:
            continue
        pairs = _pairs(ours, theirs, metric)
        if pairs is not None:
            found[metric] = Contrast(*paired_bootstrap(pairs[0] - pairs[1]), paired=True)
        else:
            found[metric] = Contrast(*separate_difference(left, right), paired=False)
    return found


def _figures(run: Path, record: Record) -> Figures:
    """Of every seed that kept its responses; none where they cannot be read."""
    folder = run / "runs" / record["section"] / record["condition"]
    figures: Figures = {}
    for path in sorted(folder.glob(f"seed*/{record['dataset']}*-{record['step']:06d}.jsonl.gz")):
        dataset = path.name.rpartition("-")[0].removesuffix("_test")
        if dataset == record["dataset"] and path.parent.name[4:].isdecimal():
            try:
                figures[int(path.parent.name[4:])] = by_problem(read_responses(path))
            except (EOFError, OSError, zlib.error, ValueError, TypeError, LookupError):
                return {}  # cut short, or of another version
    return figures


def _pairs(ours: Figures, theirs: Figures, metric: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Figures of both as seeds × problems; None unless they have seeds and problems in common."""
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return None
    tables = [figures[seed][metric] for seed in seeds for figures in (ours, theirs)]
    problems = [p for p in tables[0] if all(p in table for table in tables)]
    if not problems:
        return None
    left, right = (
        np.asarray([[figures[seed][metric][p] for p in problems] for seed in seeds])
        for figures in (ours, theirs)
    )
    return left, right
