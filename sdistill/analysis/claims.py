"""Which of the paper's claims hold on a run, decided from its records alone.

A record is one line of a run's `results.jsonl`: the value of a metric, of a condition, on a data
set, at a step, with a 95 % interval. A claim is a direction, and one set of rules serves them all:

- `above` or `below` zero: reproduced if the interval of the difference lies wholly on the claimed
  side, not reproduced if it lies wholly on the other, inconclusive otherwise;
- `not below`: reproduced if the difference is not negative or its lower bound is above -MARGIN, not
  reproduced if the interval lies wholly below zero, inconclusive otherwise;
- several comparisons: all must be reproduced, and one that goes the other way refutes the claim.

Without an interval nothing is decided. No correction is made for judging many claims at once.
"""

import enum
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Record = Mapping[str, Any]
Seed = int | str
Direction = Literal["above", "below", "not below"]

SECTIONS = {
    "richness": "Context richness (paper section 3)",
    "sft": "Off-policy self-distillation (paper section 4)",
    "on_policy": "On-policy self-distillation (paper section 5)",
    "coverage": "Task coverage (paper section 6)",
}
"""The paper's sections; that of the fixes is in `ranking`."""
POOLED = "all"  # the seed of records that pool every seed
MARGIN = 0.03  # accuracy that counts as "about level" in a claim of no loss
NARROW = 8  # the largest |D| that counts as small in the claim about in-domain gains
INFORMATIVE = ("unguided", "partial", "answer", "regenerated", "solution")
NAMES = {
    "base": "base",
    "unguided": "no context (∅)",
    "other_problem": "another problem's solution",
    "partial": "partial solution",
    "answer": "answer only (s∖think)",
    "regenerated": "regenerated (ỹ)",
    "solution": "full solution (s)",
    "sft_unguided": "SFT on unguided",
    "sft_guided": "SFT on guided (s∖think)",
    "sft_guided_solution": "SFT on guided (s)",
    "grpo": "GRPO",
    "sdpo_solution_fixed": "SDPO c = s",
    "sdpo_solution_ema": "SDPO c = s, EMA teacher",
    "sdpo_answer_fixed": "SDPO c = s∖think",
    "sdpo_answer_ema": "SDPO c = s∖think, EMA teacher",
    "sdpo": "SDPO",
    "sdpo_pointwise_clip": "SDPO + pointwise clip",
    "sdpo_marker_mask": "SDPO + marker mask",
    "sdpo_pass_rate": "SDPO + pass-rate weight",
    "sdpo_fork_aware": "SDPO + fork-aware",
    "sdpo_other_problem": "SDPO + other problem",
    "sdpo_partial": "SDPO + partial context",
    "grpo_contrastive_hints": "GRPO + contrastive hints",
    "grpo_anti_self_distillation": "GRPO + anti-self-distillation",
}


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
      seeds: The same difference for each seed, in the order of the seeds.
    """

    comparison: Comparison
    value: float
    low: float | None
    high: float | None
    step: int
    paired: bool
    seeds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A claim of the paper with the verdict of one run.

    Attributes:
      section: Key of `SECTIONS`.
      text: The claim, as a clause.
      outcome: The verdict.
      evidence: What the verdict rests on.
      also: Further figures that did not enter the verdict.
      note: What a reader must know of the rule that was applied, possibly empty.
    """

    section: str
    text: str
    outcome: Outcome
    evidence: tuple[Evidence, ...] = ()
    also: tuple[Evidence, ...] = ()
    note: str = ""


def name(condition: str) -> str:
    """A condition in words. In: `sdpo_64`. Out: `SDPO |D| = 64`."""
    method, _, size = condition.partition("_")
    if condition not in NAMES and method in ("sdpo", "grpo"):
        return f"{method.upper()} |D| = {size}"
    return NAMES.get(condition, condition)


def select(
    records: Sequence[Record],
    section: str,
    condition: str,
    dataset: str,
    metric: str,
    seed: Seed = POOLED,
) -> list[Record]:
    """The records of one curve that have a value, by step; of several for a step the last one."""
    found = {
        r["step"]: r
        for r in records
        if r["metric"] == metric
        and r["condition"] == condition
        and r["dataset"] == dataset
        and r["seed"] == seed
        and r["section"] == section
    }
    return [found[step] for step in sorted(found) if found[step]["value"] is not None]


def integer_seeds(records: Sequence[Record]) -> list[int]:
    """The seeds that were run."""
    return sorted({r["seed"] for r in records if r["seed"] != POOLED})


def coverage_sizes(records: Sequence[Record], method: str) -> list[str]:
    """The |D| of a method's runs in the coverage section, ascending and `all` last."""
    prefix = f"{method}_"
    found = {
        r["condition"].removeprefix(prefix)
        for r in records
        if r["section"] == "coverage" and r["condition"].startswith(prefix)
    }
    return sorted(found, key=lambda size: math.inf if size == POOLED else int(size))


def _minus(left: Record, right: Record) -> tuple[float, float | None, float | None]:
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
    return None if s is None else Evidence(c, *_minus(left[s], right[s]), s, paired=False)


def difference(records: Sequence[Record], comparison: Comparison, step: int | None = None) -> Evidence | None:
    """The measured difference, pooled over seeds, and that of every seed.

    A paired difference is taken if the run recorded one, in either order; otherwise the two values
    are subtracted.

    Args:
      records: Those of the run.
      comparison: What to subtract from what.
      step: Training step of the condition; by default the last one at which both were measured.

    Returns:
      None if the run has no such figures.
    """
    pooled = _difference(records, comparison, POOLED, step)
    if pooled is None:
        return None
    each = [_difference(records, comparison, s, pooled.step) for s in integer_seeds(records)]
    return replace(pooled, seeds=tuple(e.value for e in each if e is not None))


def decide(evidence: Evidence, claimed: Direction | None = None) -> Outcome:
    """The rule of the module's docstring for one difference; `claimed` overrides its direction.

    An interval of zero width is none: it comes from a single problem, over which nothing varies.
    """
    claimed = claimed or evidence.comparison.claimed
    low, high = evidence.low, evidence.high
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


def _together(outcomes: Sequence[Outcome]) -> Outcome:
    """One contrary finding refutes; otherwise all must be reproduced."""
    for outcome in (Outcome.NOT_REPRODUCED, Outcome.INCONCLUSIVE, Outcome.REPRODUCED):
        if outcome in outcomes:
            return outcome
    return Outcome.NOT_MEASURED


Rule = Callable[[Sequence[Record]], Claim]


def _compare(text: str, *deciding: Comparison, also: tuple[Comparison, ...] = ()) -> Rule:
    """The rule of a claim that is settled by comparisons; those not measured are left out."""

    def rule(records: Sequence[Record]) -> Claim:
        found = [e for c in deciding if (e := difference(records, c))]
        extra = [e for c in also if (e := difference(records, c))]
        notes = []
        if found and len(found) < len(deciding):
            notes.append(f"Only {len(found)} of {len(deciding)} comparisons were measured.")
        if found and any(c.claimed == "not below" for c in deciding):
            notes.append(f"Up to {MARGIN} below counts as level.")
        outcome = _together([decide(e) for e in found])
        section = deciding[0].section
        return Claim(section, text, outcome, tuple(found), tuple(extra), " ".join(notes))

    return rule


def informative_by_bits(records: Sequence[Record]) -> list[str]:
    """The contexts about this problem that were measured, from poor to rich in measured bits."""
    bits = {"unguided": 0.0}  # by definition, whether or not it was written down
    for condition in INFORMATIVE:
        if rows := select(records, "richness", condition, "walk", "bits_per_response"):
            bits[condition] = rows[-1]["value"]
    return sorted(bits, key=lambda condition: bits[condition])


def _falls_with_richness(metric: str, text: str) -> Rule:
    """Reproduced if it falls from end to end and no single step up excludes zero."""

    def rule(records: Sequence[Record]) -> Claim:
        order = informative_by_bits(records)
        pairs = [(order[-1], order[0]), *((b, a) for a, b in itertools.pairwise(order))]
        measured = [
            difference(records, Comparison("richness", rich, poor, "walk", metric, "below"))
            for rich, poor in pairs
        ]
        found = [e for e in measured if e]
        if len(order) < 3 or len(found) < len(pairs):
            return Claim("richness", text, Outcome.NOT_MEASURED)
        whole, *steps = found
        outcome = decide(whole)
        if any(decide(e, "above") is Outcome.REPRODUCED for e in steps):
            outcome = Outcome.NOT_REPRODUCED
        note = "Order by measured bits: " + " < ".join(map(name, order)) + "."
        return Claim("richness", text, outcome, (whole,), tuple(steps), note)

    return rule


def _narrow_gain(text: str) -> Rule:
    """SDPO on few problems against base on the same problems, at its best step."""

    def rule(records: Sequence[Record]) -> Claim:
        best: tuple[Evidence, ...] = ()
        for size in coverage_sizes(records, "sdpo"):
            if size == POOLED or int(size) > NARROW:
                continue
            gain = Comparison("coverage", f"sdpo_{size}", "base", "trained", "accuracy", "above")
            fall = replace(gain, metric="length", claimed="below")
            for r in select(records, "coverage", gain.condition, "trained", "accuracy"):
                found = [difference(records, c, r["step"]) for c in (gain, fall) if r["step"]]
                pair = tuple(e for e in found if e and e.low != e.high)  # see `decide`
                if len(pair) == 2 and (not best or pair[0].value > best[0].value):
                    best = pair
        note = "Best step for accuracy, chosen afterwards: the gain is overstated." if best else ""
        return Claim("coverage", text, _together([decide(e) for e in best]), best, (), note)

    return rule


def _across_coverage(text: str, method: str, *, with_all: bool) -> Rule:
    """The narrowest |D| against the widest, out of distribution."""

    def rule(records: Sequence[Record]) -> Claim:
        sizes = [s for s in coverage_sizes(records, method) if with_all or s != POOLED]
        if len(sizes) < 2 or (with_all and sizes[-1] != POOLED):
            return Claim("coverage", text, Outcome.NOT_MEASURED)
        narrow, wide = f"{method}_{sizes[0]}", f"{method}_{sizes[-1]}"
        ends = Comparison("coverage", narrow, wide, "k4", "accuracy", "below")
        return _compare(text, ends)(records)

    return rule


def _sft(run: str, dataset: str, claimed: Direction, metric: str = "accuracy") -> Comparison:
    return Comparison("sft", run, "base", dataset, metric, claimed)


def _trained(
    run: str, dataset: str, claimed: Direction, metric: str = "accuracy", other: str = "base"
) -> Comparison:
    return Comparison("on_policy", run, other, dataset, metric, claimed)


SOLUTION, ANSWER = "sdpo_solution_fixed", "sdpo_answer_fixed"
RULES: tuple[Rule, ...] = (
    _falls_with_richness("words", "epistemic words fall as the context gets richer"),
    _falls_with_richness("length", "responses get shorter as the context gets richer"),
    _compare(
        "accuracy rises with richness: no context < answer only ≤ full solution",
        Comparison("richness", "answer", "unguided", "walk", "accuracy", "above"),
        Comparison("richness", "solution", "answer", "walk", "accuracy", "not below"),
    ),
    _compare(
        "SFT on guided responses lowers accuracy",
        _sft("sft_guided", "k3", "below"),
        also=(_sft("sft_guided", "k4", "below"), _sft("sft_guided", "k3", "below", "words")),
    ),
    _compare(
        "SFT on unguided responses does not lower accuracy",
        _sft("sft_unguided", "k3", "not below"),
        also=(_sft("sft_unguided", "k4", "not below"),),
    ),
    _compare("GRPO raises accuracy", _trained("grpo", "k3", "above")),
    _compare("GRPO raises accuracy out of distribution", _trained("grpo", "k4", "above")),
    _compare(
        "SDPO with c = s lowers accuracy out of distribution",
        _trained(SOLUTION, "k4", "below"),
        also=(_trained(SOLUTION, "k3", "below"),),
    ),
    _compare(
        "SDPO with c = s∖think lowers accuracy out of distribution",
        _trained(ANSWER, "k4", "below"),
        also=(_trained(ANSWER, "k3", "below"),),
    ),
    _compare(
        "SDPO with c = s is worse than with c = s∖think out of distribution",
        _trained(SOLUTION, "k4", "below", other=ANSWER),
        also=(_trained(SOLUTION, "k3", "below", other=ANSWER),),
    ),
    _compare(
        "SDPO shortens responses, with c = s and with c = s∖think",
        _trained(SOLUTION, "k3", "below", "length"),
        _trained(ANSWER, "k3", "below", "length"),
    ),
    _compare(
        "SDPO leaves fewer epistemic words, with c = s and with c = s∖think",
        _trained(SOLUTION, "k3", "below", "words"),
        _trained(ANSWER, "k3", "below", "words"),
    ),
    _compare(
        "a frozen teacher is at least as good as an EMA teacher out of distribution",
        _trained(SOLUTION, "k4", "not below", other="sdpo_solution_ema"),
        _trained(ANSWER, "k4", "not below", other="sdpo_answer_ema"),
    ),
    _narrow_gain(f"SDPO on at most {NARROW} problems gains on these problems while shortening"),
    _across_coverage(
        "SDPO on few problems is worse out of distribution than on many, the full set left out",
        "sdpo",
        with_all=False,
    ),
    _compare(
        "SDPO on the full set falls below base out of distribution",
        Comparison("coverage", "sdpo_all", "base", "k4", "accuracy", "below"),
    ),
    _across_coverage(
        "GRPO on few problems is worse out of distribution than on the full set",
        "grpo",
        with_all=True,
    ),
)


def judge(records: Sequence[Record]) -> list[Claim]:
    """Every claim with its verdict, in the paper's order; without records it is not measured."""
    return [rule(records) for rule in RULES]
