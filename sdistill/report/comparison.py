"""The page of several runs side by side, and the differences of the same condition between two runs."""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict

from sdistill.analysis.measure import DIFFERENCES, by_problem
from sdistill.analysis.statistics import paired_bootstrap
from sdistill.report import prose
from sdistill.report.claims import separate_difference
from sdistill.report.lookup import HEADINGS, UNITS, Index, Point
from sdistill.report.page import render
from sdistill.report.runs import Run
from sdistill.report.tables import Row, Table, cell, detectable_rows
from sdistill.report.traces import Packed
from sdistill.storage import read_responses
from sdistill.types import Condition

Key = tuple[Condition, str]  # condition, data set
Values = dict[int, dict[str, dict[str, float]]]
"""Seed → metric → problem → value."""


def last_values(index: Index, section: str, metric: str) -> dict[Key, Point]:
    """(Condition, data set) → the pooled value at the last step, conditions in the paper's order."""
    datasets = sorted({m.dataset for m in index.sections.get(section, ())})
    keys = [(c, dataset) for c in index.conditions(section) for dataset in datasets]
    return {key: p for key in keys if (p := index.last(section, *key, metric))}


def kept_values(run: Path, section: str, key: Key, step: int) -> Values:
    """Of every seed whose responses a run's directory holds; empty if they cannot be read."""
    (condition, dataset), values = key, Values()
    for path in sorted(
        (run / "runs" / section / condition.label).glob(f"seed*/{dataset}*-{step:06d}.jsonl.gz")
    ):
        seed = path.parent.name.removeprefix("seed")
        if path.name.rpartition("-")[0].removesuffix("_test") == dataset and seed.isdecimal():
            try:
                values[int(seed)] = by_problem(read_responses(path))
            except (EOFError, OSError, zlib.error, ValueError, TypeError, LookupError):
                return {}  # cut short, or of another version
    return values


def contrast(metric: str, first: tuple[Point, Values], second: tuple[Point, Values]) -> tuple[Point, bool]:
    """The second run's value of a metric minus the first's.

    Returns:
      The difference; and whether it is paired by problem and seed. If not, the runs count as independent.
    """
    (their_point, theirs), (our_point, ours) = first, second
    seeds = sorted(set(ours) & set(theirs))
    tables = [values[seed][metric] for seed in seeds for values in (ours, theirs)]
    problems = [p for p in tables[0] if all(p in table for table in tables)] if tables else []
    if not problems:
        return separate_difference(our_point, their_point), False
    left, right = (
        np.asarray([[values[seed][metric][p] for p in problems] for seed in seeds])
        for values in (ours, theirs)
    )
    return Point(our_point.step, *paired_bootstrap(left - right)), True


def run_tables(runs: Sequence[Run]) -> list[Table]:
    """The runs, and which of their settings differ."""
    rows: list[Row] = []
    for run in runs:
        environment = run.settings.get("environment.json", {})
        sections = ", ".join(s for s in HEADINGS if s in run.index.sections) or "none"
        seeds = ", ".join(map(str, run.index.seeds)) or "none"
        commit, jax = (str(environment.get(key, "–")) for key in ("commit", "jax"))
        rows.append([run.name, seeds, sections, commit[:12], jax])
    settings = [flatten_dict(run.settings.get("config.json", {}), sep=".") for run in runs]
    keys = sorted({key for values in settings for key in values})
    all_settings = {key: [str(values.get(key, "–")) for values in settings] for key in keys}
    changed: list[Row] = [[key, *values] for key, values in all_settings.items() if len(set(values)) > 1]
    tables = [Table("The runs", ["run", "seeds", "sections", "commit", "jax"], rows)]
    tables.append(Table("Settings that differ", ["setting", *(run.name for run in runs)], changed))
    return tables if changed else tables[:1]


def section_comparisons(runs: Sequence[Run]) -> dict[str, list[Table]]:
    """Section → a table of each metric, of the sections that the first run has in common with another."""
    tables = {}
    for section in HEADINGS:
        values = {metric: [last_values(run.index, section, metric) for run in runs] for metric in DIFFERENCES}
        first, *others = values["accuracy"]
        kept = {
            key: [
                kept_values(run.path, section, key, points[key].step) if key in points else {}
                for run, points in zip(runs, values["accuracy"], strict=True)
            ]
            for key in first
            if any(key in points for points in others)
        }
        if kept:
            tables[section] = [_metric_table(metric, runs, values[metric], kept) for metric in DIFFERENCES]
    return tables


def _metric_table(
    metric: str,
    runs: Sequence[Run],
    values: Sequence[Mapping[Key, Point]],
    kept: Mapping[Key, Sequence[Values]],
) -> Table:
    """One row for each condition and data set: the values and the differences to the first run."""
    rows: list[Row] = []
    for key, kept_of_runs in kept.items():
        (first, first_kept), *others = zip([v.get(key) for v in values], kept_of_runs, strict=True)
        found = [
            contrast(metric, (first, first_kept), (p, k)) if first and p else (None, False) for p, k in others
        ]
        paired = "yes" if all(paired for _, paired in found) else "no"
        cells = [cell(p, metric) for p in (first, *(p for p, _ in others), *(p for p, _ in found))]
        rows.append([*key, *cells, paired])
    names = [run.name for run in runs]
    minus = [f"{other} minus {names[0]}" for other in names[1:]]
    columns = ["condition", "data", *names, *minus, "paired"]
    return Table(prose.capitalized(UNITS[metric]), columns, rows, detectable_rows(columns, rows, minus))


def comparison_page(
    runs: Sequence[Run], tables: Mapping[str, Sequence[Table]], traces: Packed, svgs: Mapping[str, str]
) -> str:
    """The HTML of a page about several runs, each compared with the first.

    Args:
      runs: The runs.
      tables: Section → its tables, as `section_comparisons` makes them; under `runs` those of `run_tables`.
      traces: Responses of all.
      svgs: Section → its figure.
    """
    about_paper = [prose.studies_paper(run.index) for run in runs]
    sentences = [
        prose.headline(run.claims) if is_about else "Fixes on harder problems:"
        for run, is_about in zip(runs, about_paper, strict=True)
    ]
    return render(
        {"runs": ("Runs", "runs.html")}
        | ({"claims": ("Claims", "claims_of_runs.html")} if any(about_paper) else {})
        | {section: (HEADINGS[section], "section_of_runs.html") for section in svgs}
        | {"traces": ("Traces", "viewer.html")},
        traces,
        title=f"{len(runs)} runs compared",
        about=f"Differences are of each other run minus {runs[0].name}.",
        summaries=[
            (f"{run.name}: {sentence}", prose.fixes_findings(run.index))
            for run, sentence in zip(runs, sentences, strict=True)
        ],
        notes=[f"{run.name}: {note}" for run in runs for note in run.notes],
        runs=runs,
        claims_of_runs=list(zip(*(run.claims for run in runs), strict=True)),
        tables=tables,
        svgs=svgs,
    )
