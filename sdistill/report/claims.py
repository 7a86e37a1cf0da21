"""The paper's claims, and which of them hold on a run, decided from its measurements alone.

A claim is one or several comparisons. Each is a measured difference with an interval:

- claimed `above` or `below` zero: reproduced if the interval lies wholly on the claimed side, not reproduced
  if it lies wholly on the other, inconclusive otherwise;
- claimed `not below`: reproduced if the difference is not negative or its lower bound is above -MARGIN, not
  reproduced if the interval lies wholly below zero, inconclusive otherwise.

Without an interval nothing is decided. All comparisons of a claim must be reproduced, and one that goes the
other way refutes it. There is no correction for the number of claims.
"""

import enum
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sdistill.analysis.measure import BASE
from sdistill.report.lookup import ANSWER, ANSWER_EMA, GRPO, SFT, SOLUTION, SOLUTION_EMA, Index, Point, name
from sdistill.types import Condition, Seed

MARGIN = 0.03  # accuracy that counts as "about level" in a claim of no loss
NARROW = 8  # the largest |D| that counts as small in the claim about in-domain gains


class Outcome(enum.StrEnum):
    """The verdict on a claim."""

    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    INCONCLUSIVE = "inconclusive"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Comparison:
    """`metric` of `condition` minus that of `baseline`, and the side of zero that the paper puts it on."""

    section: str
    condition: Condition
    dataset: str
    claimed: Literal["above", "below", "not below"]
    metric: str = "accuracy"
    baseline: Condition = BASE


@dataclass(frozen=True)
class Evidence:
    """A measured difference.

    Attributes:
      point: The difference, at a training step of the condition.
      paired: Whether the interval is paired by problem; if not, it is made from two separate ones.
      across_seeds: Whether the interval is over seeds too; if not, it is within the seeds that were run.
      by_seed: The same difference for each seed, in the order of the seeds.
    """

    comparison: Comparison
    point: Point
    paired: bool
    across_seeds: bool = False
    by_seed: tuple[float, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """The verdict on this difference, by the module's rules.

        An interval of zero width counts as none: it comes from a single problem, over which nothing varies.
        """
        claimed, p = self.comparison.claimed, self.point
        if p.low is None or p.low == p.high:
            return Outcome.INCONCLUSIVE
        if p.side == claimed or (claimed == "not below" and (p.value >= 0 or p.low > -MARGIN)):
            return Outcome.REPRODUCED
        contrary = "above" if claimed == "below" else "below"
        return Outcome.NOT_REPRODUCED if p.side == contrary else Outcome.INCONCLUSIVE


@dataclass(frozen=True)
class Claim:
    """A claim of the paper with the verdict of one run.

    Attributes:
      section: Key of `PAPER`.
      text: The claim, as a clause.
      evidence: The differences that decide.
      also: Further differences, which do not enter the verdict.
      note: What a reader must know of the rule that was applied, possibly empty.
    """

    section: str
    text: str
    evidence: tuple[Evidence, ...] = ()
    also: tuple[Evidence, ...] = ()
    note: str = ""

    @property
    def outcome(self) -> Outcome:
        """One contrary difference refutes; otherwise all must be reproduced."""
        found = {e.outcome for e in self.evidence}
        order = (Outcome.NOT_REPRODUCED, Outcome.INCONCLUSIVE, Outcome.REPRODUCED)
        return next((outcome for outcome in order if outcome in found), Outcome.NOT_MEASURED)


# ── Differences ──────────────────────────────────────────────────────────────────────────────────


def separate_difference(left: Point, right: Point) -> Point:
    """Difference of two estimates with an interval made from theirs, as if independent.

    Method of variance estimates recovery (Zou and Donner 2008): distances to the near bounds add in
    quadrature. On the same problems estimates mostly move together, so this errs to the wide side.
    """
    value = left.value - right.value
    if left.low is None or left.high is None or right.low is None or right.high is None:
        return Point(left.step, value)
    below = math.hypot(left.value - left.low, right.high - right.value)
    above = math.hypot(left.high - left.value, right.value - right.low)
    return Point(left.step, value, value - below, value + above)


def difference(index: Index, c: Comparison, step: int | None = None) -> Evidence | None:
    """The measured difference, pooled over seeds, and that of every seed; None if it was not measured.

    A paired difference is taken if the run recorded one, in either order, and of those the one with an
    interval over seeds too; otherwise the two values are subtracted. `step` is a training step of the
    condition, by default the last one at which both were measured.
    """
    pooled = _difference(index, c, "all", step)
    if pooled is None:
        return None
    across = _difference(index, c, "any", pooled.point.step)
    each = [_difference(index, c, seed, pooled.point.step) for seed in index.seeds]
    by_seed = tuple(e.point.value for e in each if e is not None)
    return replace(across or pooled, across_seeds=across is not None, by_seed=by_seed)


def _difference(index: Index, c: Comparison, seed: Seed, step: int | None) -> Evidence | None:
    """`difference` for one seed, at `step` or the last one measured."""
    trains = c.section in ("on_policy", "coverage")  # where nothing differs yet at step 0

    def curve(condition: Condition, baseline: Condition | None = None) -> dict[int, Point]:
        points = index.curve(c.section, condition, c.dataset, c.metric, seed=seed, baseline=baseline)
        return {p.step: p for p in points}

    def last(points: Mapping[int, Point]) -> Point | None:
        if step is not None:
            return points.get(step)
        return next((points[s] for s in sorted(points, reverse=True) if s > 0 or not trains), None)

    if p := last(curve(c.condition, c.baseline)):
        return Evidence(c, p, paired=True)
    if c.baseline != BASE and (p := last(curve(c.baseline, c.condition))):
        low, high = (None if bound is None else -bound for bound in (p.high, p.low))
        return Evidence(c, Point(p.step, -p.value, low, high), paired=True)

    left, right = curve(c.condition), curve(c.baseline)
    if c.baseline == BASE:
        # A run's own step 0 is the base model on the very problems that the run is evaluated on.
        start = left.get(0) if trains and 0 in left else right[min(right)] if right else None
        right = dict.fromkeys(left, start) if start else {}
    p = last({s: point for s, point in left.items() if s in right})
    return None if p is None else Evidence(c, separate_difference(p, right[p.step]), paired=False)


# ── Rules ────────────────────────────────────────────────────────────────────────────────────────

Finding = tuple[tuple[Evidence, ...], tuple[Evidence, ...], str]
"""Deciding differences, further ones, and a note."""
Rule = Callable[[Index], Finding]


def _measured(index: Index, comparisons: Iterable[Comparison]) -> tuple[Evidence, ...]:
    return tuple(e for c in comparisons if (e := difference(index, c)))


def _compare(*deciding: Comparison, also: Sequence[Comparison] = ()) -> Rule:
    """The rule of a claim that comparisons decide; those not measured are left out."""

    def rule(index: Index) -> Finding:
        found, notes = _measured(index, deciding), []
        if found and len(found) < len(deciding):
            notes.append(f"Only {len(found)} of {len(deciding)} comparisons were measured.")
        if found and any(c.claimed == "not below" for c in deciding):
            notes.append(f"Up to {MARGIN} below counts as level.")
        return found, _measured(index, also), " ".join(notes)

    return rule


def informative_by_bits(index: Index, section: str = "richness", model: Condition = BASE) -> list[Condition]:
    """Informative prompts under which a model was measured, from poor to rich in measured bits.

    A prompt is informative if it says something about the problem in a form that the model has learned to
    read. The form of an answer alone says nothing, and nothing in the corpus is like a solution that breaks
    off.
    """
    bits = {replace(model, prompt="none"): 0.0}  # by definition, whether or not it was written down
    for c in index.conditions(section):
        point = index.last(section, c, "walk", "bits_per_response")
        is_whole = c.prompt in ("none", "answer", "regenerated", "solution")
        is_informative = is_whole or (c.prompt == "partial" and c.fraction)
        if point and is_informative and replace(c, prompt=None, fraction=None) == model:
            bits[c] = point.value
    return sorted(bits, key=lambda c: bits[c])


def _falls_with_richness(metric: str) -> Rule:
    """Reproduced if it falls from end to end and no single step up excludes zero."""

    def rule(index: Index) -> Finding:
        order = informative_by_bits(index)
        pairs = [(order[-1], order[0]), *((b, a) for a, b in itertools.pairwise(order))]
        found = _measured(index, (richness(c, "walk", "below", metric, base) for c, base in pairs))
        if len(order) < 3 or len(found) < len(pairs):
            return (), (), ""
        whole, *steps = found
        rises = tuple(e for e in steps if e.outcome is Outcome.NOT_REPRODUCED)
        note = "Order by measured bits: " + " < ".join(map(name, order)) + "."
        return (whole, *rises), tuple(e for e in steps if e not in rises), note

    return rule


def _narrow_gain(index: Index) -> Finding:
    """SDPO on few problems against base on the same problems, at its best step."""
    best: tuple[Evidence, ...] = ()
    for run in index.coverage_runs("sdpo"):
        both = (coverage(run, "trained", "above"), coverage(run, "trained", "below", "length"))
        points = index.curve("coverage", run, "trained", "accuracy")
        for step in (p.step for p in points if p.step and (run.num_problems or math.inf) <= NARROW):
            found = [difference(index, c, step) for c in both]
            pair = tuple(e for e in found if e and e.point.low != e.point.high)  # not of a single problem
            if len(pair) == 2 and (not best or pair[0].point.value > best[0].point.value):
                best = pair
    return best, (), "Best step for accuracy, chosen afterwards: the gain is overstated." if best else ""


def _few_against_most(method: str, *, whole: bool) -> Rule:
    """The fewest training problems against the most, or against the whole set, out of distribution."""

    def rule(index: Index) -> Finding:
        runs = index.coverage_runs(method)
        most = [c for c in runs[1:] if (c.num_problems is None) == whole][-1:]
        return _measured(index, (coverage(runs[0], "k4", "below", baseline=c) for c in most)), (), ""

    return rule


richness, sft, on_policy, coverage = (
    functools.partial(Comparison, section) for section in ("richness", "sft", "on_policy", "coverage")
)
NONE, ONLY_ANSWER, WHOLE = (replace(BASE, prompt=prompt) for prompt in ("none", "answer", "solution"))
CLAIMS: Mapping[str, Mapping[str, Rule]] = {
    "richness": {
        "epistemic words fall as the context gets richer": _falls_with_richness("num_epistemic"),
        "responses get shorter as the context gets richer": _falls_with_richness("length"),
        "accuracy rises with richness: no context < answer only ≤ full solution": _compare(
            richness(ONLY_ANSWER, "walk", "above", baseline=NONE),
            richness(WHOLE, "walk", "not below", baseline=ONLY_ANSWER),
        ),
    },
    "sft": {
        "SFT on guided responses lowers accuracy": _compare(
            sft(SFT[1], "k3", "below"),
            also=[sft(SFT[1], "k4", "below"), sft(SFT[1], "k3", "below", "num_epistemic")],
        ),
        "SFT on unguided responses does not lower accuracy": _compare(
            sft(SFT[0], "k3", "not below"), also=[sft(SFT[0], "k4", "not below")]
        ),
    },
    "on_policy": {
        "GRPO raises accuracy": _compare(on_policy(GRPO, "k3", "above")),
        "GRPO raises accuracy out of distribution": _compare(on_policy(GRPO, "k4", "above")),
        "SDPO with c = s lowers accuracy out of distribution": _compare(
            on_policy(SOLUTION, "k4", "below"), also=[on_policy(SOLUTION, "k3", "below")]
        ),
        "SDPO with c = s∖think lowers accuracy out of distribution": _compare(
            on_policy(ANSWER, "k4", "below"), also=[on_policy(ANSWER, "k3", "below")]
        ),
        "SDPO with c = s is worse than with c = s∖think out of distribution": _compare(
            on_policy(SOLUTION, "k4", "below", baseline=ANSWER),
            also=[on_policy(SOLUTION, "k3", "below", baseline=ANSWER)],
        ),
        "SDPO shortens responses, with c = s and with c = s∖think": _compare(
            *(on_policy(c, "k3", "below", "length") for c in (SOLUTION, ANSWER))
        ),
        "SDPO leaves fewer epistemic words, with c = s and with c = s∖think": _compare(
            *(on_policy(c, "k3", "below", "num_epistemic") for c in (SOLUTION, ANSWER))
        ),
        "a frozen teacher is at least as good as an EMA teacher out of distribution": _compare(
            on_policy(SOLUTION, "k4", "not below", baseline=SOLUTION_EMA),
            on_policy(ANSWER, "k4", "not below", baseline=ANSWER_EMA),
        ),
    },
    "coverage": {
        f"SDPO on at most {NARROW} problems gains on these problems while shortening": _narrow_gain,
        "SDPO on few problems is worse out of distribution than on many, the full set left out": (
            _few_against_most("sdpo", whole=False)
        ),
        "SDPO on the full set falls below base out of distribution": _compare(
            coverage(ANSWER, "k4", "below")
        ),
        "GRPO on few problems is worse out of distribution than on the full set": (
            _few_against_most("grpo", whole=True)
        ),
    },
}


def judge(index: Index) -> list[Claim]:
    """Every claim with its verdict, in the paper's order; one without measurements is not measured."""
    rules = [(section, text, rule) for section, found in CLAIMS.items() for text, rule in found.items()]
    return [Claim(section, text, *rule(index)) for section, text, rule in rules]
