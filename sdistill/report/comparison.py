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
from sdistill.storage import read_responses, responses_files
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
    for folder in (run / "runs" / section / condition.label).glob("seed[0-9]*"):
        files = responses_files(folder)
        path = files.get((f"{dataset}_test", step)) or files.get((dataset, step))
        try:
            if path:
                values[int(folder.name.removeprefix("seed"))] = by_problem(read_responses(path))
        except (EOFError, OSError, zlib.error, ValueError, TypeError, LookupError):
            return {}  # cut short, or of another version
    return values


def contrast(metric: str, first: tuple[Point, Values], second: tuple[Point, Values]) -> tuple[Point, bool]:
    """The second run's value of a metric minus the first's.

    Returns:
      The difference; and whether it is paired by problem and seed. If not, the runs count as independent.
    """
    (their_point, theirs), (our_point, ours) = first, second
    pairs = [(ours[seed][metric], theirs[seed][metric]) for seed in sorted(set(ours) & set(theirs))]
    problems = (
        [p for p in pairs[0][0] if all(p in values for pair in pairs for values in pair)] if pairs else []
    )
    if not problems:
        return separate_difference(our_point, their_point), False
    differences_SP = np.asarray([[left[p] - right[p] for p in problems] for left, right in pairs])
    return Point(our_point.step, *paired_bootstrap(differences_SP)), True


def run_tables(runs: Sequence[Run]) -> list[Table]:
    """The runs, and which of their settings differ."""
    names, rows = [run.name for run in runs], list[Row]()
    for run in runs:
        environment = run.settings.get("environment.json", {})
        sections = ", ".join(s for s in HEADINGS if s in run.index.sections) or "none"
        seeds = ", ".join(map(str, run.index.seeds)) or "none"
        commit, jax = (str(environment.get(key, "–")) for key in ("commit", "jax"))
        rows.append([run.name, seeds, sections, commit[:12], jax])
    tables = [Table("The runs", ["run", "seeds", "sections", "commit", "jax"], rows)]
    settings = [flatten_dict(run.settings.get("config.json", {}), sep=".") for run in runs]
    values = {key: [str(found.get(key, "–")) for found in settings] for key in sorted(set().union(*settings))}
    changed: list[Row] = [[key, *found] for key, found in values.items() if len(set(found)) > 1]
    return [*tables, Table("Settings that differ", ["setting", *names], changed)] if changed else tables


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
            names = [run.name for run in runs]
            tables[section] = [_metric_table(metric, names, values[metric], kept) for metric in DIFFERENCES]
    return tables


def _metric_table(
    metric: str,
    names: Sequence[str],
    values: Sequence[Mapping[Key, Point]],
    kept: Mapping[Key, Sequence[Values]],
) -> Table:
    """One row for each condition and data set: the values and the differences to the first run."""
    rows: list[Row] = []
    for key, kept_of_runs in kept.items():
        points = [found.get(key) for found in values]
        (first, theirs), *others = zip(points, kept_of_runs, strict=True)
        found = [contrast(metric, (first, theirs), (p, ours)) if first and p else None for p, ours in others]
        paired = "yes" if all(x and x[1] for x in found) else "no"
        differences = [x[0] if x else None for x in found]
        rows.append([*key, *(cell(p, metric) for p in (*points, *differences)), paired])
    minus = [f"{other} minus {names[0]}" for other in names[1:]]
    columns = ["condition", "data", *names, *minus, "paired"]
    return Table(prose.capitalized(UNITS[metric]), columns, rows, detectable_rows(columns, rows, minus))


def comparison_page(
    runs: Sequence[Run], tables: Mapping[str, Sequence[Table]], traces: Packed, svgs: Mapping[str, str]
) -> str:
    """The HTML of a page about several runs, each compared with the first.

    Args:
      tables: Section → its tables, as `section_comparisons` makes them; under `runs` those of `run_tables`.
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
        traces=traces,
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
