"""The figures of a study, from its records. One function per figure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sdistill.analysis.attribution import ATTRIBUTION
from sdistill.analysis.probes import PROBES
from sdistill.analysis.records import Record
from sdistill.report import drawing
from sdistill.report.attribution_figure import signal_by_class, signal_by_place
from sdistill.report.drawing import BLUE, GREEN, GREY, INK, ORANGE, PINK, PLACES, RED, SKY, UNITS, Line
from sdistill.report.evidence import Comparison, Evidence, Outcome, decide, difference
from sdistill.report.lookup import POOLED, coverage_sizes, integer_seeds, name, select
from sdistill.report.probe_figure import probes
from sdistill.report.ranking import FIXES, JUDGE, last, standings
from sdistill.report.richness_figure import richness

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
PALE = 0.1  # change of accuracy up to which no tile has the full colour
SIZE_RAMP = LinearSegmentedColormap.from_list("coverage", [ORANGE, "#d0508a", BLUE])


@drawing.styled
def sft(records: Sequence[Record]) -> Figure:
    """Bars of base and the two fine-tuned models, on unseen and on harder problems."""
    figure, panels = drawing.panels(1, 3, 9.6, 3.3)
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
                    yerr=drawing.spread(found[-1]),
                    color=colour,
                    ecolor=INK,
                    capsize=2,
                    label=name(condition),
                )
        axes.set_xticks(range(len(places)), [PLACES[place] for place in places])
        axes.grid(axis="x", visible=False)
        drawing.title(axes, metric, "walk")
    drawing.legend(figure, 3)
    return figure


def _from_base(base: Sequence[Record], rows: list[Record]) -> list[Record]:
    """A training curve that starts at step 0, where the model is the base model."""
    return [base[0], *rows] if base and rows and rows[0]["step"] > 0 else rows


@drawing.styled
def on_policy(records: Sequence[Record]) -> Figure:
    """GRPO and SDPO over training steps: accuracy in and out of distribution, length, words."""
    figure, panels = drawing.panels(2, 2, 9.6, 6.4)
    cells = (("accuracy", "k3"), ("accuracy", "k4"), ("length", "k3"), ("words", "k3"))
    for axes, (metric, dataset) in zip(panels, cells, strict=True):
        base = select(records, "on_policy", "base", dataset, metric)
        drawing.baseline(axes, base)
        for condition, line in RUN_LINES.items():
            rows = select(records, "on_policy", condition, dataset, metric)
            if rows:
                drawing.curve(axes, _from_base(base, rows), line, name(condition))
        axes.set_xlabel("training step")
        drawing.title(axes, metric, dataset)
    drawing.legend(figure, 3)
    return figure


def _all_sizes(records: Sequence[Record]) -> list[str]:
    sizes = coverage_sizes(records, "sdpo") + coverage_sizes(records, "grpo")
    return sorted(set(sizes), key=lambda size: (size == POOLED, len(size), size))


@drawing.styled
def coverage(records: Sequence[Record]) -> Figure:
    """SDPO and GRPO over training steps by the number of distinct training problems |D|."""
    cells = (("accuracy", "trained"), ("accuracy", "k3"), ("accuracy", "k4"), ("length", "trained"))
    figure, panels = drawing.panels(2, len(cells), 11.2, 5.8)
    sizes = _all_sizes(records)
    for method, row in (("sdpo", panels[: len(cells)]), ("grpo", panels[len(cells) :])):
        for axes, (metric, dataset) in zip(row, cells, strict=True):
            base = select(records, "coverage", "base", dataset, metric)
            if dataset == "trained":
                base = []  # each |D| has its own problems, and starts from its own step 0
            drawing.baseline(axes, base)
            for i, size in enumerate(sizes):
                rows = select(records, "coverage", f"{method}_{size}", dataset, metric)
                if rows:
                    colour = to_hex(SIZE_RAMP(i / max(1, len(sizes) - 1)))
                    line = (colour, "osD^vP"[i % 6], "-")
                    drawing.curve(axes, _from_base(base, rows), line, f"|D| = {size}")
            axes.set_xlabel("training step")
            drawing.title(axes, metric, dataset)
            axes.set_title(f"{method.upper()}: {axes.get_title('left')}", fontsize=9)
    drawing.same_scale([axes for axes, cell in zip(panels, cells * 2, strict=True) if cell[0] == "accuracy"])
    drawing.same_scale([axes for axes, cell in zip(panels, cells * 2, strict=True) if cell[0] == "length"])
    drawing.legend(figure, 6)
    return figure


@drawing.styled
def coverage_grid(records: Sequence[Record]) -> Figure:
    """Change of accuracy against the base at the last step: |D| downwards, data sets to the right."""
    figure, panels = drawing.panels(1, 2, 9.6, 0.9 + 0.52 * max(4, len(_all_sizes(records))))
    places = ("trained", "k3", "k4")
    changes = {}
    for method in ("sdpo", "grpo"):
        for size in coverage_sizes(records, method):
            for place in places:
                change = Comparison("coverage", f"{method}_{size}", "base", place, "accuracy", "above")
                changes[method, size, place] = difference(records, change)
    # A run in which nothing changes has pale tiles.
    largest = max([PALE, *(abs(e.value) for e in changes.values() if e)])
    for axes, method in zip(panels, ("sdpo", "grpo"), strict=True):
        sizes = coverage_sizes(records, method)
        axes.set_title(f"{method.upper()}: change of accuracy")
        if not sizes:
            drawing.empty(axes)
            continue
        for y, size in enumerate(sizes):
            for x, place in enumerate(places):
                _tile(axes, x, y, changes[method, size, place], largest)
        axes.set(xlim=(-0.5, len(places) - 0.5), ylim=(len(sizes) - 0.5, -0.5))
        axes.set_xticks(range(len(places)), [PLACES[place] for place in places])
        axes.set_yticks(range(len(sizes)), [f"|D| = {size}" for size in sizes])
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
    return figure


def _tile(axes: Axes, x: int, y: int, change: Evidence | None, largest: float) -> None:
    """A difference in colour, the stronger the larger, and in figures."""
    if change is None:
        axes.text(x, y, "–", ha="center", va="center")
        return
    colour, strength = BLUE if change.value > 0 else ORANGE, 0.75 * abs(change.value) / largest
    axes.add_patch(Rectangle((x - 0.48, y - 0.47), 0.96, 0.94, color=colour, alpha=strength, linewidth=0))
    clear = decide(change) in (Outcome.REPRODUCED, Outcome.NOT_REPRODUCED)
    value, weight = f"{change.value:+.2f}".replace("-", "−"), "bold" if clear else "normal"
    axes.text(x, y - 0.12, value, ha="center", va="center", fontsize=10.5, fontweight=weight)
    if change.low is not None and change.low != change.high:
        interval = f"[{change.low:+.2f}, {change.high:+.2f}]".replace("-", "−")
        axes.text(x, y + 0.24, interval, ha="center", va="center", fontsize=7.5)


@drawing.styled
def training(records: Sequence[Record]) -> Figure:
    """What training itself measures, over its steps: the mean over seeds, and each seed as a thin line."""
    cells = {
        "train_accuracy": "accuracy on its own rollouts",
        "entropy": "entropy of the student (nats)",
        "divergence_epistemic": "divergence, epistemic words",
        "divergence_other": "divergence, other tokens",
    }
    figure, panels = drawing.panels(2, 2, 9.6, 6.0)
    for axes, (metric, heading) in zip(panels, cells.items(), strict=True):
        for condition, line in RUN_LINES.items():
            seeds = [
                {
                    r["step"]: r["value"]
                    for r in select(records, "on_policy", condition, "train", metric, seed)
                }
                for seed in integer_seeds(records)
            ]
            _mean_curve(axes, [values for values in seeds if values], line, name(condition))
        axes.set_title(heading)
        axes.set_xlabel("training step")
        if not axes.has_data():
            drawing.empty(axes)
    drawing.legend(figure, 3)
    return figure


def _mean_curve(axes: Axes, seeds: Sequence[Mapping[int, float]], line: Line, label: str) -> None:
    """The mean of curves at the steps that all have, and each of them."""
    colour, marker, dash = line
    steps = sorted(set.intersection(*(set(values) for values in seeds))) if seeds else []
    if not steps:
        return
    for values in seeds if len(seeds) > 1 else ():
        axes.plot([*values], [*values.values()], color=colour, linestyle=dash, linewidth=0.6, alpha=0.5)
    means = [sum(values[step] for values in seeds) / len(seeds) for step in steps]
    axes.plot(steps, means, color=colour, marker=marker, linestyle=dash, label=label)


@drawing.styled
def fixes(records: Sequence[Record]) -> Figure:
    """Every condition, ranked: accuracy in and out of distribution, length, words."""
    order = [standing.condition for standing in standings(records)]
    cells = (("accuracy", JUDGE), ("accuracy", "k3"), ("length", JUDGE), ("words", JUDGE))
    figure, panels = drawing.panels(1, len(cells), 11.2, 1.4 + 0.32 * max(len(order), 6))
    for axes, (metric, dataset) in zip(panels, cells, strict=True):
        for y, condition in enumerate(order):
            r = last(records, condition, dataset, metric)
            if r is None:
                continue
            colour, marker, _ = FIX_LINES.get(condition.partition("_")[0], (PINK, "D", "--"))
            axes.errorbar(
                r["value"],
                y,
                xerr=drawing.spread(r),
                fmt=marker,
                color=colour,
                markersize=6.5,
                markerfacecolor=colour if condition in FIX_LINES else "none",
                capsize=2,
                elinewidth=1.4,
            )
            if condition in FIX_LINES:
                axes.axvline(r["value"], color=colour, linestyle="--", linewidth=1.1, label=name(condition))
        drawing.title(axes, metric, dataset)
        axes.set_title(f"{UNITS[metric].removesuffix(' per response')}, {PLACES[dataset]}", fontsize=9)
        if metric != "accuracy":
            axes.set_xlim(left=0)
        if order:
            axes.set_ylim(len(order) - 0.4, -0.6)
            labels = [name(condition) for condition in order] if axes is panels[0] else []
            axes.set_yticks(range(len(order)), labels or [""] * len(order))
            axes.grid(axis="y", visible=False)
    drawing.legend(figure, 3)
    return figure


@drawing.styled
def runs(cells: Mapping[str, Mapping[tuple[str, str], Record]]) -> Figure:
    """Accuracy of every condition, a mark for each run; `cells`: run → (condition, data set) → record."""
    datasets = list(dict.fromkeys(dataset for found in cells.values() for _, dataset in found))
    conditions = list(dict.fromkeys(condition for found in cells.values() for condition, _ in found))
    figure, panels = drawing.panels(1, len(datasets), 11.2, 1.2 + 0.34 * max(5, len(conditions)))
    colours = (BLUE, RED, GREEN, PINK, ORANGE, SKY)
    for axes, dataset in zip(panels, datasets, strict=True):
        for i, (run, found) in enumerate(cells.items()):
            for y, condition in enumerate(conditions):
                if r := found.get((condition, dataset)):
                    axes.errorbar(
                        r["value"],
                        y + 0.5 * ((i + 1) / (len(cells) + 1) - 0.5),
                        xerr=drawing.spread(r),
                        fmt="osD^vP"[i % 6],
                        color=colours[i % len(colours)],
                        capsize=2,
                        elinewidth=1.2,
                        label=run,
                    )
        axes.set_title(f"accuracy, {PLACES.get(dataset) or dataset}")
        axes.set_ylim(len(conditions) - 0.4, -0.6)
        labels = [name(condition) for condition in conditions] if axes is panels[0] else []
        axes.set_yticks(range(len(conditions)), labels or [""] * len(conditions))
        axes.grid(axis="y", visible=False)
    drawing.legend(figure, 3)
    return figure


@dataclass(frozen=True)
class Plot:
    """A figure of a section.

    Attributes:
      name: Of its files.
      draw: From records to the figure.
      caption: What it shows.
    """

    name: str
    draw: Callable[[Sequence[Record]], Figure]
    caption: str


BANDS = "Bars and bands are 95 % intervals."
FIGURES: Mapping[str, tuple[Plot, ...]] = {
    "richness": (
        Plot(
            "richness",
            richness,
            "What each model does under each context, against the information that the context turned out to "
            "carry for it. Lines join the contexts that say something about the problem at hand, in a form "
            f"that the models have learned to read. {BANDS}",
        ),
    ),
    "sft": (
        Plot(
            "sft",
            sft,
            "Fine-tuning on the model's own correct responses, produced without and with a context: the same "
            f"problems, the same number of responses. {BANDS}",
        ),
    ),
    "on_policy": (
        Plot(
            "on_policy",
            on_policy,
            "On-policy training. Dotted: teacher weights follow the student (EMA) instead of staying frozen. "
            f"Harder problems were never trained on. {BANDS}",
        ),
        Plot(
            "training",
            training,
            "What training measures on its own rollouts, means over the steps from one evaluation to the "
            "next. The divergence between student and teacher is shown apart for tokens that are epistemic "
            "words and for all others. Thin lines: single seeds. There are no intervals.",
        ),
    ),
    "trained_richness": (),
    "coverage": (
        Plot(
            "coverage_grid",
            coverage_grid,
            "Change of accuracy against the base on the same problems at the last step, with 95 % intervals. "
            "Orange: below the base; blue: above; bold: the interval excludes 0. A single problem has none.",
        ),
        Plot(
            "coverage",
            coverage,
            "Training on |D| distinct problems, teacher frozen, c = s∖think. Trained problems differ from "
            f"one |D| to the next. {BANDS}",
        ),
    ),
    FIXES: (
        Plot(
            "fixes",
            fixes,
            "Fixes, ranked by accuracy on harder problems. Filled marks and dashed lines: the base, plain "
            "GRPO and plain SDPO (c = s); open marks: a fix on top of either, in its colour. "
            f"{BANDS}",
        ),
    ),
    ATTRIBUTION: (
        Plot(
            "signal_by_class",
            signal_by_class,
            "Epistemic tokens in training: their share of the signal and of the tokens, and the divergence "
            "from the teacher there, from one evaluation to the next. Where the first share is above "
            f"the second, an epistemic token counts for more than another. {BANDS}",
        ),
        Plot(
            "signal_by_place",
            signal_by_place,
            "Divergence from the teacher and share of the signal, by place in the response and by how unsure "
            f"the student was, over all steps. {BANDS}",
        ),
    ),
    PROBES: (
        Plot(
            "probes",
            probes,
            "Accuracy of each model under every probe (filled) and its controls (open); dashed: the model as "
            f"it is. {BANDS}",
        ),
    ),
}
"""Section → its figures, in the order in which they are shown."""
