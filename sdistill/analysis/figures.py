"""The figures of a study, from its records. One function per figure, nothing global.

Ink (text, axes) is written as `currentColor`, so a figure takes the colours of the page it is put
in, light or dark; the colours of the data are of middle luminance and told apart by colour-blind
readers too (after Okabe and Ito), and markers repeat what colours say.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure

from sdistill.analysis.claims import (
    POOLED,
    Record,
    coverage_sizes,
    informative_by_bits,
    name,
    select,
)
from sdistill.analysis.ranking import FIXES, JUDGE, last, standings

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
    "svg.fonttype": "none",
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

CONTEXT_MARKS = {
    "unguided": (GREY, "o"),
    "other_problem": (PINK, "X"),
    "partial": (SKY, "^"),
    "answer": (GREEN, "s"),
    "regenerated": (ORANGE, "D"),
    "solution": (RED, "v"),
}
SFT_COLOURS = {"base": GREY, "sft_unguided": BLUE, "sft_guided": ORANGE, "sft_guided_solution": RED}
RUN_LINES: Mapping[str, Line] = {
    "grpo": (BLUE, "o", "-"),
    "sdpo_answer_fixed": (ORANGE, "s", "-"),
    "sdpo_answer_ema": (ORANGE, "s", ":"),
    "sdpo_solution_fixed": (RED, "v", "-"),
    "sdpo_solution_ema": (RED, "v", ":"),
}
FIX_LINES: Mapping[str, Line] = {  # a fix has the colour of what it is put on
    "base": (GREY, "o", "--"),
    "grpo": (BLUE, "s", "--"),
    "sdpo": (RED, "v", "--"),
}
SIZE_RAMP = LinearSegmentedColormap.from_list("coverage", [ORANGE, "#d0508a", BLUE])


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draws under STYLE, whatever the caller's matplotlib settings are."""

    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with style.context(["default", STYLE]):
            return draw(*args, **kwargs)

    wrapper.__doc__ = draw.__doc__
    return wrapper


def to_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element to put into a page: the same bytes for the same figure."""
    stream = io.StringIO()
    with style.context(["default", STYLE]):
        figure.savefig(stream, format="svg", metadata={"Date": None}, transparent=True)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)


def _panels(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of width × height inches with its panels, row by row."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _legend(figure: Figure, columns: int) -> None:
    """One legend under all panels, each label once."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(text, handle)
    if found:
        figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=columns)


def _title(axes: Axes, metric: str, dataset: str) -> None:
    axes.set_title(", ".join(filter(None, (UNITS[metric], PLACES[dataset]))))
    if metric != "accuracy":
        axes.set_ylim(bottom=0)  # lengths and counts are compared as ratios
    if not axes.has_data():
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center")
        axes.set_xticks([])
        axes.set_yticks([])


def _spread(r: Record) -> list[list[float]] | None:
    """Distances from the value to its bounds, as matplotlib wants them."""
    if r["ci_low"] is None or r["ci_high"] is None:
        return None
    return [[max(0.0, r["value"] - r["ci_low"])], [max(0.0, r["ci_high"] - r["value"])]]


@_styled
def richness(records: Sequence[Record]) -> Figure:
    """Accuracy, length and words of each context against its measured bits a response."""
    figure, panels = _panels(1, 3, 9.6, 3.6)
    for axes, metric in zip(panels, UNITS, strict=True):
        points = {}
        for condition, (colour, marker) in CONTEXT_MARKS.items():
            bits = select(records, "richness", condition, "walk", "bits_per_response")
            found = select(records, "richness", condition, "walk", metric)
            if not found or (not bits and condition != "unguided"):
                continue
            x, r = bits[-1]["value"] if bits else 0.0, found[-1]
            points[condition] = x, r["value"]
            axes.errorbar(
                x,
                r["value"],
                yerr=_spread(r),
                xerr=_spread(bits[-1]) if bits else None,
                fmt=marker,
                color=colour,
                markersize=7,
                capsize=2,
                elinewidth=1.2,
                label=name(condition),
            )
        path = [points[c] for c in informative_by_bits(records) if c in points]
        if path:
            axes.plot(*zip(*path, strict=True), color=GREY, linewidth=1, zorder=1)
        axes.set_xlabel("measured bits per response")
        _title(axes, metric, "walk")
    _legend(figure, 3)
    return figure


@_styled
def sft(records: Sequence[Record]) -> Figure:
    """Bars of base and the two fine-tuned models, on unseen and on harder problems."""
    figure, panels = _panels(1, 3, 9.6, 3.3)
    places = ("k3", "k4")
    for axes, metric in zip(panels, UNITS, strict=True):
        for i, (condition, colour) in enumerate(SFT_COLOURS.items()):
            for j, dataset in enumerate(places):
                found = select(records, "sft", condition, dataset, metric)
                if not found:
                    continue
                axes.bar(
                    j + 0.2 * (i - 1.5),
                    found[-1]["value"],
                    0.18,
                    yerr=_spread(found[-1]),
                    color=colour,
                    ecolor=INK,
                    capsize=2,
                    label=name(condition),
                )
        axes.set_xticks(range(len(places)), [PLACES[place] for place in places])
        axes.grid(axis="x", visible=False)
        _title(axes, metric, "walk")
    _legend(figure, 3)
    return figure


def _curve(axes: Axes, rows: Sequence[Record], line: Line, label: str) -> None:
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
    banded = [r for r in rows if _spread(r)]
    axes.fill_between(
        [r["step"] for r in banded],
        [r["ci_low"] for r in banded],
        [r["ci_high"] for r in banded],
        color=colour,
        alpha=0.13,
        linewidth=0,
    )


def _same_scale(panels: Sequence[Axes]) -> None:
    """One vertical scale for panels that are compared with each other."""
    limits = [axes.get_ylim() for axes in panels if axes.has_data()]
    for axes in panels:
        if axes.has_data():
            axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def _baseline(axes: Axes, rows: Sequence[Record]) -> None:
    if rows:
        axes.axhline(rows[0]["value"], color=GREY, linestyle="--", linewidth=1.3, label="base")


def _from_base(base: Sequence[Record], rows: list[Record]) -> list[Record]:
    """A training curve that starts at step 0, where the model is the base model."""
    return [base[0], *rows] if base and rows and rows[0]["step"] > 0 else rows


@_styled
def on_policy(records: Sequence[Record]) -> Figure:
    """GRPO and SDPO over training steps: accuracy in and out of distribution, length, words."""
    figure, panels = _panels(2, 2, 9.6, 6.4)
    cells = (("accuracy", "k3"), ("accuracy", "k4"), ("length", "k3"), ("words", "k3"))
    for axes, (metric, dataset) in zip(panels, cells, strict=True):
        base = select(records, "on_policy", "base", dataset, metric)
        _baseline(axes, base)
        for condition, line in RUN_LINES.items():
            rows = select(records, "on_policy", condition, dataset, metric)
            if rows:
                _curve(axes, _from_base(base, rows), line, name(condition))
        axes.set_xlabel("training step")
        _title(axes, metric, dataset)
    _legend(figure, 3)
    return figure


@_styled
def coverage(records: Sequence[Record]) -> Figure:
    """SDPO and GRPO over training steps by the number of distinct training problems |D|."""
    cells = (("accuracy", "trained"), ("accuracy", "k3"), ("accuracy", "k4"), ("length", "trained"))
    figure, panels = _panels(2, len(cells), 11.2, 5.8)
    sizes = coverage_sizes(records, "sdpo") + coverage_sizes(records, "grpo")
    sizes = sorted(set(sizes), key=lambda size: (size == POOLED, len(size), size))
    for method, row in (("sdpo", panels[: len(cells)]), ("grpo", panels[len(cells) :])):
        for axes, (metric, dataset) in zip(row, cells, strict=True):
            base = select(records, "coverage", "base", dataset, metric)
            if dataset == "trained":
                base = []  # each |D| has its own problems, and starts from its own step 0
            _baseline(axes, base)
            for i, size in enumerate(sizes):
                rows = select(records, "coverage", f"{method}_{size}", dataset, metric)
                if rows:
                    colour = to_hex(SIZE_RAMP(i / max(1, len(sizes) - 1)))
                    line = (colour, "osD^vP"[i % 6], "-")
                    _curve(axes, _from_base(base, rows), line, f"|D| = {size}")
            axes.set_xlabel("training step")
            _title(axes, metric, dataset)
            axes.set_title(f"{method.upper()}: {axes.get_title('left')}", fontsize=9)
    _same_scale([axes for axes, cell in zip(panels, cells * 2, strict=True) if cell[0] == "accuracy"])
    _same_scale([axes for axes, cell in zip(panels, cells * 2, strict=True) if cell[0] == "length"])
    _legend(figure, 6)
    return figure


@_styled
def fixes(records: Sequence[Record]) -> Figure:
    """Every condition, ranked: accuracy in and out of distribution, length, words."""
    order = [standing.condition for standing in standings(records)]
    cells = (("accuracy", JUDGE), ("accuracy", "k3"), ("length", JUDGE), ("words", JUDGE))
    figure, panels = _panels(1, len(cells), 11.2, 1.4 + 0.32 * max(len(order), 6))
    for axes, (metric, dataset) in zip(panels, cells, strict=True):
        for y, condition in enumerate(order):
            r = last(records, condition, dataset, metric)
            if r is None:
                continue
            colour, marker, _ = FIX_LINES[condition.partition("_")[0]]
            axes.errorbar(
                r["value"],
                y,
                xerr=_spread(r),
                fmt=marker,
                color=colour,
                markersize=6.5,
                markerfacecolor=colour if condition in FIX_LINES else "none",
                capsize=2,
                elinewidth=1.4,
            )
            if condition in FIX_LINES:
                axes.axvline(r["value"], color=colour, linestyle="--", linewidth=1.1, label=name(condition))
        _title(axes, metric, dataset)
        axes.set_title(f"{UNITS[metric].removesuffix(' per response')}, {PLACES[dataset]}", fontsize=9)
        if metric != "accuracy":
            axes.set_xlim(left=0)
        if order:
            axes.set_ylim(len(order) - 0.4, -0.6)
            labels = [name(condition) for condition in order] if axes is panels[0] else []
            axes.set_yticks(range(len(order)), labels or [""] * len(order))
            axes.grid(axis="y", visible=False)
    _legend(figure, 3)
    return figure


FIGURES: Mapping[str, tuple[Callable[[Sequence[Record]], Figure], str]] = {
    "richness": (
        richness,
        "What the model does under each context, against the information that the context turned "
        "out to carry. The line joins the contexts that say something about the problem at hand.",
    ),
    "sft": (
        sft,
        "Fine-tuning on the model's own correct responses, produced without and with the answer in "
        "context: the same problems, the same number of responses.",
    ),
    "on_policy": (
        on_policy,
        "On-policy training. Dotted: teacher weights follow the student (EMA) instead of staying "
        "frozen. Harder problems were never trained on.",
    ),
    "coverage": (
        coverage,
        "Training on |D| distinct problems, teacher frozen, c = s∖think. Trained problems differ "
        "from one |D| to the next.",
    ),
    FIXES: (
        fixes,
        "Fixes, ranked by accuracy on harder problems. Filled marks and dashed lines: the base, plain GRPO "
        "and plain SDPO (c = s); open marks: a fix on top of either, in its colour.",
    ),
}
"""Section → (figure, caption). Bars and bands are 95 % intervals."""
