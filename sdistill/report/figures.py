"""The figures of a study, drawn from its measurements. The docstring of a plot is its caption in the page."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sdistill.analysis.attribution import ATTRIBUTION, GROUPINGS
from sdistill.analysis.measure import BASE
from sdistill.analysis.probes import PLAIN, PROBES
from sdistill.report import drawing, findings, lookup
from sdistill.report.claims import Comparison, difference, informative_by_bits
from sdistill.report.drawing import BLUE, GREEN, GREY, INK, ORANGE, PINK, RED, SKY, Line, spread
from sdistill.report.findings import RANKED_ON
from sdistill.report.lookup import FIXES, GRPO, ON_POLICY, SFT, UNITS, Index, Point, arm_name, name
from sdistill.types import Condition

PROMPT_MARKERS = {"none": "o", "answer": "s", "regenerated": "D", "solution": "v", "other_problem": "X"}


@drawing.styled
def richness(index: Index) -> Figure:
    """Each model under each context, against the information that the context carries for it. Lines join the
    contexts that say something about the problem at hand, in a form that the models have learned to read.
    """
    figure, panels = drawing.panels(1, 3, 9.6, 4.2)
    found = [(section, c) for section in ("richness", "trained_richness") for c in index.conditions(section)]
    prompts = {(c.prompt, c.fraction): lookup.response_name(c) for _, c in found}
    others = itertools.cycle("^<>Pp*hd")
    markers = {prompt: PROMPT_MARKERS.get(str(prompt[0])) or next(others) for prompt in prompts}
    models: dict[tuple[str, Condition], list[Condition]] = {}
    for section, c in found:
        models.setdefault((section, replace(c, prompt=None, fraction=None)), []).append(c)
    for axes, metric in zip(panels, UNITS, strict=True):
        for (section, model), conditions in models.items():
            colour, _, dash = drawing.line(model)
            places = {}
            for c in conditions:
                y = index.last(section, c, "walk", metric)
                bits = index.last(section, c, "walk", "bits_per_response")
                if y and (bits or c.prompt == "none"):
                    places[c] = bits.value if bits else 0.0, y.value
                    marker = markers[c.prompt, c.fraction]
                    bars = spread(bits), spread(y)
                    drawing.dot(axes, *places[c], marker, colour, filled=False, xerr=bars[0], yerr=bars[1])
            path = [places[c] for c in informative_by_bits(index, section, model) if c in places]
            if path:
                label = lookup.model_name(model)
                axes.plot(*zip(*path, strict=True), color=colour, ls=dash, lw=1.2, zorder=1, label=label)
        axes.set_xscale("symlog", base=2, linthresh=4)  # contexts that no model can read are far out
        ticks = (0, 2, 4, 8, 16, 32, 64)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        for prompt, text in prompts.items() if axes.has_data() else ():
            axes.plot([], [], markers[prompt], color=INK, markerfacecolor="none", label=text)
        drawing.finish(axes, UNITS[metric], "measured bits per response", from_zero=metric != "accuracy")
    return drawing.legend(figure, 4)


@drawing.styled
def sft(index: Index) -> Figure:
    """Fine-tuning on the model's own correct responses, sampled without and with a context: the same
    problems, the same number of responses.
    """
    figure, panels = drawing.panels(1, 3, 9.6, 3.3)
    bars = list(zip((BASE, *SFT), (GREY, BLUE, ORANGE, RED), strict=True))
    for axes, metric in zip(panels, UNITS, strict=True):
        for (i, (c, colour)), (j, dataset) in itertools.product(enumerate(bars), enumerate(("k3", "k4"))):
            if p := index.last("sft", c, dataset, metric):
                x, errors = j + 0.2 * (i - 1.5), spread(p)
                axes.bar(x, p.value, 0.18, yerr=errors, color=colour, ecolor=INK, capsize=2, label=name(c))
        axes.set_xticks(range(2), [drawing.DATASETS["k3"], drawing.DATASETS["k4"]])
        axes.grid(axis="x", visible=False)
        drawing.finish(axes, UNITS[metric])
    return drawing.legend(figure, 3)


Lines = Mapping[Condition, tuple[Line, str]]
"""Run → how its curve is drawn, and its label."""


def _curves(axes: Axes, index: Index, section: str, lines: Lines, dataset: str, metric: str) -> None:
    """Curves of runs from step 0, where a model is the base model."""
    # Each |D| has its own trained problems, and starts from its own step 0.
    base = [] if dataset == "trained" else index.curve(section, BASE, dataset, metric)
    if base:
        axes.axhline(base[0].value, color=GREY, linestyle="--", linewidth=1.3, label="base")
    for c, (line, label) in lines.items():
        if points := index.curve(section, c, dataset, metric):
            start = base[:1] if points[0].step > 0 else []
            drawing.curve(axes, [*start, *points], line, label)


@drawing.styled
def on_policy(index: Index) -> Figure:
    """On-policy training. Dotted: teacher weights follow the student (EMA) instead of staying frozen. Harder
    problems were never trained on.
    """
    figure, panels = drawing.panels(2, 2, 9.6, 6.4)
    lines = {c: (drawing.line(c), name(c)) for c in ON_POLICY}
    cells = (("accuracy", "k3"), ("accuracy", "k4"), ("length", "k3"), ("num_epistemic", "k3"))
    for axes, (metric, dataset) in zip(panels, cells, strict=True):
        _curves(axes, index, "on_policy", lines, dataset, metric)
        drawing.finish(axes, drawing.title(metric, dataset), "training step", from_zero=metric != "accuracy")
    return drawing.legend(figure, 3)


@drawing.styled
def training(index: Index) -> Figure:
    """Training metrics on the model's own rollouts, means over the steps from one evaluation to the next. The
    divergence between student and teacher is split into tokens of epistemic words and all other tokens. Thick
    lines: means over seeds; thin lines: single seeds.
    """
    cells = {
        "train_accuracy": "accuracy on its own rollouts",
        "entropy": "entropy of the student (nats)",
        "divergence_epistemic": "divergence, epistemic words",
        "divergence_other": "divergence, other tokens",
    }
    figure, panels = drawing.panels(2, 2, 9.6, 6.0)
    for axes, (metric, heading) in zip(panels, cells.items(), strict=True):
        for c in ON_POLICY:
            colour, marker, dash = drawing.line(c)
            curves = [index.curve("on_policy", c, "train", metric, seed=seed) for seed in index.seeds]
            seeds = [{p.step: p.value for p in curve} for curve in curves if curve]
            steps = sorted(set.intersection(*map(set, seeds))) if seeds else []
            for values in seeds if len(seeds) > 1 else ():
                axes.plot([*values], [*values.values()], color=colour, ls=dash, linewidth=0.6, alpha=0.5)
            if steps:
                means = [sum(values[step] for values in seeds) / len(seeds) for step in steps]
                axes.plot(steps, means, color=colour, marker=marker, linestyle=dash, label=name(c))
        drawing.finish(axes, heading, "training step")
    return drawing.legend(figure, 3)


PALE = 0.1  # change of accuracy up to which no tile has the full colour
SIZES = LinearSegmentedColormap.from_list("coverage", [ORANGE, "#d0508a", BLUE])


def _size(c: Condition) -> str:
    return f"|D| = {'all' if c.num_problems is None else c.num_problems}"


@drawing.styled
def coverage_grid(index: Index) -> Figure:
    """Change of accuracy against the base on the same problems at the last step, with 95 % intervals. Orange:
    below the base; blue: above; bold: the interval excludes 0. A single problem has none.
    """
    runs = {method: index.coverage_runs(method) for method in ("sdpo", "grpo")}
    figure, panels = drawing.panels(1, 2, 9.6, 0.9 + 0.52 * max(4, *map(len, runs.values())))
    datasets = ("trained", "k3", "k4")
    cells = itertools.product([*runs["sdpo"], *runs["grpo"]], datasets)
    changes = {cell: difference(index, Comparison("coverage", *cell, "above")) for cell in cells}
    largest = max([PALE, *(abs(e.point.value) for e in changes.values() if e)])
    for axes, (method, conditions) in zip(panels, runs.items(), strict=True):
        for (y, c), (x, dataset) in itertools.product(enumerate(conditions), enumerate(datasets)):
            change = changes[c, dataset]
            _tile(axes, x, y, change.point if change else None, largest)
        drawing.finish(axes, f"{method.upper()}: change of accuracy")
        if conditions:
            axes.set(xlim=(-0.5, len(datasets) - 0.5), ylim=(len(conditions) - 0.5, -0.5))
            axes.set_xticks(range(len(datasets)), [drawing.DATASETS[dataset] for dataset in datasets])
            axes.set_yticks(range(len(conditions)), [_size(c) for c in conditions])
            axes.tick_params(length=0)
            axes.grid(visible=False)
            axes.spines[:].set_visible(False)
    return figure


def _tile(axes: Axes, x: int, y: int, change: Point | None, largest: float) -> None:
    """A difference as a colour, stronger the larger it is, and in figures; bold if it is certain."""
    if change is None:
        axes.text(x, y, "–", ha="center", va="center")
        return
    colour, strength = BLUE if change.value > 0 else ORANGE, 0.75 * abs(change.value) / largest
    axes.add_patch(Rectangle((x - 0.48, y - 0.47), 0.96, 0.94, color=colour, alpha=strength, linewidth=0))
    has_interval = change.low is not None and change.low != change.high
    weight = "bold" if has_interval and change.side != "level" else "normal"
    value = f"{change.value:+.2f}".replace("-", "−")
    axes.text(x, y - 0.12, value, ha="center", va="center", fontsize=10.5, fontweight=weight)
    if has_interval:
        interval = f"[{change.low:+.2f}, {change.high:+.2f}]".replace("-", "−")
        axes.text(x, y + 0.24, interval, ha="center", va="center", fontsize=7.5)


@drawing.styled
def coverage(index: Index) -> Figure:
    """Training on |D| distinct problems with a frozen teacher. Each |D| has its own trained problems."""
    cells = (("accuracy", "trained"), ("accuracy", "k3"), ("accuracy", "k4"), ("length", "trained"))
    figure, panels = drawing.panels(2, len(cells), 11.2, 5.8)
    runs = {method: index.coverage_runs(method) for method in ("sdpo", "grpo")}
    by_size = sorted(itertools.chain(*runs.values()), key=lambda c: c.num_problems or math.inf)
    sizes = list(dict.fromkeys(map(_size, by_size)))
    lines = {
        size: (to_hex(SIZES(i / max(1, len(sizes) - 1))), drawing.MARKERS[i % len(drawing.MARKERS)], "-")
        for i, size in enumerate(sizes)
    }
    for axes, (method, (metric, dataset)) in zip(panels, itertools.product(runs, cells), strict=True):
        of_method = {c: (lines[_size(c)], _size(c)) for c in runs[method]}
        _curves(axes, index, "coverage", of_method, dataset, metric)
        heading = f"{method.upper()}: {drawing.title(metric, dataset)}"
        drawing.finish(axes, heading, "training step", from_zero=metric == "length", size=9)
    for metric in ("accuracy", "length"):
        drawing.same_scale(axes for axes, cell in zip(panels, cells * 2, strict=True) if cell[0] == metric)
    return drawing.legend(figure, 6)


@drawing.styled
def fixes(index: Index) -> Figure:
    """Fixes, ranked by accuracy on harder problems. Filled marks and dashed lines: the base, plain GRPO and
    plain SDPO; open marks: a fix on top of either, in its colour.
    """
    order = list(findings.standings(index))
    cells = [("accuracy", RANKED_ON), ("accuracy", "k3"), ("length", RANKED_ON), ("num_epistemic", RANKED_ON)]
    figure, panels = drawing.panels(1, len(cells), 11.2, 1.4 + 0.32 * max(len(order), 6))
    for axes, (metric, dataset) in zip(panels, cells, strict=True):
        for y, c in enumerate(order):
            if p := index.last(FIXES, c, dataset, metric):
                colour, marker, _ = drawing.line(c)
                drawing.dot(axes, p.value, y, marker, colour, filled=not c.fix, xerr=spread(p))
                if not c.fix:
                    axes.axvline(p.value, color=colour, linestyle="--", linewidth=1.1, label=name(c))
        drawing.finish(axes, drawing.title(metric, dataset).replace(" per response", ""), size=9)
        if metric != "accuracy":
            axes.set_xlim(left=0)
        if order:
            drawing.list_rows(axes, [name(c) for c in order], named=axes is panels[0])
    return drawing.legend(figure, 3)


@drawing.styled
def probes(index: Index) -> Figure:
    """Accuracy of each model under the probes (filled), their controls (open), no intervention (dashed)."""
    made = findings.probes_made(index)
    arms = [arm for probe in made for arm in (probe.arm, *probe.controls) if arm != PLAIN]
    models = findings.probed_models(index) or [BASE, GRPO]
    figure, panels = drawing.panels(1, len(models), 11.2, 1.2 + 0.26 * max(len(arms), 6))
    for axes, model in zip(panels, models, strict=True):
        colour, *_ = drawing.line(model)
        for y, arm in enumerate(arms):
            if p := findings.accuracy(index, model, arm):
                is_probe = any(arm == probe.arm for probe in made)
                drawing.dot(axes, p.value, y, "os"[is_probe], colour, filled=is_probe, xerr=spread(p))
        if plain := findings.accuracy(index, model, PLAIN):
            axes.axvline(plain.value, color=colour, linestyle="--", linewidth=1.1)
        drawing.finish(axes, f"{name(model)}: accuracy")
        if arms:
            axes.set_xlim(0, 1)
            drawing.list_rows(axes, [arm_name(arm) for arm in arms], named=axes is panels[0])
            axes.tick_params("y", labelsize=8.5)
    return figure


def _attribution_lines(index: Index) -> dict[Condition, Line]:
    """Condition → how it is drawn, in the paper's order."""
    others = itertools.cycle(
        (colour, marker, dash)
        for dash, markers in (("--", "DPX"), ("-.", "DPX"), (":", "dpx"))
        for colour, marker in zip((GREEN, PINK, SKY), markers, strict=True)
    )
    return {c: next(others) if c.fix else drawing.line(c) for c in index.conditions(ATTRIBUTION)}


@drawing.styled
def signal_by_class(index: Index) -> Figure:
    """Epistemic tokens in training: their share of the signal and of the tokens, and the divergence from the
    teacher there, from one evaluation to the next. Where the first share is above the second, an epistemic
    token counts for more than another.
    """
    figure, panels = drawing.panels(1, 3, 11.2, 3.6)
    titles = {
        "signal": "share of the signal on epistemic tokens",
        "tokens": "share of tokens that are epistemic",
        "divergence": "divergence at epistemic tokens (nats)",
    }
    for axes, (measure, heading) in zip(panels, titles.items(), strict=True):
        for c, line in _attribution_lines(index).items():
            if points := index.curve(ATTRIBUTION, c, "train", measure, group="class:epistemic"):
                drawing.curve(axes, points, line, name(c))
        drawing.finish(axes, heading, "training step", from_zero=True)
    drawing.same_scale(panels[:2])
    return drawing.legend(figure, 3)


@drawing.styled
def signal_by_place(index: Index) -> Figure:
    """Divergence from the teacher and share of the signal, by position in the response and by the student's
    entropy, over all steps.
    """
    figure, panels = drawing.panels(2, 2, 9.6, 6.4)
    titles = {"divergence": "mean divergence (nats)", "signal": "share of the signal"}
    across = {
        "tenth": "tenth of the response",
        "fifth": "fifth of tokens by the student's entropy (5: forks)",
    }
    for axes, (measure, grouping) in zip(panels, itertools.product(titles, across), strict=True):
        groups = [f"{grouping}:{group}" for group in GROUPINGS[grouping]]
        for c, line in _attribution_lines(index).items():
            found = [index.last(ATTRIBUTION, c, "train", measure, group=group) for group in groups]
            points = [replace(p, step=i + 1) for i, p in enumerate(found) if p]
            if points:
                drawing.curve(axes, points, line, name(c))
        axes.set_xticks(range(1, len(groups) + 1))
        drawing.finish(axes, titles[measure], across[grouping], from_zero=True)
    return drawing.legend(figure, 3)


@drawing.styled
def runs(cells: Mapping[str, Mapping[tuple[Condition, str], Point]]) -> Figure:
    """Accuracy of every condition in each run; `cells`: run → (condition, data set) → accuracy."""
    datasets = list(dict.fromkeys(dataset for found in cells.values() for _, dataset in found))
    conditions = list(dict.fromkeys(c for found in cells.values() for c, _ in found))
    figure, panels = drawing.panels(1, len(datasets), 11.2, 1.2 + 0.34 * max(5, len(conditions)))
    styles = list(zip(drawing.MARKERS, (BLUE, RED, GREEN, PINK, ORANGE, SKY), strict=True))
    for axes, dataset in zip(panels, datasets, strict=True):
        for (i, (run, found)), (y, c) in itertools.product(enumerate(cells.items()), enumerate(conditions)):
            if p := found.get((c, dataset)):
                height = y + 0.5 * ((i + 1) / (len(cells) + 1) - 0.5)
                drawing.dot(axes, p.value, height, *styles[i % len(styles)], xerr=spread(p), label=run)
        drawing.finish(axes, f"accuracy, {drawing.DATASETS.get(dataset) or dataset}")
        drawing.list_rows(axes, [name(c) for c in conditions], named=axes is panels[0])
    return drawing.legend(figure, 3)


FIGURES: Mapping[str, Sequence[Callable[[Index], Figure]]] = {
    "richness": (richness,),
    "sft": (sft,),
    "on_policy": (on_policy, training),
    "trained_richness": (),
    "coverage": (coverage_grid, coverage),
    FIXES: (fixes,),
    ATTRIBUTION: (signal_by_class, signal_by_place),
    PROBES: (probes,),
}
"""Section → its figures, in their order. A file has the name of its function."""


def caption(plot: Callable[[Index], Figure]) -> str:
    """The caption of a figure."""
    bands = "" if plot in (training, coverage_grid) else " Bars and bands are 95 % intervals."
    return " ".join(str(plot.__doc__).split()) + bands
