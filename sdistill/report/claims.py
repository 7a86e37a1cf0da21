"""Which of the paper's claims hold on a run, decided from its records alone.

A claim is one or several directions. Each is decided by the rules of `evidence`; all of a claim's must be
reproduced, and one that goes the other way refutes it. No correction is made for judging many claims at
once.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sdistill.analysis.records import Record
from sdistill.report.evidence import (
    MARGIN,
    Comparison,
    Direction,
    Evidence,
    Outcome,
    decide,
    difference,
)
from sdistill.report.lookup import POOLED, coverage_sizes, dial, name, select

NARROW = 8  # the largest |D| that counts as small in the claim about in-domain gains
INFORMATIVE = ("unguided", "answer", "regenerated", "solution")


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


def is_informative(context: str) -> bool:
    """Whether a context says something about the problem, in a form that the model has learned to read.

    The form of an answer alone says nothing, and a solution that breaks off is like nothing in the corpus.
    """
    kind, percent = dial(context) or ("", 0)
    return context in INFORMATIVE or (kind == "partial" and percent > 0)


def informative_by_bits(records: Sequence[Record], section: str = "richness", model: str = "") -> list[str]:
    """Informative contexts that were measured, from poor to rich in measured bits.

    Args:
      records: Of the run.
      section: Where they were measured.
      model: What the names of the conditions begin with.
    """
    bits = {f"{model}unguided": 0.0}  # by definition, whether or not it was written down
    conditions = dict.fromkeys(r["condition"] for r in records if r["section"] == section)
    for condition in conditions:
        rows = select(records, section, condition, "walk", "bits_per_response")
        if rows and condition.startswith(model) and is_informative(condition.removeprefix(model)):
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
        rises = [e for e in steps if decide(e) is Outcome.NOT_REPRODUCED]
        outcome = _together([decide(e) for e in (whole, *rises)])
        also = tuple(e for e in steps if e not in rises)
        note = "Order by measured bits: " + " < ".join(map(name, order)) + "."
        return Claim("richness", text, outcome, (whole, *rises), also, note)

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
