"""Accuracy of each model under every probe and its controls."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from sdistill.analysis.records import PLAIN, Record
from sdistill.report import drawing
from sdistill.report.drawing import BLUE, GREY, INK, RED
from sdistill.report.lookup import name
from sdistill.report.probe_results import accuracy, measured, models

COLOURS = {"base": GREY, "grpo": BLUE, "sdpo": RED}


@drawing.styled
def probes(records: Sequence[Record]) -> Figure:
    """A panel for each model: probes filled, controls open, the model as it is dashed."""
    found = models(records) or ["base", "sdpo"]
    arms = [arm for p in measured(records) for arm in (p.arm, *(c for c in p.controls if c != PLAIN))]
    probed = {p.arm for p in measured(records)}
    figure, panels = drawing.panels(1, len(found), 11.2, 1.2 + 0.26 * max(len(arms), 6))
    for axes, model in zip(panels, found, strict=True):
        colour = COLOURS.get(model, INK)
        for y, arm in enumerate(arms):
            if r := accuracy(records, model, arm):
                axes.errorbar(
                    r["value"],
                    y,
                    xerr=drawing.spread(r),
                    fmt="s" if arm in probed else "o",
                    color=colour,
                    markerfacecolor=colour if arm in probed else "none",
                    markersize=6,
                    capsize=2,
                    elinewidth=1.3,
                )
        if plain := accuracy(records, model, PLAIN):
            axes.axvline(plain["value"], color=colour, linestyle="--", linewidth=1.1)
        axes.set_title(f"{name(model)}: accuracy")
        if not axes.has_data():
            drawing.empty(axes)
            continue
        axes.set(xlim=(0, 1), ylim=(len(arms) - 0.4, -0.6))
        labels = [name(arm) for arm in arms] if axes is panels[0] else []
        axes.set_yticks(range(len(arms)), labels or [""] * len(arms), fontsize=8.5)
        axes.grid(axis="y", visible=False)
    return figure
