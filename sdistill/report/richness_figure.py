"""What each model does under each context, against the bits that the context carries for it."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdistill.analysis.records import Record
from sdistill.report import drawing
from sdistill.report.claims import informative_by_bits
from sdistill.report.drawing import BLUE, GREEN, GREY, INK, ORANGE, PINK, RED, UNITS
from sdistill.report.lookup import condition_rank, name, select

MARKS = {"unguided": "o", "answer": "s", "regenerated": "D", "solution": "v", "other_problem": "X"}
DIAL_MARKS = "^<>Pp*hd"
"""Of partial contexts, in their order."""
TICKS = (0, 2, 4, 8, 16, 32, 64)
COLOURS: Mapping[str, str] = {
    "base": GREY,
    "grpo": BLUE,
    "sdpo_answer_fixed": ORANGE,
    "sdpo_answer_ema": PINK,
    "sdpo_solution_fixed": RED,
    "sdpo_solution_ema": GREEN,
}


@drawing.styled
def richness(records: Sequence[Record]) -> Figure:
    """Accuracy, length and words against measured bits a response: a curve for each model."""
    figure, panels = drawing.panels(1, 3, 9.6, 4.2)
    curves = _conditions(records)
    contexts = sorted({c.rpartition("@")[2] for cs in curves.values() for c in cs}, key=condition_rank)
    dial = iter(DIAL_MARKS * len(contexts))
    marks = {context: MARKS.get(context) or next(dial) for context in contexts}
    for axes, metric in zip(panels, UNITS, strict=True):
        for model, conditions in curves.items():
            _curve(axes, records, metric, model, conditions, marks)
        axes.set_xscale("symlog", base=2, linthresh=4)  # what no model has learned to read is far out
        axes.set_xticks(TICKS, [str(tick) for tick in TICKS])
        axes.minorticks_off()
        axes.set_xlabel("measured bits per response")
        drawing.title(axes, metric, "walk")
        for context, mark in marks.items() if axes.has_data() else ():
            axes.plot([], [], mark, color=INK, markerfacecolor="none", label=name(context))
    drawing.legend(figure, 4)
    return figure


def _conditions(records: Sequence[Record]) -> dict[str, list[str]]:
    """Model → its conditions."""
    found: dict[str, list[str]] = {}
    for r in records:
        if r["section"] in ("richness", "trained_richness"):
            model = r["condition"].partition("@")[0] if "@" in r["condition"] else "base"
            if r["condition"] not in found.setdefault(model, []):
                found[model].append(r["condition"])
    return found


def _curve(
    axes: Axes,
    records: Sequence[Record],
    metric: str,
    model: str,
    conditions: Sequence[str],
    marks: Mapping[str, str],
) -> None:
    """A model's contexts with intervals both ways, those that inform joined by a line."""
    section, prefix = ("richness", "") if model == "base" else ("trained_richness", f"{model}@")
    colour, points = COLOURS.get(model, INK), {}
    for condition in conditions:
        bits = select(records, section, condition, "walk", "bits_per_response")
        found = select(records, section, condition, "walk", metric)
        if not found or (not bits and condition != f"{prefix}unguided"):
            continue
        x, r = bits[-1]["value"] if bits else 0.0, found[-1]
        points[condition] = x, r["value"]
        axes.errorbar(
            x,
            r["value"],
            yerr=drawing.spread(r),
            xerr=drawing.spread(bits[-1]) if bits else None,
            fmt=marks[condition.removeprefix(prefix)],
            color=colour,
            markerfacecolor="none",
            markersize=6.5,
            capsize=2,
            elinewidth=1.1,
        )
    path = [points[c] for c in informative_by_bits(records, section, prefix) if c in points]
    if path:
        axes.plot(*zip(*path, strict=True), color=colour, linewidth=1.2, zorder=1, label=name(model))
