"""The tables of a report: what they hold, and the same as CSV. How they look is another's concern."""

import csv
import io
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from sdistill.analysis.attribution import ATTRIBUTION, GROUPINGS, MEASURES
from sdistill.analysis.epistemic import WORDS
from sdistill.analysis.probes import PROBES
from sdistill.analysis.records import Record
from sdistill.analysis.statistics import minimum_detectable
from sdistill.report.lookup import (
    ACROSS,
    POOLED,
    condition_rank,
    integer_seeds,
    name,
    select,
    select_difference,
)
from sdistill.report.probe_results import Contrast, contrasts, measured
from sdistill.report.ranking import FIXES, JUDGE, by_seed, standings

VALUES = "Values at the last step"
RANKING = f"Ranked by accuracy on {JUDGE}, problems harder than those trained on"
TRAINING = "Training metrics at the last step"
DETECTABLE = "detectable difference"
PROBE_COLUMNS = (
    "condition",
    "against",
    "accuracy",
    "accuracy there",
    "difference",
    "would find",
    "longer by",
    "n",
)
OTHERS = " and others"  # what the interval is about
DIGITS = {"accuracy": 3, "length": 1, "words": 2, "words_substring": 2, "bits_per_response": 2}
ORDER = ("accuracy", "pass@", "maj@", "length", "words", "words_substring", "finished", "bits_per")


@dataclass(frozen=True)
class Cell:
    """A number with its 95 % interval (None without one) and the decimals it is shown with."""

    value: float | None
    low: float | None = None
    high: float | None = None
    digits: int = 3


Row = list[str | Cell]


@dataclass(frozen=True)
class Table:
    """A titled table.

    Attributes:
      title: Unique in its section.
      columns: Their heads.
      rows: Text (conditions by their key) and `Cell`s, one for each column.
      foot: For each data set the smallest difference between rows, or from zero in a table of differences,
        that these figures would probably show (see `minimum_detectable`).
    """

    title: str
    columns: list[str]
    rows: list[Row]
    foot: list[Row] = field(default_factory=list)


def minus(other: str) -> str:
    """The title of a table of differences to `other`."""
    return f"Minus {name(other)}, paired by problem"


def section_tables(section: str, records: Sequence[Record]) -> list[Table]:
    """The tables of one section: values, paired differences, training metrics; each if it has rows.

    Rows are pooled over seeds; what was not pooled (training metrics, a condition that was
    interrupted) is shown seed by seed.
    """
    mine = [r for r in records if r["section"] == section]
    groups: dict[str, list[Record]] = {VALUES: []}
    if section == ATTRIBUTION:
        return attribution_tables(mine)
    if section == PROBES:  # every probe has a table with its own controls
        tables, mine = probe_tables(mine), [r for r in mine if "_minus:" not in r["metric"]]
        mine = [r for r in mine if not r["metric"].startswith("word:")]
    else:
        tables = ranking_tables(mine) if section == FIXES else []
    for r in mine:
        title = VALUES
        if r["dataset"] == "train":
            title = TRAINING
        elif other := r["metric"].partition("_minus:")[2]:
            title = minus(other)
        groups.setdefault(title, []).append(r)
    for title in sorted(groups, key=lambda t: (t == TRAINING, t != VALUES)):
        if shown := _best_pooled(groups[title]):
            paired = title not in (VALUES, TRAINING)
            tables.append(_tabulate(title, shown, integer_seeds(mine), paired=paired))
    return tables


def _best_pooled(records: Sequence[Record]) -> list[Record]:
    """Of each condition the records about other seeds too, else those pooled, else those of each seed."""
    seeds: dict[str, set[int | str]] = {}
    for r in records:
        seeds.setdefault(r["condition"], set()).add(r["seed"])
    best = {c: next((s for s in (ACROSS, POOLED) if s in found), None) for c, found in seeds.items()}
    return [r for r in records if best[r["condition"]] in (None, r["seed"])]


def _tabulate(title: str, records: Sequence[Record], all_seeds: list[int], *, paired: bool) -> Table:
    """One row for each condition, data set and seed, at its last step; a column for each metric."""
    rows: dict[tuple[str, str, str], dict[str, Record]] = {}
    for r in records:
        row = rows.setdefault((r["condition"], r["dataset"], str(r["seed"])), {})
        metric = r["metric"].partition("_minus:")[0]
        if metric not in row or r["step"] >= row[metric]["step"]:
            row[metric] = r
    metrics = sorted({metric for row in rows.values() for metric in row}, key=_rank)
    body: list[Row] = []
    for key in sorted(rows, key=lambda k: (condition_rank(k[0]), k)):
        condition, dataset, seed = key
        step = max(r["step"] for r in rows[key].values())
        row = {m: r for m, r in rows[key].items() if r["step"] == step}
        cells = [_cell(row.get(m)) for m in metrics]
        n = str(max((r["n"] for r in row.values() if r["n"] is not None), default=""))
        seeds = ", ".join(map(str, all_seeds)) if seed in (POOLED, ACROSS) and all_seeds else seed
        body.append([condition, dataset, str(step), *cells, n, seeds + OTHERS * (seed == ACROSS)])
    columns = ["condition", "data", "step", *metrics, "n", "seeds"]
    return Table(title, columns, body, detectable_rows(columns, body, metrics if paired else ()))


def _rank(metric: str) -> tuple[int, str]:
    starts = [i for i, start in enumerate(ORDER) if metric.startswith(start)]
    return (max(starts) if starts else len(ORDER), metric)


def _cell(r: Record | None) -> str | Cell:
    if r is None:
        return ""
    digits = DIGITS.get(r["metric"].partition("_minus:")[0], 3)
    return Cell(r["value"], r["ci_low"], r["ci_high"], digits)


def detectable_rows(columns: Sequence[str], rows: Sequence[Row], differences: Collection[str]) -> list[Row]:
    """The foot of a table that begins with condition and data: a row for each data set.

    Args:
      columns: Of the table.
      rows: Of the table; of each data set the least certain count.
      differences: Columns that hold differences, which are told from zero and not from another row.
    """
    foot: list[Row] = []
    for dataset in dict.fromkeys(str(row[1]) for row in rows):
        mine = [row for row in rows if row[1] == dataset]
        cells = [
            _detectable([row[i] for row in mine], paired=column in differences)
            for i, column in enumerate(columns)
        ]
        if any(isinstance(cell, Cell) for cell in cells):
            foot.append([DETECTABLE, dataset, *cells[2:]])
    return foot


def _detectable(cells: Sequence[str | Cell], *, paired: bool) -> str | Cell:
    """Of differences the widest; of values the two widest, as if they were independent."""
    widths, digits = [0.0], 0
    for cell in cells:
        if isinstance(cell, Cell) and cell.low is not None and cell.high is not None:
            widths.append(cell.high - cell.low)
            digits = cell.digits
    first, second = sorted(widths, reverse=True)[:2] if len(widths) > 1 else (0.0, 0.0)
    if first < 1e-9 or (second < 1e-9 and not paired):
        return ""  # a single problem, or a single row, says nothing of chance
    return Cell(minimum_detectable(0.0, first if paired else math.hypot(first, second)), digits=digits)


def ranking_tables(records: Sequence[Record]) -> list[Table]:
    """The conditions of the fixes in their order; no table where nothing was pooled."""
    figures = {
        f"{JUDGE} accuracy": (JUDGE, "accuracy"),
        "minus base": (JUDGE, "accuracy_minus:base"),
        "minus SDPO": (JUDGE, "accuracy_minus:sdpo"),
        "k3 accuracy": ("k3", "accuracy"),
        f"{JUDGE} length": (JUDGE, "length"),
        f"{JUDGE} words": (JUDGE, "words"),
        f"{JUDGE} finished": (JUDGE, "finished"),
    }
    body: list[Row] = []
    for standing in standings(records):
        condition = standing.condition
        found = [select_difference(records, FIXES, condition, *figure) for figure in figures.values()]
        cells = [_cell(curve[-1] if curve else None) for curve in found]
        seeds = ", ".join(f"{value:.2f}" for value in by_seed(records, condition))
        body.append([standing.place, condition, *cells, seeds])
    head = ["rank", "condition", *figures, f"{JUDGE} by seed"]
    return [Table(RANKING, head, body, _ranking_foot(head, body))] if body else []


GROUPED = {
    "class": "By class of token, at the last steps",
    "tenth": "By tenth of the response, over all steps",
    "fifth": "By fifth of tokens by the student's entropy, over all steps",
}
GROUP_COLUMNS = ("condition", "group", "share of tokens", "share of signal", "divergence", "n")
MOVED = "Words that rise and fall"
LEVEL = 0.05  # of adjusted p-values


@dataclass(frozen=True)
class Word:
    """What is known of a word under a condition: the base's rate, its change, its adjusted p-value, its z."""

    word: str
    listed: bool
    base: Record
    change: Record
    p: Record
    z: Record


def words_of(records: Sequence[Record], condition: str, dataset: str) -> list[Word]:
    """The words that were compared with the base, those that rise most first."""
    found: dict[str, dict[str, Record]] = {}
    for r in records:
        kind, _, word = r["metric"].partition(":")
        if kind.startswith("word_") and (r["section"], r["condition"], r["dataset"]) == (
            ATTRIBUTION,
            condition,
            dataset,
        ):
            found.setdefault(word, {})[kind.removeprefix("word_")] = r
    words = [Word(word, word in WORDS, **parts) for word, parts in found.items() if len(parts) == 4]
    return sorted(words, key=lambda w: (-w.change["value"], w.word))


def attribution_tables(records: Sequence[Record]) -> list[Table]:
    """Signal and divergence by groups of tokens; and the words that were compared with the base."""
    conditions = sorted({r["condition"] for r in records}, key=condition_rank)
    tables = []
    for grouping, title in GROUPED.items():
        body: list[Row] = []
        for condition in conditions:
            for group in GROUPINGS[grouping]:
                metrics = [f"{measure}:{grouping}:{group}" for measure in MEASURES]
                found = [select(records, ATTRIBUTION, condition, "train", metric) for metric in metrics]
                if found[0]:
                    cells = [_cell(curve[-1] if curve else None) for curve in found]
                    body.append([condition, group, *cells, str(found[0][-1]["n"])])
        if body:
            tables.append(Table(title, list(GROUP_COLUMNS), body))
    moved: list[Row] = []
    for condition in conditions:
        for dataset in sorted({r["dataset"] for r in records} - {"train"}):
            for w in words_of(records, condition, dataset):
                kind = "list" if w.listed else "data"
                cells = [
                    _cell(w.base),
                    _cell(w.change),
                    Cell(w.p["value"], digits=4),
                    Cell(w.z["value"], digits=1),
                ]
                moved.append([condition, dataset, w.word, kind, *cells, str(w.change["n"])])
    if moved:
        head = ["condition", "data", "word", "from", "base", "change", "adjusted p", "z", "n"]
        tables.append(Table(MOVED, head, moved))
    return tables


def probe_tables(records: Sequence[Record]) -> list[Table]:
    """A table of each probe: a row for each model and control."""
    tables = []
    for probe in measured(records):
        if found := contrasts(records, probe):
            title = name(probe.arm)
            rows = [_contrast_row(c) for c in found]
            tables.append(Table(title[0].upper() + title[1:], list(PROBE_COLUMNS), rows))
    return tables


def _contrast_row(c: Contrast) -> Row:
    cells = [_cell(c.ours), _cell(c.theirs), _cell(c.difference), Cell(c.detectable), _cell(c.length)]
    return [c.model, name(c.control), *cells, str(c.ours["n"])]


def _ranking_foot(columns: Sequence[str], rows: Sequence[Row]) -> list[Row]:
    cells = [
        _detectable([row[i] for row in rows], paired=column.startswith("minus"))
        for i, column in enumerate(columns)
    ]
    return [["", DETECTABLE, *cells[2:]]]


def to_csv(table: Table) -> str:
    """The table as CSV, the smallest detectable differences last; a number's bounds follow it."""
    numeric = [
        any(isinstance(row[i], Cell) for row in [*table.rows, *table.foot]) for i in range(len(table.columns))
    ]
    head: list[str] = []
    for column, is_number in zip(table.columns, numeric, strict=True):
        head += [column, f"{column} low", f"{column} high"] if is_number else [column]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head)
    for row in [*table.rows, *table.foot]:
        line: list[object] = []
        for cell, is_number in zip(row, numeric, strict=True):
            if isinstance(cell, Cell):
                line += [cell.value, cell.low, cell.high]
            else:
                line += [cell, "", ""] if is_number else [cell]
        writer.writerow(line)
    return stream.getvalue()
