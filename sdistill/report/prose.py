"""The sentences of a report: verdicts, findings, and what is missing."""

import itertools
import math
from collections.abc import Sequence

from sdistill.analysis.attribution import ATTRIBUTION
from sdistill.analysis.measure import BASE
from sdistill.report import findings, lookup
from sdistill.report.claims import Claim, Evidence, Outcome
from sdistill.report.lookup import FIXES, HEADINGS, ON_POLICY, PAPER, SDPO, UNITS, Index, Point, name
from sdistill.report.tables import DIGITS

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


def studies_paper(index: Index) -> bool:
    """Whether the run is about the paper's claims, and not about the fixes or the probes alone."""
    return not index.sections or any(section in PAPER for section in index.sections)


def shown_sections(index: Index) -> list[str]:
    """The sections of a report: the paper's if the run is about them; others if they were measured."""
    paper = [*PAPER, ATTRIBUTION] if studies_paper(index) else []
    return paper + [s for s in HEADINGS if s in index.sections and s not in paper]


def missing(section: str, index: Index) -> list[str]:
    """Sentences on what a section lacks."""
    if section not in index.sections:
        return ["Not measured in this run."]
    of_paper = section == ATTRIBUTION and studies_paper(index)
    expected = ON_POLICY if of_paper else lookup.EXPECTED.get(section, ())
    conditions = index.conditions(section)
    lacking = [name(c) for c in expected if c not in conditions]
    if section == "coverage":
        lacking += [method.upper() for method in ("sdpo", "grpo") if not index.coverage_runs(method)]
    notes = [f"Not measured in this run: {', '.join(lacking)}."] if lacking else []
    if not any(m.seed == "all" for m in index.sections[section]):
        notes.append("Not pooled over seeds: no verdict, no figure; the tables show single seeds.")
    return notes


def headline(claims: Sequence[Claim]) -> str:
    """How many claims held, in one sentence."""
    outcomes = [claim.outcome for claim in claims]
    measured = len(claims) - outcomes.count(Outcome.NOT_MEASURED)
    if not measured:
        return "Nothing that the paper claims was measured in this run."
    shown = (Outcome.REPRODUCED, Outcome.NOT_REPRODUCED, Outcome.INCONCLUSIVE)
    held, contrary, unclear = (f"{n} {'is' if n == 1 else 'are'}" for n in map(outcomes.count, shown))
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


def fixes_findings(index: Index) -> list[str]:
    """How ranked conditions compare with the base and with SDPO on harder problems, in their order."""
    words = {"above": "Better than", "level": "Not told apart from", "below": "Worse than"}
    lines = []
    for baseline, (side, word) in itertools.product((BASE, SDPO), words.items()):
        of = (findings.RANKED_ON, "accuracy", baseline)
        points = {c: index.difference(FIXES, c, *of) for c in findings.standings(index)}
        listed = [name(c) for c, p in points.items() if p and p.side == side]
        lines += [f"{word} {name(baseline)}: {', '.join(listed)}."] if listed else []
    return lines


def probe_findings(index: Index) -> list[str]:
    """The result of each probe against its controls, and how large an effect could have been missed."""
    every: list[findings.Contrast] = []
    lines = []
    for probe in findings.probes_made(index):
        found, arm = findings.contrasts(index, probe), lookup.arm_name(probe.arm)
        every += found
        for control in dict.fromkeys(c.control for c in found):
            parts = "; ".join(f"{name(c.model)} {_change(c)}" for c in found if c.control == control)
            lines.append(f"{capitalized(arm)}, against {lookup.arm_name(control)}: {parts}.")
        for model in findings.probed_models(index):
            result = findings.recovered(index, model, probe)
            if result and not probe.arm.intervention.startswith(OF_SOME):
                size = f"{abs(100 * result[1]):.0f} %"
                back = f"{size} of that comes back" if result[1] >= 0 else f"another {size} of that is lost"
                lost = f"{name(model)} has lost {number(result[0], 3)} against the base"
                lines.append(f"{lost}; with “{arm}” {back}.")
    if every:
        finds = [c.difference.detectable or math.inf for c in every]
        c, widest = max(zip(every, finds, strict=True), key=lambda x: x[1])
        least = f"{name(c.model)}, {lookup.arm_name(c.arm)}, against {lookup.arm_name(c.control)}"
        lines.append(
            f"{sum(x <= FINE for x in finds)} of {len(every)} comparisons would probably have found a "
            f"difference of {FINE:.2f}; the least certain ({least}) one of {number(widest, 3)}."
        )
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
    for model, arm in itertools.product(findings.probed_models(index), arms):
        if found := {word: n for word, n in findings.words_of_arm(index, model, arm).items() if n}:
            ranked = sorted(found.items(), key=lambda item: -item[1])
            listed = ", ".join(f"{word} {number(n, 2)}" for word, n in ranked)
            total = f"together {number(sum(found.values()), 2)} per response"
            lines.append(f"{name(model)}, {lookup.arm_name(arm)}: {listed}; {total}.")
    return lines


def word_changes(index: Index) -> list[str]:
    """Of each condition and data set the words that rise and that fall beyond chance, the largest first."""
    datasets = sorted({m.dataset for m in index.sections.get(ATTRIBUTION, ()) if m.metric == "word_change"})
    lines = []
    for dataset, c in itertools.product(datasets, index.conditions(ATTRIBUTION)):
        if found := findings.words_of(index, c, dataset):
            rise = _listed("rise", [w for w in found if w.p < LEVEL and w.change.value > 0])
            fall = _listed("fall", [w for w in found if w.p < LEVEL and w.change.value <= 0])
            text = "; ".join(filter(None, (rise, fall))) or "no word beyond chance"
            lines.append(f"{name(c)}, {dataset}: {text}.")
    return lines


def _listed(verb: str, words: Sequence[findings.Word]) -> str:
    ranked = sorted(words, key=lambda w: -abs(w.change.value))
    more = f" and {len(ranked) - NAMED} more" if len(ranked) > NAMED else ""
    texts = [f"{w.word}{'*' if w.listed else ''} {number(w.change.value, 2, '+')}" for w in ranked[:NAMED]]
    return f"{verb}: {', '.join(texts)}{more}" if ranked else ""


def signal_missing(index: Index) -> list[str]:
    """A sentence on the runs whose words were compared and whose tokens were not kept."""
    of, group = ("train", "signal"), "class:epistemic"
    found = index.conditions(ATTRIBUTION)
    lacking = [name(c) for c in found if not index.last(ATTRIBUTION, c, *of, group=group)]
    why = "run without `attribution`, or nothing to learn"
    return [f"Signal by token not measured ({why}): {', '.join(lacking)}."] if lacking else []
