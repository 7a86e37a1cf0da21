"""The sentences of a report: verdicts, findings, and what is missing."""

import math
from collections.abc import Sequence

from sdistill.analysis.attribution import ATTRIBUTION
from sdistill.analysis.measure import BASE
from sdistill.analysis.probes import PROBES, Probe
from sdistill.report import findings
from sdistill.report.claims import Claim, Evidence, Outcome
from sdistill.report.lookup import (
    FIXES,
    GRPO,
    ON_POLICY,
    PAPER,
    SDPO,
    SFT,
    UNITS,
    Index,
    Point,
    arm_name,
    name,
)
from sdistill.report.tables import DIGITS
from sdistill.types import Condition

DATASETS = {
    "walk": "",
    "trained": " on the problems trained on",
    "k3": " on unseen problems (k3)",
    "k4": " on harder problems (k4)",
}
OF_SOME = ("doubt", "shuffle", "repair")  # probes of some responses say nothing about all
FINE = 0.03  # a difference in accuracy that probes should find
LEVEL = 0.05  # of adjusted p-values
NAMED = 6  # words that are listed in either direction


def number(value: float | None, digits: int, sign: str = "-") -> str:
    """A number with this many decimals and a real minus sign; a dash if it is undefined."""
    return "–" if value is None else format(value, f"{sign}.{digits}f").replace("-", "−")


def interval(low: float | None, high: float | None, digits: int, sign: str = "-") -> str:
    """`[low, high]`, or nothing."""
    if low is None or high is None:
        return ""
    return f"[{number(low, digits, sign)}, {number(high, digits, sign)}]"


def difference(p: Point, metric: str) -> str:
    """A difference and its interval. Out: `−0.508 [−0.551, −0.465]`."""
    digits = DIGITS.get(metric, 3)
    return f"{number(p.value, digits, '+')} {interval(p.low, p.high, digits, '+')}".rstrip()


def capitalized(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


# ── Sections ─────────────────────────────────────────────────────────────────────────────────────


def studies_paper(index: Index) -> bool:
    """Whether the run is about the paper's claims, and not about the fixes or the probes alone."""
    return not index.sections or any(section in PAPER for section in index.sections)


def shown_sections(index: Index) -> list[str]:
    """The sections of a report: the paper's if the run is about them; others if they were measured."""
    paper = [*PAPER, ATTRIBUTION] if studies_paper(index) else []
    return paper + [s for s in (FIXES, PROBES, ATTRIBUTION) if s in index.sections and s not in paper]


def missing(section: str, index: Index) -> list[str]:
    """Sentences on what a section lacks."""
    if section not in index.sections:
        return ["Not measured in this run."]
    prompts = ("none", "other_problem", "answer", "regenerated", "solution")
    expected: dict[str, Sequence[Condition]] = {
        "richness": [Condition("base", prompt=prompt) for prompt in prompts],
        "sft": [BASE, *SFT],
        "on_policy": [BASE, *ON_POLICY],
        "coverage": [BASE],
        FIXES: [BASE, GRPO, SDPO],
        ATTRIBUTION: ON_POLICY if studies_paper(index) else [],
    }
    conditions = index.conditions(section)
    lacking = [name(c) for c in expected.get(section, ()) if c not in conditions]
    if section == "coverage":
        lacking += [method.upper() for method in ("sdpo", "grpo") if not index.coverage_runs(method)]
    notes = [f"Not measured in this run: {', '.join(lacking)}."] if lacking else []
    if not any(m.seed == "all" for m in index.sections[section]):
        notes.append("Not pooled over seeds: no verdict, no figure; the tables show single seeds.")
    return notes


# ── Claims ───────────────────────────────────────────────────────────────────────────────────────


def counts(claims: Sequence[Claim]) -> dict[Outcome, int]:
    """How many claims have each outcome; outcomes that none has are left out."""
    found = {outcome: sum(claim.outcome is outcome for claim in claims) for outcome in Outcome}
    return {outcome: count for outcome, count in found.items() if count}


def headline(claims: Sequence[Claim]) -> str:
    """How many claims held, in one sentence."""
    found = counts(claims)
    measured = len(claims) - found.get(Outcome.NOT_MEASURED, 0)
    if not measured:
        return "Nothing that the paper claims was measured in this run."
    outcomes = (Outcome.REPRODUCED, Outcome.NOT_REPRODUCED, Outcome.INCONCLUSIVE)
    held, contrary, unclear = (
        f"{n} {'is' if n == 1 else 'are'}" for n in (found.get(o, 0) for o in outcomes)
    )
    return (
        f"Of {measured} measured claims of the paper, {held} reproduced on this run, {contrary} not, and "
        f"{unclear} inconclusive."
    )


def exceptions(claims: Sequence[Claim]) -> list[tuple[Claim, str]]:
    """The claims that were not reproduced, then the inconclusive ones, each with its deciding differences."""
    return [
        (claim, "; ".join(f"{compared(e)} {measured(e)}" for e in claim.evidence if e.outcome is outcome))
        for outcome in (Outcome.NOT_REPRODUCED, Outcome.INCONCLUSIVE)
        for claim in claims
        if claim.outcome is outcome
    ]


def compared(e: Evidence) -> str:
    """What a difference compares. Out: `accuracy on harder problems (k4), step 40: GRPO minus base`."""
    c = e.comparison
    dataset = DATASETS.get(c.dataset, f" on {c.dataset}")
    at = f", step {e.point.step}" if e.point.step else ""
    return f"{UNITS.get(c.metric, c.metric)}{dataset}{at}: {name(c.condition)} minus {name(c.baseline)}"


def measured(e: Evidence) -> str:
    """The difference and its interval."""
    return difference(e.point, e.comparison.metric)


def remarks(e: Evidence) -> str:
    """Notes on a difference: pairing, seeds, and the smallest effect that it would find."""
    digits = DIGITS.get(e.comparison.metric, 3)
    found = [] if e.paired else ["not paired"]
    if len(e.by_seed) > 1:
        found.append("by seed " + ", ".join(number(v, digits, "+") for v in e.by_seed))
    if e.across_seeds:
        found.append("interval over problems and seeds")
    if e.point.detectable:
        found.append(f"would find ±{number(e.point.detectable, digits)}")
    return "; ".join(found)


# ── Fixes and probes ─────────────────────────────────────────────────────────────────────────────


def fixes_findings(index: Index) -> list[str]:
    """How each condition compares with the base and with SDPO on harder problems; empty if none does."""
    words = {"above": "Better than", "level": "Not told apart from", "below": "Worse than"}
    return [
        f"{words[side]} {name(baseline)}: {', '.join(map(name, conditions))}."
        for baseline in (BASE, SDPO)
        for side, conditions in findings.sides(index, baseline).items()
        if conditions
    ]


def probe_findings(index: Index) -> list[str]:
    """The result of each probe against its controls, and how large an effect could have been missed."""
    made = findings.probes_made(index)
    lines = [line for probe in made for line in _of_probe(index, probe)]
    every = [
        (c.difference.detectable or math.inf, c) for probe in made for c in findings.contrasts(index, probe)
    ]
    if every:
        fine = sum(detectable <= FINE for detectable, _ in every)
        widest, c = max(every, key=lambda x: x[0])
        least = f"{name(c.model)}, {arm_name(c.arm)}, against {arm_name(c.control)}"
        lines.append(
            f"{fine} of {len(every)} comparisons would probably have found a difference of {FINE:.2f}; the "
            f"least certain ({least}) one of {number(widest, 3)}."
        )
    return lines


def _of_probe(index: Index, probe: Probe) -> list[str]:
    found, arm, lines = findings.contrasts(index, probe), arm_name(probe.arm), []
    for control in dict.fromkeys(c.control for c in found):
        parts = "; ".join(f"{name(c.model)} {_change(c)}" for c in found if c.control == control)
        lines.append(f"{capitalized(arm)}, against {arm_name(control)}: {parts}.")
    for model in () if probe.arm.intervention.startswith(OF_SOME) else findings.probed_models(index):
        if result := findings.recovered(index, model, probe):
            lost, share = result
            size = f"{abs(100 * share):.0f} %"
            back = f"{size} of that comes back" if share >= 0 else f"another {size} of that is lost"
            lines.append(f"{name(model)} has lost {number(lost, 3)} against the base; with “{arm}” {back}.")
    return lines


def _change(c: findings.Contrast) -> str:
    text = difference(c.difference, "accuracy")
    if c.difference.side == "level":
        return f"not told apart ({text}, would find ±{number(c.difference.detectable, 3)})"
    side = "higher" if c.difference.side == "above" else "lower"
    return f"{side}, {number(c.ours.value, 3)} for {number(c.theirs.value, 3)} ({text})"


def probe_words(index: Index) -> list[str]:
    """The words that each arm is about, with how often the model says them in a response."""
    lines = []
    arms = dict.fromkeys(arm for probe in findings.probes_made(index) for arm in (probe.arm, *probe.controls))
    for model in findings.probed_models(index):
        for arm in arms:
            found = {word: n for word, n in findings.words_of_arm(index, model, arm).items() if n}
            ranked = sorted(found.items(), key=lambda item: -item[1])
            listed = ", ".join(f"{word} {number(n, 2)}" for word, n in ranked)
            total = f"together {number(sum(found.values()), 2)} per response"
            lines += [f"{name(model)}, {arm_name(arm)}: {listed}; {total}."] if found else []
    return lines


# ── Attribution ──────────────────────────────────────────────────────────────────────────────────


def word_changes(index: Index) -> list[str]:
    """Of each condition and data set the words that rise and that fall beyond chance, the largest first."""
    datasets = sorted({m.dataset for m in index.sections.get(ATTRIBUTION, ()) if m.metric == "word_change"})
    lines = []
    for dataset in datasets:
        for c in index.conditions(ATTRIBUTION):
            found = findings.words_of(index, c, dataset)
            changed = [w for w in found if w.p < LEVEL]
            rise = _listed("rise", [w for w in changed if w.change.value > 0])
            fall = _listed("fall", [w for w in changed if w.change.value <= 0])
            text = "; ".join(filter(None, (rise, fall))) or "no word beyond chance"
            lines += [f"{name(c)}, {dataset}: {text}."] if found else []
    return lines


def _listed(verb: str, words: Sequence[findings.Word]) -> str:
    ranked = sorted(words, key=lambda w: -abs(w.change.value))
    more = f" and {len(ranked) - NAMED} more" if len(ranked) > NAMED else ""
    texts = [f"{w.word}{'*' if w.listed else ''} {number(w.change.value, 2, '+')}" for w in ranked[:NAMED]]
    return f"{verb}: {', '.join(texts)}{more}" if ranked else ""


def signal_missing(index: Index) -> list[str]:
    """A sentence on the runs whose words were compared and whose tokens were not kept."""
    of_tokens = ("train", "signal")
    lacking = [
        name(c)
        for c in index.conditions(ATTRIBUTION)
        if not index.curve(ATTRIBUTION, c, *of_tokens, group="class:epistemic")
    ]
    why = "run without `attribution`, or nothing to learn"
    return [f"Signal by token not measured ({why}): {', '.join(lacking)}."] if lacking else []
