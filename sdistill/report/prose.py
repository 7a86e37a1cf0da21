"""What a report says in words: headings, the verdicts in sentences, what is missing."""

from collections.abc import Sequence

from sdistill.analysis.attribution import ATTRIBUTION
from sdistill.analysis.probes import PROBES
from sdistill.analysis.records import Record
from sdistill.report import figures
from sdistill.report.claims import Claim
from sdistill.report.evidence import Evidence, Outcome, decide
from sdistill.report.lookup import POOLED, SECTIONS, coverage_sizes, name
from sdistill.report.markup import interval, number
from sdistill.report.ranking import FIXES, against
from sdistill.report.tables import DIGITS

HEADINGS = {
    **SECTIONS,
    FIXES: "Which fix keeps reasoning?",
    PROBES: "Causal probes",
    ATTRIBUTION: "Where the signal falls",
}
EXPECTED = {
    "richness": ["unguided", "other_problem", "answer", "regenerated", "solution"],
    "sft": list(figures.SFT_COLOURS),
    "on_policy": ["base", *figures.RUN_LINES],
    "trained_richness": [],
    "coverage": ["base"],
    FIXES: [*figures.FIX_LINES],
    PROBES: ["base@plain"],
    ATTRIBUTION: [*figures.RUN_LINES],
}
"""Section → conditions that a whole study has."""
UNITS = {"accuracy": "accuracy", "length": "length in tokens", "words": "epistemic words a response"}
PLACES = {
    "walk": "",
    "trained": " on the problems trained on",
    "k3": " on unseen problems (k3)",
    "k4": " on harder problems (k4)",
}


def studies_paper(records: Sequence[Record]) -> bool:
    """Whether the run is about the paper's claims, and not of the fixes or the probes alone."""
    return not records or any(r["section"] in SECTIONS for r in records)


def shown_sections(records: Sequence[Record]) -> list[str]:
    """The paper's sections, run or not, if the run is about them, with the attribution of their signal.

    Others if they were run.
    """
    paper = [*SECTIONS, ATTRIBUTION] if studies_paper(records) else []
    measured = {r["section"] for r in records}
    return paper + [s for s in (FIXES, PROBES, ATTRIBUTION) if s in measured and s not in paper]


def counts(claims: Sequence[Claim]) -> dict[Outcome, int]:
    """How many claims have each outcome, those that none has left out."""
    found = {outcome: sum(claim.outcome is outcome for claim in claims) for outcome in Outcome}
    return {outcome: count for outcome, count in found.items() if count}


def headline(claims: Sequence[Claim]) -> str:
    """What held, in one sentence."""
    found = counts(claims)
    measured = len(claims) - found.get(Outcome.NOT_MEASURED, 0)
    if not measured:
        return "Nothing that the paper claims was measured in this run."
    held = found.get(Outcome.REPRODUCED, 0)
    contrary = found.get(Outcome.NOT_REPRODUCED, 0)
    open_ = found.get(Outcome.INCONCLUSIVE, 0)
    return (
        f"Of {measured} measured claims of the paper, {held} {_are(held)} reproduced on this run, {contrary} "
        f"{_are(contrary)} not, and {open_} {_are(open_)} inconclusive."
    )


def exceptions(claims: Sequence[Claim]) -> list[tuple[Claim, str]]:
    """The claims that were not reproduced, then those not settled, each with the figures that say so."""
    found = []
    for outcome in (Outcome.NOT_REPRODUCED, Outcome.INCONCLUSIVE):
        for claim in claims:
            if claim.outcome is outcome:
                telling = [e for e in claim.evidence if decide(e) is outcome]
                found.append((claim, "; ".join(f"{compared(e)} {measured(e)}" for e in telling)))
    return found


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def fixes_findings(records: Sequence[Record]) -> list[str]:
    """How each condition compares with the base and with SDPO on harder problems; empty if none does."""
    words = {"above": "better than", "level": "not told apart from", "below": "worse than"}
    return [
        f"{words[side].capitalize()} {name(other)}: {', '.join(map(name, conditions))}."
        for other in ("base", "sdpo")
        for side, conditions in against(records, other).items()
        if conditions
    ]


def compared(e: Evidence) -> str:
    """What a difference compares. Out: `accuracy on harder problems (k4), step 40: GRPO minus base`."""
    c = e.comparison
    place = PLACES.get(c.dataset, f" on {c.dataset}")
    at = f", step {e.step}" if e.step else ""
    return f"{UNITS.get(c.metric, c.metric)}{place}{at}: {name(c.condition)} minus {name(c.other)}"


def measured(e: Evidence) -> str:
    """A difference and its interval. Out: `−0.508 [−0.551, −0.465]`."""
    digits = DIGITS.get(e.comparison.metric, 3)
    return f"{number(e.value, digits, '+')} {interval(e.low, e.high, digits, '+')}".rstrip()


def remarks(e: Evidence) -> str:
    """What else must be known of a difference: seeds, pairing, what it would have found."""
    digits = DIGITS.get(e.comparison.metric, 3)
    found = [] if e.paired else ["not paired"]
    if len(e.seeds) > 1:
        found.append("by seed " + ", ".join(number(v, digits, "+") for v in e.seeds))
    if e.across:
        found.append("interval over problems and seeds")
    if e.detectable:
        found.append(f"would find ±{number(e.detectable, digits)}")
    return "; ".join(found)


def missing(section: str, records: Sequence[Record]) -> list[str]:
    """Sentences on what a section lacks."""
    mine = [r for r in records if r["section"] == section]
    if not mine:
        return ["Not measured in this run."]
    expected = EXPECTED[section] if section != ATTRIBUTION or studies_paper(records) else []
    lacking = [name(c) for c in expected if c not in {r["condition"] for r in mine}]
    if section == "coverage":
        lacking += [m.upper() for m in ("sdpo", "grpo") if not coverage_sizes(records, m)]
    notes = [f"Not measured in this run: {', '.join(lacking)}."] if lacking else []
    if not any(r["seed"] == POOLED for r in mine):
        notes.append("Not pooled over seeds: no verdict, no figure; the tables show single seeds.")
    return notes
