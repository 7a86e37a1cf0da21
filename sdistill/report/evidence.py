"""A measured difference, and on which side of zero it lies.

One set of rules serves all claims:

- `above` or `below` zero: reproduced if the interval of the difference lies wholly on the claimed
  side, not reproduced if it lies wholly on the other, inconclusive otherwise;
- `not below`: reproduced if the difference is not negative or its lower bound is above -MARGIN, not
  reproduced if the interval lies wholly below zero, inconclusive otherwise.

Without an interval nothing is decided.
"""

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sdistill.analysis.records import Record
from sdistill.analysis.statistics import minimum_detectable
from sdistill.report.lookup import ACROSS, POOLED, Seed, integer_seeds, select

Direction = Literal["above", "below", "not below"]
MARGIN = 0.03  # accuracy that counts as "about level" in a claim of no loss


class Outcome(enum.StrEnum):
    """The verdict on a claim."""

    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    INCONCLUSIVE = "inconclusive"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Comparison:
    """`metric` of `condition` minus that of `other`, and the side of zero the paper puts it on."""

    section: str
    condition: str
    other: str
    dataset: str
    metric: str
    claimed: Direction


@dataclass(frozen=True)
class Evidence:
    """A measured difference.

    Attributes:
      comparison: What was compared.
      value: The difference, in the metric's unit.
      low, high: Its 95 % interval, None if there is none.
      step: Training step of the condition.
      paired: Whether the interval is paired by problem; if not, it is made from two separate ones.
      across: Whether it is about other seeds too; if not, about these.
      seeds: The same difference for each seed, in the order of the seeds.
    """

    comparison: Comparison
    value: float
    low: float | None
    high: float | None
    step: int
    paired: bool
    across: bool = False
    seeds: tuple[float, ...] = ()

    @property
    def detectable(self) -> float | None:
        """The smallest true difference that would probably have been found; None without an interval."""
        return None if self.low is None or self.high is None else minimum_detectable(self.low, self.high)


def separate_difference(left: Record, right: Record) -> tuple[float, float | None, float | None]:
    """Difference of two estimates with an interval made from theirs, as if independent.

    Method of variance estimates recovery (Zou and Donner 2008): distances to the near bounds add in
    quadrature. On the same problems estimates mostly move together, so this errs to the wide side.
    """
    value = left["value"] - right["value"]
    bounds = (left["ci_low"], left["ci_high"], right["ci_low"], right["ci_high"])
    if None in bounds:
        return value, None, None
    below = math.hypot(left["value"] - left["ci_low"], right["ci_high"] - right["value"])
    above = math.hypot(left["ci_high"] - left["value"], right["value"] - right["ci_low"])
    return value, value - below, value + above


def _difference(records: Sequence[Record], c: Comparison, seed: Seed, step: int | None) -> Evidence | None:
    """`difference` for one seed, at `step` or the last one measured."""
    trains = c.section in ("on_policy", "coverage")  # where nothing differs yet at step 0

    def curve(condition: str, metric: str) -> dict[int, Record]:
        rows = select(records, c.section, condition, c.dataset, metric, seed)
        return {r["step"]: r for r in rows}

    def last(rows: Mapping[int, Record]) -> int | None:
        if step is not None:
            return step if step in rows else None
        return max((s for s in rows if s > 0 or not trains), default=None)

    paired = curve(c.condition, f"{c.metric}_minus:{c.other}")
    if (s := last(paired)) is not None:
        r = paired[s]
        return Evidence(c, r["value"], r["ci_low"], r["ci_high"], s, paired=True)
    mirrored = curve(c.other, f"{c.metric}_minus:{c.condition}")
    if c.other != "base" and (s := last(mirrored)) is not None:
        r = mirrored[s]
        low, high = (None if bound is None else -bound for bound in (r["ci_high"], r["ci_low"]))
        return Evidence(c, -r["value"], low, high, s, paired=True)

    left, right = curve(c.condition, c.metric), curve(c.other, c.metric)
    if c.other == "base":
        # A run's own step 0 is the base model on the very problems that the run is evaluated on.
        start = left.get(0) if trains and 0 in left else right[min(right)] if right else None
        right = dict.fromkeys(left, start) if start else {}
    s = last({k: r for k, r in left.items() if k in right})
    return None if s is None else Evidence(c, *separate_difference(left[s], right[s]), s, paired=False)


def difference(records: Sequence[Record], comparison: Comparison, step: int | None = None) -> Evidence | None:
    """The measured difference, pooled over seeds, and that of every seed.

    A paired difference is taken if the run recorded one, in either order, and of those the one whose
    interval is about other seeds too; otherwise the two values are subtracted.

    Args:
      records: Those of the run.
      comparison: What to subtract from what.
      step: Training step of the condition; by default the last one at which both were measured.

    Returns:
      None if the run has no such figures.
    """
    c = comparison
    metrics = {c.metric, f"{c.metric}_minus:{c.condition}", f"{c.metric}_minus:{c.other}"}
    records = [  # once: a run has tens of thousands, and they are searched for every seed
        r
        for r in records
        if r["metric"] in metrics
        and r["condition"] in (c.condition, c.other)
        and r["dataset"] == c.dataset
        and r["section"] == c.section
    ]
    pooled = _difference(records, comparison, POOLED, step)
    if pooled is None:
        return None
    across = _difference(records, comparison, ACROSS, pooled.step)
    each = [_difference(records, comparison, s, pooled.step) for s in integer_seeds(records)]
    return replace(
        across or pooled,
        across=across is not None,
        seeds=tuple(e.value for e in each if e is not None),
    )


def decide(evidence: Evidence) -> Outcome:
    """The module's rules for one difference.

    An interval of zero width is none: it comes from a single problem, over which nothing varies.
    """
    claimed, low, high = evidence.comparison.claimed, evidence.low, evidence.high
    if low is None or high is None or low == high:
        return Outcome.INCONCLUSIVE
    if claimed == "not below":
        if evidence.value >= 0 or low > -MARGIN:
            return Outcome.REPRODUCED
        return Outcome.NOT_REPRODUCED if high < 0 else Outcome.INCONCLUSIVE
    if claimed == "below":
        low, high = -high, -low
    if low > 0:
        return Outcome.REPRODUCED
    return Outcome.NOT_REPRODUCED if high < 0 else Outcome.INCONCLUSIVE
