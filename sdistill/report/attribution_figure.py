"""Where the training signal falls: by class of token over training, by place, and by entropy."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdistill.analysis.attribution import ATTRIBUTION, GROUPINGS
from sdistill.analysis.records import Record
from sdistill.report import drawing
from sdistill.report.drawing import BLUE, GREEN, ORANGE, PINK, RED, SKY, Line
from sdistill.report.lookup import condition_rank, name, select

LINES: Mapping[str, Line] = {
    "grpo": (BLUE, "o", "-"),
    "sdpo": (RED, "v", "-"),
    "sdpo_answer_fixed": (ORANGE, "s", "-"),
    "sdpo_answer_ema": (ORANGE, "s", ":"),
    "sdpo_solution_fixed": (RED, "v", "-"),
    "sdpo_solution_ema": (RED, "v", ":"),
}
OTHER_LINES: Sequence[Line] = [
    (colour, marker, dash)
    for dash in ("--", "-.")
    for colour, marker in ((GREEN, "D"), (PINK, "P"), (SKY, "X"))
] + [(GREEN, "d", ":"), (PINK, "p", ":"), (SKY, "x", ":")]


def lines(records: Sequence[Record]) -> dict[str, Line]:
    """Condition of these records → how it is drawn, in the paper's order."""
    found = sorted({r["condition"] for r in records}, key=condition_rank)
    others = [condition for condition in found if condition not in LINES]
    drawn = {c: OTHER_LINES[i % len(OTHER_LINES)] for i, c in enumerate(others)}
    return {condition: LINES.get(condition) or drawn[condition] for condition in found}


@drawing.styled
def signal_by_class(records: Sequence[Record]) -> Figure:
    """Of epistemic tokens: share of the signal, share of the tokens, and divergence, over training."""
    records = [r for r in records if r["section"] == ATTRIBUTION and r["dataset"] == "train"]
    figure, panels = drawing.panels(1, 3, 11.2, 3.6)
    titles = {
        "signal": "share of the signal on epistemic tokens",
        "tokens": "share of tokens that are epistemic",
        "divergence": "divergence at epistemic tokens (nats)",
    }
    for axes, (measure, title) in zip(panels, titles.items(), strict=True):
        for condition, line in lines(records).items():
            rows = select(records, ATTRIBUTION, condition, "train", f"{measure}:class:epistemic")
            if rows:
                drawing.curve(axes, rows, line, name(condition))
        _finish(axes, title, "training step")
    drawing.same_scale(panels[:2])
    drawing.legend(figure, 3)
    return figure


@drawing.styled
def signal_by_place(records: Sequence[Record]) -> Figure:
    """Divergence and signal by place in the response and by entropy of the student, over all steps."""
    records = [r for r in records if r["section"] == ATTRIBUTION and r["dataset"] == "train"]
    figure, panels = drawing.panels(2, 2, 9.6, 6.4)
    across = {
        "tenth": "tenth of the response",
        "fifth": "fifth of tokens by the student's entropy (5: forks)",
    }
    cells = [(measure, grouping) for measure in ("divergence", "signal") for grouping in across]
    for axes, (measure, grouping) in zip(panels, cells, strict=True):
        for condition, line in lines(records).items():
            metrics = [f"{measure}:{grouping}:{group}" for group in GROUPINGS[grouping]]
            found = [select(records, ATTRIBUTION, condition, "train", metric) for metric in metrics]
            rows = [{**curve[-1], "step": i + 1} for i, curve in enumerate(found) if curve]
            if rows:
                drawing.curve(axes, rows, line, name(condition))
                axes.set_xticks(range(1, len(metrics) + 1))
        titles = {"divergence": "mean divergence (nats)", "signal": "share of the signal"}
        _finish(axes, titles[measure], across[grouping])
    drawing.legend(figure, 3)
    return figure


def _finish(axes: Axes, title: str, across: str) -> None:
    axes.set_title(title)
    if axes.has_data():
        axes.set_ylim(bottom=0)
        axes.set_xlabel(across)
    else:
        drawing.empty(axes)
