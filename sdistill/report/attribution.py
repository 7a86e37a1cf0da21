"""What the attribution of the training signal says, in words."""

from collections.abc import Sequence

from sdistill.analysis.attribution import ATTRIBUTION
from sdistill.analysis.records import Record
from sdistill.report.lookup import condition_rank, name, select
from sdistill.report.markup import number
from sdistill.report.tables import LEVEL, Word, words_of

SHOWN = 6  # words in either direction


def words_moved(records: Sequence[Record]) -> list[str]:
    """Of each condition and data set the words that rise and that fall beyond chance, the largest first."""
    mine = [r for r in records if r["section"] == ATTRIBUTION and r["metric"].startswith("word_change:")]
    places = {(r["condition"], r["dataset"]) for r in mine}
    lines = []
    for condition, dataset in sorted(places, key=lambda p: (p[1], condition_rank(p[0]))):
        moved = [w for w in words_of(records, condition, dataset) if w.p["value"] < LEVEL]
        parts = [
            _listed(verb, [w for w in moved if (w.change["value"] > 0) == up])
            for verb, up in (("rise", True), ("fall", False))
        ]
        said = "; ".join(filter(None, parts)) or "no word beyond chance"
        lines.append(f"{name(condition)}, {dataset}: {said}.")
    return lines


def _listed(verb: str, words: Sequence[Word]) -> str:
    ranked = sorted(words, key=lambda w: -abs(w.change["value"]))
    more = f" and {len(ranked) - SHOWN} more" if len(ranked) > SHOWN else ""
    shown = ", ".join(
        f"{w.word}{'*' if w.listed else ''} {number(w.change['value'], 2, '+')}" for w in ranked[:SHOWN]
    )
    return f"{verb}: {shown}{more}" if ranked else ""


def not_measured(records: Sequence[Record]) -> list[str]:
    """A sentence if words were compared, and the runs kept nothing of their tokens."""
    mine = [r for r in records if r["section"] == ATTRIBUTION]
    conditions = sorted({r["condition"] for r in mine}, key=condition_rank)
    lacking = [c for c in conditions if not select(mine, ATTRIBUTION, c, "train", "signal:class:epistemic")]
    if not lacking:
        return []
    names = ", ".join(map(name, lacking))
    return [f"Signal by token not measured (run without `attribution`, or nothing to learn): {names}."]
