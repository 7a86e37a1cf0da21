"""How the figures of a study are drawn: colours, panels, curves, and the way into a page or a file.

Ink (text, axes) is written as `currentColor` in a page, so that a figure takes its colours, light or dark;
the colours of the data are of middle luminance and told apart by colour-blind readers too (after Okabe and
Ito), and markers repeat what colours say. Nothing global is changed.
"""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdistill.analysis.records import Record

P = ParamSpec("P")

INK = "#0a0b0c"  # a colour nothing else uses; `to_svg` turns it into the page's own
GREY, BLUE, SKY, GREEN, ORANGE, RED, PINK = (
    "#808890",
    "#2f7fc1",
    "#56b4e9",
    "#12a37c",
    "#e69f00",
    "#d9601a",
    "#cc79a7",
)
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "sdistill",
    "text.parse_math": False,  # names of runs may hold dollar signs
    "svg.fonttype": "none",
    "pdf.fonttype": 42,  # text that can be selected
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "xtick.color": INK,
    "ytick.color": INK,
}
UNITS = {
    "accuracy": "accuracy",
    "length": "length (tokens)",
    "words": "epistemic words per response",
}
PLACES = {"walk": "", "trained": "trained on", "k3": "unseen", "k4": "harder (OOD)"}
Line = tuple[str, str, str]  # colour, marker, dash


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draws under STYLE, whatever the caller's matplotlib settings are."""

    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with style.context(["default", STYLE]):
            return draw(*args, **kwargs)

    wrapper.__doc__ = draw.__doc__
    return wrapper


def to_pdf(figure: Figure) -> bytes:
    """The figure as a PDF file, in dark ink: the same bytes for the same figure."""
    stream = io.BytesIO()
    with style.context(["default", STYLE]):
        figure.savefig(stream, format="pdf", metadata={"CreationDate": None})
    return stream.getvalue()


def to_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element to put into a page: the same bytes for the same figure."""
    stream = io.StringIO()
    with style.context(["default", STYLE]):
        figure.savefig(stream, format="svg", metadata={"Date": None}, transparent=True)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)


def panels(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of width × height inches with its panels, row by row."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def legend(figure: Figure, columns: int) -> None:
    """One legend under all panels, each label once."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(text, handle)
    if found:
        figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=columns)


def title(axes: Axes, metric: str, dataset: str) -> None:
    """Says what a panel shows, or that it was not measured."""
    axes.set_title(", ".join(filter(None, (UNITS[metric], PLACES[dataset]))))
    if metric != "accuracy":
        axes.set_ylim(bottom=0)  # lengths and counts are compared as ratios
    if not axes.has_data():
        empty(axes)


def empty(axes: Axes) -> None:
    """Marks a panel that there is nothing to show in."""
    axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center")
    axes.set_xticks([])
    axes.set_yticks([])


def spread(r: Record) -> list[list[float]] | None:
    """Distances from the value to its bounds, as matplotlib wants them."""
    if r["ci_low"] is None or r["ci_high"] is None:
        return None
    return [[max(0.0, r["value"] - r["ci_low"])], [max(0.0, r["ci_high"] - r["value"])]]


def curve(axes: Axes, rows: Sequence[Record], line: Line, label: str) -> None:
    """Values over training steps with the band of their intervals."""
    colour, marker, dash = line
    steps = [r["step"] for r in rows]
    axes.plot(
        steps,
        [r["value"] for r in rows],
        color=colour,
        marker=marker,
        linestyle=dash,
        label=label,
    )
    banded = [r for r in rows if spread(r)]
    axes.fill_between(
        [r["step"] for r in banded],
        [r["ci_low"] for r in banded],
        [r["ci_high"] for r in banded],
        color=colour,
        alpha=0.13,
        linewidth=0,
    )


def same_scale(panels: Sequence[Axes]) -> None:
    """One vertical scale for panels that are compared with each other."""
    limits = [axes.get_ylim() for axes in panels if axes.has_data()]
    for axes in panels:
        if axes.has_data():
            axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def baseline(axes: Axes, rows: Sequence[Record]) -> None:
    """The base model as a dashed line."""
    if rows:
        axes.axhline(rows[0]["value"], color=GREY, linestyle="--", linewidth=1.3, label="base")
