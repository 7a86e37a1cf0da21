"""The ranking of the fixes, the probes against their controls, and the words that change under training."""

from dataclasses import dataclass, replace

from sdistill.analysis.attribution import ATTRIBUTION
from sdistill.analysis.epistemic import WORDS
from sdistill.analysis.measure import BASE
from sdistill.analysis.probes import MASKED, PLAIN, PROBES, Arm, Probe, probes
from sdistill.report.lookup import FIXES, Index, Point
from sdistill.types import Condition

RANKED_ON = "k4"  # the data set that ranks the fixes: never trained on


def standings(index: Index) -> dict[Condition, str]:
    """Condition → rank, of those pooled over seeds, by accuracy on `RANKED_ON`, the best first.

    A rank is `3`, or `2–5` where the intervals of conditions overlap, so that they cannot be told apart.
    """
    points = [(c, index.last(FIXES, c, RANKED_ON, "accuracy")) for c in index.conditions(FIXES)]
    found = [(p.value, p.low, p.high, c) for c, p in points if p and p.low is not None and p.high is not None]
    ranks = {}
    for _, low, high, c in sorted(found, key=lambda x: -x[0]):
        best = 1 + sum(other_low > high for _, other_low, _, _ in found)
        worst = len(found) - sum(other_high < low for _, _, other_high, _ in found)
        ranks[c] = str(best) if best == worst else f"{best}–{worst}"
    return ranks


@dataclass(frozen=True)
class Contrast:
    """An arm of a probe against a control, on one model.

    Attributes:
      ours, theirs: Accuracy of the arm and of the control.
      difference: Paired difference of accuracy.
      length: Paired difference of length in tokens; None if it was not measured.
    """

    model: Condition
    arm: Arm
    control: Arm
    ours: Point
    theirs: Point
    difference: Point
    length: Point | None


def probed_models(index: Index) -> list[Condition]:
    """Models that were probed, in the paper's order."""
    found = [c for c in index.conditions(PROBES) if c.intervention and not c.fix]
    return list(dict.fromkeys(replace(c, intervention=None, attempts=None) for c in found))


def probes_made(index: Index) -> list[Probe]:
    """The probes that were made."""
    found = {Arm(c.intervention, c.attempts, c.fix) for c in index.conditions(PROBES) if c.intervention}
    most = max((arm.attempts or 0 for arm in found), default=0)
    return [probe for probe in (*probes(most), MASKED) if probe.arm in found]


def accuracy(index: Index, model: Condition, arm: Arm) -> Point | None:
    """Of an arm; None if it was not made."""
    return index.last(PROBES, arm.of(model), _dataset(index), "accuracy")


def _dataset(index: Index) -> str:
    """The problems of the probes; empty if nothing was probed."""
    return next((m.dataset for m in index.sections.get(PROBES, ()) if m.condition.intervention), "")


def contrast(
    index: Index, model: Condition, arm: Arm, control: Arm, of: Condition | None = None
) -> Contrast | None:
    """An arm against a control, which may be another model's (`of`); None if one was not made."""
    other = of or model
    difference, length = (
        index.difference(PROBES, arm.of(model), _dataset(index), metric, control.of(other))
        for metric in ("accuracy", "length")
    )
    ours, theirs = accuracy(index, model, arm), accuracy(index, other, control)
    if ours is None or theirs is None or difference is None:
        return None
    return Contrast(model, arm, control, ours, theirs, difference, length)


def contrasts(index: Index, probe: Probe) -> list[Contrast]:
    """A probe on every model against every control."""
    pairs = [(model, control) for model in probed_models(index) for control in probe.controls]
    return [c for model, control in pairs if (c := contrast(index, model, probe.arm, control))]


def words_of_arm(index: Index, model: Condition, arm: Arm) -> dict[str, float]:
    """The words that an arm is about, and how often the model says each without intervention."""
    found: dict[str, float] = {}
    for m in index.sections.get(PROBES, ()):
        if m.condition == arm.of(model) and m.metric == "word" and m.group and m.value is not None:
            found.setdefault(m.group, m.value)
    return found


def recovered(index: Index, model: Condition, probe: Probe) -> tuple[float, float] | None:
    """What the model has lost against the base, and the share of it that a probe gives back.

    The gain is over the same intervention without a word. None if the model has lost nothing, or one of the
    values is missing.
    """
    lost = contrast(index, model, PLAIN, PLAIN, of=BASE)
    without = next((c for c in probe.controls if c.intervention.endswith("nothing")), PLAIN)
    gain = contrast(index, model, probe.arm, without)
    if lost is None or gain is None or lost.difference.side != "below":
        return None
    return -lost.difference.value, -gain.difference.value / lost.difference.value


@dataclass(frozen=True)
class Word:
    """A word whose frequency was compared with the base.

    Attributes:
      listed: Whether it is on the paper's list.
      base, change: Occurrences per response of the base, and the paired difference to them.
      p, z: Adjusted p-value of the change; z-score of the log-odds.
    """

    word: str
    listed: bool
    base: Point
    change: Point
    p: float
    z: float


def words_of(index: Index, condition: Condition, dataset: str) -> list[Word]:
    """The words that were compared with the base, those that rise most first."""
    of = (ATTRIBUTION, condition, dataset)
    mine = [m for m in index.sections.get(ATTRIBUTION, ()) if (m.section, m.condition, m.dataset) == of]
    words = []
    for word in dict.fromkeys(m.group for m in mine if m.metric == "word_change" and m.group):
        kinds = ("word_base", "word_change", "word_p", "word_z")
        points = [p for kind in kinds if (p := index.last(*of, kind, group=word))]
        if len(points) == len(kinds):
            base, change, p, z = points
            words.append(Word(word, word in WORDS, base, change, p.value, z.value))
    return sorted(words, key=lambda w: (-w.change.value, w.word))
