"""Which fix keeps reasoning: conditions ranked by accuracy on problems harder than those trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

from sdistill.analysis.records import Record
from sdistill.report.lookup import POOLED, Seed, integer_seeds, select, select_difference

FIXES = "fixes"  # the section
JUDGE = "k4"  # the data set that ranks: never trained on


@dataclass(frozen=True)
class Standing:
    """A condition and its place.

    Attributes:
      condition: Its name in the records.
      best: One more than there are conditions whose whole interval lies above its own.
      worst: How many there are but for those whose whole interval lies below. Conditions that cannot be
        told apart so share places.
      step: Training step it is judged at, the last one.
    """

    condition: str
    best: int
    worst: int
    step: int

    @property
    def place(self) -> str:
        """In words of a table: `3`, or `2–5` where it is tied."""
        return str(self.best) if self.best == self.worst else f"{self.best}–{self.worst}"


def standings(records: Sequence[Record]) -> list[Standing]:
    """All conditions that were pooled over seeds, by accuracy on `JUDGE`, the best first."""
    conditions = dict.fromkeys(r["condition"] for r in records if r["section"] == FIXES)
    found = [r for c in conditions if (r := last(records, c, JUDGE, "accuracy")) and r["ci_low"] is not None]
    places = []
    for r in sorted(found, key=lambda r: -r["value"]):
        above = sum(other["ci_low"] > r["ci_high"] for other in found)
        below = sum(other["ci_high"] < r["ci_low"] for other in found)
        places.append(Standing(r["condition"], above + 1, len(found) - below, r["step"]))
    return places


def last(
    records: Sequence[Record], condition: str, dataset: str, metric: str, seed: Seed = POOLED
) -> Record | None:
    """The record of a condition's last step, None if there is none."""
    found = select(records, FIXES, condition, dataset, metric, seed)
    return found[-1] if found else None


def by_seed(records: Sequence[Record], condition: str) -> list[float]:
    """Accuracy on `JUDGE` under each seed: what the interval, which is over problems, does not show."""
    seeds = integer_seeds([r for r in records if r["section"] == FIXES])
    found = [last(records, condition, JUDGE, "accuracy", seed) for seed in seeds]
    return [r["value"] for r in found if r is not None]


def against(records: Sequence[Record], other: str) -> dict[str, list[str]]:
    """Conditions by whether the paired difference of accuracy on `JUDGE` to `other` excludes zero.

    Returns: Under `above`, `level` and `below`, conditions in the order of their standing.
    """
    sides: dict[str, list[str]] = {"above": [], "level": [], "below": []}
    for standing in standings(records):
        metric = f"accuracy_minus:{other}"
        found = select_difference(records, FIXES, standing.condition, JUDGE, metric)
        if found and (r := found[-1])["ci_low"] is not None:
            side = "above" if r["ci_low"] > 0 else "below" if r["ci_high"] < 0 else "level"
            sides[side].append(standing.condition)
    return sides
