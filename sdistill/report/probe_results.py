"""What the probes found: each arm against its controls, and what that says, from the records alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from sdistill.analysis.probes import PROBES
from sdistill.analysis.records import MASKED, PLAIN, Probe, Record, probes
from sdistill.analysis.statistics import minimum_detectable
from sdistill.report.lookup import condition_rank, select, select_difference


@dataclass(frozen=True)
class Contrast:
    """An arm of a probe against a control.

    Attributes:
      model: What was probed.
      arm: What was done.
      control: What was done instead.
      ours, theirs: Accuracy of both.
      difference: Paired difference of accuracy.
      length: The same of length in tokens; None if it was not measured.
    """

    model: str
    arm: str
    control: str
    ours: Record
    theirs: Record
    difference: Record
    length: Record | None

    @property
    def detectable(self) -> float:
        """The smallest true difference of accuracy that would probably have been found."""
        return minimum_detectable(self.difference["ci_low"], self.difference["ci_high"])

    @property
    def side(self) -> str:
        """`higher` or `lower` where the interval excludes zero, else `level`."""
        if self.difference["ci_low"] > 0:
            return "higher"
        return "lower" if self.difference["ci_high"] < 0 else "level"


def models(records: Sequence[Record]) -> list[str]:
    """Models that were probed, in the paper's order."""
    conditions = {r["condition"] for r in records if r["section"] == PROBES and "@" in r["condition"]}
    return sorted({c.partition("@")[0] for c in conditions}, key=condition_rank)


def dataset(records: Sequence[Record]) -> str:
    """What they were asked; empty if nothing was probed."""
    return next((r["dataset"] for r in records if r["section"] == PROBES and "@" in r["condition"]), "")


def measured(records: Sequence[Record]) -> list[Probe]:
    """The probes that were made."""
    arms = {r["condition"].partition("@")[2] for r in records if r["section"] == PROBES}
    return [probe for probe in (*probes(len(arms)), MASKED) if probe.arm in arms]


def accuracy(records: Sequence[Record], model: str, arm: str) -> Record | None:
    """Of an arm; None if it was not made."""
    found = select(records, PROBES, f"{model}@{arm}", dataset(records), "accuracy")
    return found[-1] if found else None


def contrast(records: Sequence[Record], model: str, arm: str, control: str) -> Contrast | None:
    """An arm against a control, which may be another model's (`base@plain`); None if one was not made."""
    other = control if "@" in control else f"{model}@{control}"
    data, condition = dataset(records), f"{model}@{arm}"
    ours, theirs = accuracy(records, model, arm), accuracy(records, *other.split("@"))
    found = [
        select_difference(records, PROBES, condition, data, f"{metric}_minus:{other}")
        for metric in ("accuracy", "length")
    ]
    if ours is None or theirs is None or not found[0]:
        return None
    return Contrast(model, arm, control, ours, theirs, found[0][-1], found[1][-1] if found[1] else None)


def contrasts(records: Sequence[Record], probe: Probe) -> list[Contrast]:
    """A probe on every model against every control."""
    pairs = [(model, control) for model in models(records) for control in probe.controls]
    found = [contrast(records, model, probe.arm, control) for model, control in pairs]
    return [c for c in found if c is not None]


def said(records: Sequence[Record], model: str, arm: str) -> dict[str, float]:
    """The words that an arm is about, and how often the model says each in a response of its own."""
    found: dict[str, float] = {}
    for r in records:
        kind, _, word = r["metric"].partition(":")
        if (r["section"], r["condition"], kind) == (PROBES, f"{model}@{arm}", "word"):
            found.setdefault(word, r["value"])
    return found


def regained(records: Sequence[Record], model: str, probe: Probe) -> float | None:
    """Share of what the model has lost against the base that a probe gives back.

    Counted is what it gains over doing nothing at the same places.

    Returns: None if the model has lost nothing, or one of the figures is missing.
    """
    lost = contrast(records, model, PLAIN, f"base@{PLAIN}")
    nothing = next((control for control in probe.controls if "nothing" in control), PLAIN)
    gain = contrast(records, model, probe.arm, nothing)
    if lost is None or gain is None or lost.side != "lower":
        return None
    return float(-gain.difference["value"] / lost.difference["value"])
