"""What figures are made of: colours, panels, curves, and the conversion to SVG and PDF.

Text and axes have the colour `currentColor` in a page, so a figure follows its light or dark scheme. The
colours of the data have middle luminance, colour-blind readers can tell them apart (after Okabe and Ito), and
markers repeat them. No global setting is changed.
"""

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdistill.report.lookup import UNITS, Point
from sdistill.types import Condition

INK = "#0a0b0c"  # a colour that nothing else uses; `to_svg` replaces it
GREY, BLUE, SKY, GREEN = "#808890", "#2f7fc1", "#56b4e9", "#12a37c"
ORANGE, RED, PINK = "#e69f00", "#d9601a", "#cc79a7"
DATASETS = {"walk": "", "trained": "trained on", "k3": "unseen", "k4": "harder (OOD)"}
MARKERS = "osD^vP"
Line = tuple[str, str, str]  # colour, marker, dash

styled = style.context(["default", Path(__file__).parent / "assets" / "figures.mplstyle"])
"""Decorator: applies the style of figures in a function, whatever the caller's matplotlib settings are."""


@styled
def to_pdf(figure: Figure) -> bytes:
    """The figure as a PDF file, in dark ink. Equal figures give equal bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="pdf", metadata={"CreationDate": None})
    return stream.getvalue()


@styled
def to_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element for a page. Equal figures give equal bytes."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None}, transparent=True)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)


def line(c: Condition) -> Line:
    """How a model is drawn: its method and context give colour and marker, an EMA teacher a dotted line."""
    sdpo = (ORANGE, "s") if c.context == "answer" else (RED, "v")
    colour, marker = {"base": (GREY, "D"), "grpo": (BLUE, "o"), "sdpo": sdpo}.get(c.method, (PINK, "P"))
    return colour, marker, ":" if c.teacher == "ema" else "-"


def panels(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of width × height inches with its panels, row by row."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def finish(axes: Axes, title: str, across: str = "", *, from_zero: bool = False, size: float = 10.5) -> None:
    """Titles a panel and its horizontal axis; marks it if it is empty. Lengths and counts start at zero."""
    axes.set_title(title, fontsize=size)
    axes.set_xlabel(across)
    if from_zero:
        axes.set_ylim(bottom=0)
    if not axes.has_data():
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center")
        axes.set_xticks([])
        axes.set_yticks([])


def title(metric: str, dataset: str) -> str:
    """The title of a panel."""
    return ", ".join(filter(None, (UNITS[metric], DATASETS[dataset])))


def legend(figure: Figure, columns: int) -> Figure:
    """The figure, with one legend under all panels that has each label once."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(text, handle)
    if found:
        figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=columns)
    return figure


def spread(p: Point | None) -> list[list[float]] | None:
    """Distances from the value to its bounds, in matplotlib's form."""
    if p is None or p.low is None or p.high is None:
        return None
    return [[max(0.0, p.value - p.low)], [max(0.0, p.high - p.value)]]


def dot(
    axes: Axes, x: float, y: float, marker: str, colour: str, *, filled: bool = True, **settings: Any
) -> None:
    """A value with its intervals, `xerr` and `yerr`."""
    face = colour if filled else "none"
    axes.errorbar(x, y, fmt=marker, color=colour, mfc=face, ms=6, capsize=2, elinewidth=1.2, **settings)


def list_rows(axes: Axes, labels: Sequence[str], *, named: bool) -> None:
    """Makes a panel a list with a row for each label, from the top; `named` shows the labels."""
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_yticks(range(len(labels)), labels if named else [""] * len(labels))
    axes.grid(axis="y", visible=False)


def curve(axes: Axes, points: Sequence[Point], style: Line, label: str) -> None:
    """Values over training steps with the band of their intervals."""
    colour, marker, dash = style
    steps, values = [p.step for p in points], [p.value for p in points]
    axes.plot(steps, values, color=colour, marker=marker, linestyle=dash, label=label)
    bounds = np.asarray([(p.step, p.low, p.high) for p in points if p.side]).reshape(-1, 3)
    axes.fill_between(*bounds.T, color=colour, alpha=0.13, linewidth=0)


def same_scale(panels: Iterable[Axes]) -> None:
    """One vertical scale for panels that are compared with each other."""
    drawn = [axes for axes in panels if axes.has_data()]
    limits = [axes.get_ylim() for axes in drawn]
    for axes in drawn:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
