"""Writes the tables of docs/results.md and docs/probes.md from results/, so that no number is copied by hand.

    python launch/results_tables.py

A table stands between `<!-- NAME -->` and `<!-- / -->`, NAME being a key of `TABLES`, and is replaced there.
"""

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from sdistill.analysis.measure import BASE
from sdistill.report.findings import Contrast, contrasts, probed_models, probes_made
from sdistill.report.lookup import Index, Point, arm_name, name
from sdistill.storage import read_measurements

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "docs" / "results.md", ROOT / "docs" / "probes.md")
Column = tuple[str, str, str, int]
"""Head of the column, data set, metric, decimals."""

RICHNESS: tuple[Column, ...] = (
    ("measured bits per response", "walk", "bits_per_response", 1),
    ("accuracy", "walk", "accuracy", 2),
    ("length (tokens)", "walk", "length", 1),
    ("epistemic words", "walk", "num_epistemic", 2),
)
MODELS: tuple[Column, ...] = (
    ("k = 3 accuracy", "k3", "accuracy", 2),
    ("k = 4 accuracy", "k4", "accuracy", 2),
    ("k = 3 length", "k3", "length", 1),
    ("k = 3 epistemic words", "k3", "num_epistemic", 2),
    ("k = 4 epistemic words", "k4", "num_epistemic", 2),
)


def figure(p: Point | None, digits: int, *, sign: bool = False) -> str:
    """A value with its interval. In: 0.731, 0.70 to 0.76, 2 digits. Out: `0.73 [0.70, 0.76]`.

    Raises:
      ValueError: if there is no value or no interval.
    """
    if p is None or p.low is None or p.high is None:
        raise ValueError("a table of the results lacks a value with an interval")
    form = f"{'+' if sign else ''}.{digits}f"
    value, low, high = (format(round(x, digits) + 0.0, form) for x in (p.value, p.low, p.high))  # no −0.0
    return f"{value} [{low}, {high}]".replace("-", "−")


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; bars in a cell are escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def values(section: str, head: str, columns: Sequence[Column]) -> Callable[[Index], str]:
    """A table of a section's conditions at their last step, pooled over seeds, in the order they were run."""

    def table(index: Index) -> str:
        rows = [
            [name(c), *(figure(index.last(section, c, data, metric), n) for _, data, metric, n in columns)]
            for c in dict.fromkeys(m.condition for m in index.sections[section])
        ]
        return markdown([head, *(column for column, *_ in columns)], rows)

    return table


def richness(index: Index) -> str:
    """Section 3, contexts by their measured bits."""
    head, rule, *rows = values("richness", "context", RICHNESS)(index).splitlines()
    return "\n".join([head, rule, *sorted(rows, key=lambda row: float(row.split("|")[2].split("[")[0]))])


def coverage(index: Index) -> str:
    """Section 6: change of accuracy against the base on the same problems."""
    methods, datasets = ("sdpo", "grpo"), {"trained": "trained", "k3": "k = 3", "k4": "k = 4"}
    rows = []
    for runs in zip(*map(index.coverage_runs, methods), strict=True):
        changes = [index.difference("coverage", c, data, "accuracy", BASE) for c in runs for data in datasets]
        size = "all" if runs[0].num_problems is None else str(runs[0].num_problems)
        rows.append([size, *(figure(change, 2, sign=True) for change in changes)])
    heads = [f"{method.upper()}: {dataset}" for method in methods for dataset in datasets.values()]
    return markdown(["|D|", *heads], rows)


def probes(index: Index) -> str:
    """Every probe on every model, against each of its controls."""
    rows, models = [], probed_models(index)
    for probe in probes_made(index):
        for control in probe.controls:
            found = {c.model: _changed(c) for c in contrasts(index, probe) if c.control == control}
            if found:
                cells = [found.get(model, "–") for model in models]
                rows.append([arm_name(probe.arm), arm_name(control), *cells])
    return markdown(["intervention", "control", *map(name, models)], rows)


def _changed(c: Contrast) -> str:
    """Both accuracies, the difference with its interval, and the smallest difference that would be found."""
    accuracies = f"{c.ours.value:.3f} / {c.theirs.value:.3f}"
    return f"{accuracies}: {figure(c.difference, 3, sign=True)}, finds {c.difference.detectable:.3f}"


TABLES: dict[str, tuple[str, Callable[[Index], str]]] = {
    "richness": ("signs", richness),
    "sft": ("signs", values("sft", "model", MODELS)),
    "on_policy": ("signs", values("on_policy", "model", MODELS)),
    "coverage": ("signs", coverage),
    "probes": ("probes", probes),
}
"""Name → directory of results/, and the function that makes the table."""


@functools.cache
def read(directory: str) -> Index:
    """The measurements of a directory of results/."""
    return Index(read_measurements(ROOT / "results" / directory / "results.jsonl"))


def filled(page: str) -> str:
    """The page with its tables made from results/.

    Raises:
      KeyError: if the page names a table that is not known.
    """

    def fill(found: re.Match[str]) -> str:
        directory, table = TABLES[found[1]]
        return f"<!-- {found[1]} -->\n{table(read(directory))}\n<!-- / -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- / -->", fill, page, flags=re.DOTALL)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
