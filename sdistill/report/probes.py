"""The reading of the causal probes in words, computed from the results."""

from collections.abc import Sequence

from sdistill.analysis.records import PLAIN, REPAIR, Probe, Record
from sdistill.report.lookup import name
from sdistill.report.markup import interval, number
from sdistill.report.probe_results import (
    Contrast,
    contrast,
    contrasts,
    measured,
    models,
    regained,
    said,
)

FINE = 0.03  # a difference in accuracy that probes should find
OF_SOME = ("doubt", "shuffle", REPAIR)  # probes of some responses say nothing of accuracy on all


def findings(records: Sequence[Record]) -> list[str]:
    """What each probe says, the controls that it was matched with, and how much could have been missed."""
    lines = [line for probe in measured(records) for line in _of_probe(records, probe)]
    every = [c for probe in measured(records) for c in contrasts(records, probe)]
    if every:
        fine = sum(c.detectable <= FINE for c in every)
        widest = max(every, key=lambda c: c.detectable)
        least = f"{name(widest.model)}, {name(widest.arm)}, against {name(widest.control)}"
        lines.append(
            f"{fine} of {len(every)} comparisons would probably have found a difference of {FINE:.2f}; the "
            f"least certain ({least}) one of {number(widest.detectable, 3)}."
        )
    return lines


def _of_probe(records: Sequence[Record], probe: Probe) -> list[str]:
    found = contrasts(records, probe)
    lines = []
    for control in dict.fromkeys(c.control for c in found):
        parts = [f"{name(c.model)} {_change(c)}" for c in found if c.control == control]
        text = name(probe.arm)
        lines.append(f"{text[0].upper()}{text[1:]}, against {name(control)}: {'; '.join(parts)}.")
    for model in models(records):
        share = regained(records, model, probe)
        lost = contrast(records, model, PLAIN, f"base@{PLAIN}")
        if share is not None and lost is not None and not probe.arm.startswith(OF_SOME):
            fallen, size = number(-lost.difference["value"], 3), f"{abs(100 * share):.0f} %"
            back = f"{size} of that comes back" if share >= 0 else f"another {size} of that is lost"
            text = f"{name(model)} has lost {fallen} against the base; with {name(probe.arm)} {back}."
            lines.append(text)
    return lines


def _change(c: Contrast) -> str:
    d = c.difference
    figures = f"{number(d['value'], 3, '+')} {interval(d['ci_low'], d['ci_high'], 3, '+')}"
    if c.side == "level":
        return f"not told apart ({figures}, would find ±{number(c.detectable, 3)})"
    return f"{c.side}, {number(c.ours['value'], 3)} for {number(c.theirs['value'], 3)} ({figures})"


def words_named(records: Sequence[Record]) -> list[str]:
    """Which words each arm is about, with how often they are said in a response."""
    lines = []
    for model in models(records):
        for arm in (
            "forbid_words",
            "forbid_half",
            "forbid_neutral",
            "doubt_cue",
            "doubt_neutral",
            "mask_words",
            "mask_others",
        ):
            if found := {w: n for w, n in said(records, model, arm).items() if n}:
                listed = ", ".join(
                    f"{w} {number(n, 2)}" for w, n in sorted(found.items(), key=lambda x: -x[1])
                )
                total = number(sum(found.values()), 2)
                lines.append(f"{name(model)}, {name(arm)}: {listed}; together {total} a response.")
    return lines
