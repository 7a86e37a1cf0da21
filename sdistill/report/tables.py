"""The tables of a report: their contents, and the same as CSV."""

import csv
import io
import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from sdistill.analysis.attribution import ATTRIBUTION, GROUPINGS, MEASURES
from sdistill.analysis.measure import BASE
from sdistill.analysis.probes import PROBES
from sdistill.analysis.statistics import minimum_detectable
from sdistill.report.findings import RANKED_ON, contrasts, probes_made, standings, words_of
from sdistill.report.lookup import FIXES, SDPO, Index, Point, arm_name, name, rank, seeds
from sdistill.types import Condition, Measurement

VALUES = "Values at the last step"
TRAINING = "Training metrics at the last step"
DETECTABLE = "detectable difference"
BY_GROUP = {
    "class": "By class of token, at the last steps",
    "tenth": "By tenth of the response, over all steps",
    "fifth": "By fifth of tokens by the student's entropy, over all steps",
}
DIGITS = {
    "accuracy": 3,
    "length": 1,
    "num_epistemic": 2,
    "num_epistemic_substrings": 2,
    "bits_per_response": 2,
}
PRINTED = {"condition", "data", *DIGITS} - {"num_epistemic_substrings"}
ORDER = ("accuracy", "pass@", "maj@", "length", "num_epistemic", "finished", "bits_per")
OTHERS = " and others"  # the interval is over seeds too


@dataclass(frozen=True)
class Cell:
    """A number with its 95 % interval (None without one) and the decimals it is shown with."""

    value: float | None
    low: float | None = None
    high: float | None = None
    digits: int = 3


Row = list[str | Condition | Cell]


@dataclass(frozen=True)
class Table:
    """A titled table.

    Attributes:
      title: Unique in its section.
      columns: Their heads.
      rows: Texts, conditions and `Cell`s, one for each column.
      foot: For each data set the smallest difference between rows, or from zero in a table of differences,
        that these measurements would probably show (see `minimum_detectable`).
      printed: The columns that the terminal shows; without any, it leaves the table out.
      is_above: Whether a page shows it above the figures of its section, and not folded below them.
    """

    title: str
    columns: Sequence[str]
    rows: list[Row]
    foot: list[Row] = field(default_factory=list)
    printed: Collection[str] = ()
    is_above: bool = False


def cell(p: Point | None, metric: str = "") -> str | Cell:
    """A point with the decimals of its metric; empty without one."""
    return "" if p is None else Cell(p.value, p.low, p.high, DIGITS.get(metric, 3))


def minus(baseline: Condition) -> str:
    """The title of a table of differences to a baseline."""
    return f"Minus {name(baseline)}, paired by problem"


def section_tables(section: str, index: Index) -> list[Table]:
    """The tables of one section: values, paired differences, training metrics; each if it has rows.

    Rows are pooled over seeds; what was not pooled (training metrics, a condition that was interrupted) is
    shown seed by seed.
    """
    mine, tables = index.sections.get(section, []), list[Table]()
    if section == ATTRIBUTION:
        return _attribution_tables(index)
    if section == FIXES:
        tables = _ranking_tables(index)
    if section == PROBES:  # differences are in the tables of the probes, each with its own controls
        tables, mine = _probe_tables(index), [m for m in mine if m.baseline is None and m.group is None]
    groups: dict[str, list[Measurement]] = {VALUES: []}
    for m in mine:
        title = TRAINING if m.dataset == "train" else minus(m.baseline) if m.baseline else VALUES
        groups.setdefault(title, []).append(m)
    for title in sorted(groups, key=lambda t: (t == TRAINING, t != VALUES)):
        if shown := _best_pooled(groups[title]):
            tables.append(_tabulate(title, shown, seeds(mine)))
    return tables


def _best_pooled(measurements: Sequence[Measurement]) -> list[Measurement]:
    """Of each condition the measurements over problems and seeds, else over problems, else of each seed."""
    found: dict[Condition, set[int | str]] = {}
    for m in measurements:
        found.setdefault(m.condition, set()).add(m.seed)
    best = {c: next((seed for seed in ("any", "all") if seed in seeds), None) for c, seeds in found.items()}
    return [m for m in measurements if best[m.condition] in (None, m.seed)]


def _tabulate(title: str, measurements: Sequence[Measurement], all_seeds: list[int]) -> Table:
    """One row for each condition, data set and seed, at its last step; a column for each metric."""
    rows: dict[tuple[Condition, str, str], dict[str, Measurement]] = {}
    for m in sorted(measurements, key=lambda m: m.step):
        rows.setdefault((m.condition, m.dataset, str(m.seed)), {})[m.metric] = m

    def place(metric: str) -> tuple[int, str]:
        return next((i for i, start in enumerate(ORDER) if metric.startswith(start)), len(ORDER)), metric

    metrics = sorted({metric for row in rows.values() for metric in row}, key=place)
    body: list[Row] = []
    for condition, dataset, seed in sorted(rows, key=lambda k: (rank(k[0]), k[1:])):
        row = rows[condition, dataset, seed]
        step = max(m.step for m in row.values())
        at_step = {metric: m for metric, m in row.items() if m.step == step}
        numbers = {k: Cell(m.value, m.ci_low, m.ci_high, DIGITS.get(k, 3)) for k, m in at_step.items()}
        n = str(max((m.n for m in at_step.values() if m.n is not None), default=""))
        names = ", ".join(map(str, all_seeds)) if seed in ("all", "any") and all_seeds else seed
        cells = [numbers.get(metric, "") for metric in metrics]
        body.append([condition, dataset, str(step), *cells, n, names + OTHERS * (seed == "any")])
    columns = ["condition", "data", "step", *metrics, "n", "seeds"]
    foot = detectable_rows(columns, body, () if title in (VALUES, TRAINING) else metrics)
    is_printed = title in (VALUES, minus(BASE), minus(Condition("base", prompt="none")))
    return Table(title, columns, body, foot, printed=PRINTED if is_printed else ())


def detectable_rows(columns: Sequence[str], rows: Sequence[Row], differences: Collection[str]) -> list[Row]:
    """The foot of a table that begins with condition and data: a row for each data set.

    Args:
      columns, rows: Of the table; the least certain rows of each data set count.
      differences: Columns of differences, which are compared with zero and not with another row.
    """
    foot: list[Row] = []
    for dataset in dict.fromkeys(str(row[1]) for row in rows):
        cells = _detectable(columns, [row for row in rows if row[1] == dataset], differences)
        if any(isinstance(cell, Cell) for cell in cells):
            foot.append([DETECTABLE, dataset, *cells[2:]])
    return foot


def _detectable(columns: Sequence[str], rows: Sequence[Row], differences: Collection[str]) -> Row:
    """Of differences the widest; of values the two widest, as if they were independent."""
    found: Row = []
    for column, cells in zip(columns, zip(*rows, strict=True), strict=True):
        numbers = [c for c in cells if isinstance(c, Cell)]
        widths = [c.high - c.low for c in numbers if c.low is not None and c.high is not None]
        count = 1 if column in differences else 2
        widest = sorted(widths, reverse=True)[:count]
        # A single problem has an interval of no width; a single row of values has no other to compare with.
        is_defined = len(widest) == count and widest[-1] > 1e-9
        width = math.hypot(*widest)
        found.append(Cell(minimum_detectable(0.0, width), digits=numbers[0].digits) if is_defined else "")
    return found


def _ranking_tables(index: Index) -> list[Table]:
    """The conditions of the fixes in their order; no table where nothing was pooled."""
    columns: dict[str, tuple[str, str, Condition | None]] = {
        f"{RANKED_ON} accuracy": (RANKED_ON, "accuracy", None),
        "minus base": (RANKED_ON, "accuracy", BASE),
        "minus SDPO": (RANKED_ON, "accuracy", SDPO),
        "k3 accuracy": ("k3", "accuracy", None),
        **{f"{RANKED_ON} {m}": (RANKED_ON, m, None) for m in ("length", "num_epistemic", "finished")},
    }
    body: list[Row] = []
    for c, place in standings(index).items():
        row: Row = [place, c]
        for dataset, metric, baseline in columns.values():
            of = (FIXES, c, dataset, metric)
            row.append(cell(index.difference(*of, baseline) if baseline else index.last(*of), metric))
        points = [index.last(FIXES, c, RANKED_ON, "accuracy", seed=seed) for seed in index.seeds]
        body.append([*row, ", ".join(f"{p.value:.2f}" for p in points if p)])
    if not body:
        return []
    title = f"Ranked by accuracy on {RANKED_ON}, problems harder than those trained on"
    head = ["rank", "condition", *columns, f"{RANKED_ON} by seed"]
    foot = _detectable(head, body, ["minus base", "minus SDPO"])
    return [Table(title, head, body, [["", DETECTABLE, *foot[2:]]], printed=head[:5], is_above=True)]


def _attribution_tables(index: Index) -> list[Table]:
    """Signal and divergence by groups of tokens; and the words that were compared with the base."""
    conditions, tables = index.conditions(ATTRIBUTION), []
    columns = ["condition", "group", "share of tokens", "share of signal", "divergence", "n"]
    for grouping, title in BY_GROUP.items():
        body: list[Row] = []
        for c, group in itertools.product(conditions, GROUPINGS[grouping]):
            of = (ATTRIBUTION, c, "train")
            found = [index.last(*of, measure, group=f"{grouping}:{group}") for measure in MEASURES]
            body += [[c, group, *map(cell, found), str(found[0].n)]] if found[0] else []
        tables.append(Table(title, columns, body, printed=columns if grouping == "class" else ()))
    words: list[Row] = []
    datasets = sorted({m.dataset for m in index.sections.get(ATTRIBUTION, ())} - {"train"})
    for c, dataset in itertools.product(conditions, datasets):
        for w in words_of(index, c, dataset):
            numbers = (cell(w.base), cell(w.change), Cell(w.p, digits=4), Cell(w.z, digits=1))
            words.append([c, dataset, w.word, "list" if w.listed else "data", *numbers, str(w.change.n)])
    columns = ["condition", "data", "word", "from", "base", "change", "adjusted p", "z", "n"]
    tables.append(Table("Words that rise and fall", columns, words))
    return [table for table in tables if table.rows]


def _probe_tables(index: Index) -> list[Table]:
    """A table of each probe: a row for each model and control."""
    columns = ["condition", "control", "accuracy", "of control", "difference", "would find", "longer by", "n"]
    tables = []
    for probe in probes_made(index):
        rows: list[Row] = []
        for c in contrasts(index, probe):
            accuracies = map(cell, (c.ours, c.theirs, c.difference))
            others = (Cell(c.difference.detectable), cell(c.length, "length"), str(c.ours.n))
            rows.append([c.model, arm_name(c.control), *accuracies, *others])
        tables.append(Table(arm_name(probe.arm).capitalize(), columns, rows, printed=columns, is_above=True))
    return [table for table in tables if table.rows]


def to_csv(table: Table) -> str:
    """The table as CSV, the smallest detectable differences last; a number's bounds follow it."""
    columns: list[Sequence[object]] = []
    for head, *cells in zip(table.columns, *table.rows, *table.foot, strict=True):
        texts = [c.label if isinstance(c, Condition) else c for c in cells]
        if any(isinstance(c, Cell) for c in texts):
            numbers = [(c.value, c.low, c.high) if isinstance(c, Cell) else (c, "", "") for c in texts]
            columns += zip((head, f"{head} low", f"{head} high"), *numbers, strict=True)
        else:
            columns.append([head, *texts])
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(zip(*columns, strict=True))
    return stream.getvalue()
