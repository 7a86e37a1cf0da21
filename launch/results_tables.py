"""Writes the tables of pages from the figures in results/, so that no number is copied by hand.

    python launch/results_tables.py

A table stands between `<!-- NAME -->` and `<!-- / -->`, NAME being a key of `TABLES`, and is replaced there.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from sdistill.analysis.records import Record
from sdistill.report.lookup import coverage_sizes, name, select, select_difference
from sdistill.report.probe_results import Contrast, contrasts, measured
from sdistill.storage import read_records

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "docs" / "results.md", ROOT / "docs" / "probes.md")
Figure = tuple[str, str, str, int]
"""Head of the column, data set, metric, decimals."""

RICHNESS: tuple[Figure, ...] = (
    ("measured bits a response", "walk", "bits_per_response", 1),
    ("accuracy", "walk", "accuracy", 2),
    ("length (tokens)", "walk", "length", 1),
    ("uncertainty words", "walk", "words", 2),
)
MODELS: tuple[Figure, ...] = (
    ("k = 3 accuracy", "k3", "accuracy", 2),
    ("k = 4 accuracy", "k4", "accuracy", 2),
    ("k = 3 length", "k3", "length", 1),
    ("k = 3 words", "k3", "words", 2),
    ("k = 4 words", "k4", "words", 2),
)


def figure(record: Record, digits: int, *, sign: bool = False) -> str:
    """A value with its interval. In: 0.731, 0.70 to 0.76, 2 digits. Out: `0.73 [0.70, 0.76]`."""
    form = f"{'+' if sign else ''}.{digits}f"
    rounded = (round(record[key], digits) + 0.0 for key in ("value", "ci_low", "ci_high"))  # no −0.0
    value, low, high = (format(number, form) for number in rounded)
    return f"{value} [{low}, {high}]".replace("-", "−")


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; bars in a cell are escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def values(section: str, head: str, figures: Sequence[Figure]) -> Callable[[Sequence[Record]], str]:
    """A table of a section's conditions at their last step, pooled over seeds, in the order they were run."""

    def table(records: Sequence[Record]) -> str:
        conditions = dict.fromkeys(r["condition"] for r in records if r["section"] == section)
        rows = []
        for condition in conditions:
            found = [select(records, section, condition, data, metric) for _, data, metric, _ in figures]
            cells = [figure(curve[-1], digits) for curve, (*_, digits) in zip(found, figures, strict=True)]
            rows.append([name(condition), *cells])
        return markdown([head, *(column for column, *_ in figures)], rows)

    return table


def richness(records: Sequence[Record]) -> str:
    """Section 3, contexts by their measured bits."""
    table = values("richness", "context", RICHNESS)(records).splitlines()
    bits = {line: float(line.split("|")[2].split("[")[0]) for line in table[2:]}
    return "\n".join([*table[:2], *sorted(bits, key=lambda line: bits[line])])


def coverage(records: Sequence[Record]) -> str:
    """Section 6: change of accuracy against the base on the same problems."""
    methods, datasets = ("sdpo", "grpo"), {"trained": "trained", "k3": "k = 3", "k4": "k = 4"}
    rows = []
    for size in coverage_sizes(records, "sdpo"):
        found = [
            select_difference(records, "coverage", f"{method}_{size}", dataset, "accuracy_minus:base")[-1]
            for method in methods
            for dataset in datasets
        ]
        rows.append([size, *(figure(record, 2, sign=True) for record in found)])
    heads = [f"{method.upper()}: {dataset}" for method in methods for dataset in datasets.values()]
    return markdown(["|D|", *heads], rows)


def probes(records: Sequence[Record]) -> str:
    """Every probe on every model, against each of its controls."""
    rows = []
    for probe in measured(records):
        for control in probe.controls:
            found = {c.model: c for c in contrasts(records, probe) if c.control == control}
            if found:
                cells = [
                    _changed(found[model]) if model in found else "–" for model in ("base", "grpo", "sdpo")
                ]
                rows.append([name(probe.arm), name(control), *cells])
    return markdown(["what is done", "against", "base", "GRPO", "SDPO"], rows)


def _changed(c: Contrast) -> str:
    """Both accuracies, the difference with its interval, and what would have been found."""
    values = f"{c.ours['value']:.3f} / {c.theirs['value']:.3f}"
    return f"{values}: {figure(c.difference, 3, sign=True)}, finds {c.detectable:.3f}"


TABLES: dict[str, tuple[str, Callable[[Sequence[Record]], str]]] = {
    "richness": ("signs", richness),
    "sft": ("signs", values("sft", "model", MODELS)),
    "on_policy": ("signs", values("on_policy", "model", MODELS)),
    "coverage": ("signs", coverage),
    "probes": ("probes", probes),
}
"""Name → directory of results/, and what makes the table of its records."""


def filled(page: str) -> str:
    """The page with its tables as the figures in results/ give them.

    Raises:
      KeyError: if the page names a table that is not known.
    """

    def fill(found: re.Match[str]) -> str:
        directory, table = TABLES[found[1]]
        records = read_records(ROOT / "results" / directory / "results.jsonl")
        return f"<!-- {found[1]} -->\n{table(records)}\n<!-- / -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- / -->", fill, page, flags=re.DOTALL)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
