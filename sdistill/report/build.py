"""Writes pages, figures and tables to files, and prints tables on the terminal."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from sdistill.report import comparison, drawing, figures, prose, tables
from sdistill.report.claims import Claim, Outcome
from sdistill.report.lookup import HEADINGS, Index
from sdistill.report.page import run_page
from sdistill.report.runs import Run
from sdistill.report.tables import Cell, Row, Table, section_tables
from sdistill.report.traces import embed
from sdistill.storage import write_atomically
from sdistill.types import Condition

PAGE, FILES = "report.html", "report"


def write_report(run: Run) -> Path:
    """Writes a run's page and its files into its directory; returns the path of the page."""
    index, folder = run.index, run.path / FILES
    sections = prose.shown_sections(index)
    plots = [plot for section in sections if section in index.sections for plot in figures.FIGURES[section]]
    svgs = export_figures({plot.__name__: plot(index) for plot in plots}, folder)
    for section in sections:
        export_tables(section_tables(section, index), f"{section}-", folder)
    if prose.studies_paper(index):
        export_tables([claims_table(run.claims)], "", folder)
    write_atomically(run.path / PAGE, run_page(run, embed([run]), svgs).encode())
    return run.path / PAGE


def write_comparison(runs: Sequence[Run], out: Path) -> Path:
    """Writes a page about several runs, and its files, into `out`; returns the path of the page."""
    sections = comparison.section_comparisons(runs)
    values = {
        s: {run.name: comparison.last_values(run.index, s, "accuracy") for run in runs} for s in sections
    }
    svgs = export_figures({section: figures.runs(found) for section, found in values.items()}, out / FILES)
    contents = {"runs": comparison.run_tables(runs), **sections}
    for section, found in contents.items():
        export_tables(found, f"{section}-", out / FILES)
    page = comparison.comparison_page(runs, contents, embed(runs), svgs)
    write_atomically(out / PAGE, page.encode())
    return out / PAGE


def export_figures(drawn: Mapping[str, Figure], folder: Path) -> dict[str, str]:
    """Writes figures as `name.svg` and `name.pdf`; returns them as SVG elements for a page."""
    svgs = {}
    for name, figure in drawn.items():
        svgs[name] = drawing.to_svg(figure)
        figure.set_layout_engine("none")  # the layout is final, and finding it takes as long as drawing
        write_atomically(folder / f"{name}.svg", f'<?xml version="1.0"?>\n{svgs[name]}'.encode())
        write_atomically(folder / f"{name}.pdf", drawing.to_pdf(figure))
    return svgs


def export_tables(found: Sequence[Table], prefix: str, folder: Path) -> None:
    """Writes tables as CSV files, named after their titles."""
    for table in found:
        slug = re.sub(r"[^a-z0-9]+", "_", table.title.lower()).strip("_")[:80]
        write_atomically(folder / f"{prefix}{slug}.csv", tables.to_csv(table).encode())


def claims_table(claims: Sequence[Claim]) -> Table:
    """One row for each difference that decides a claim; one for a claim without any."""
    rows: list[Row] = []
    for claim in claims:
        numbers: list[Row] = [
            [prose.compared(e), tables.cell(e.point), Cell(e.point.detectable), "yes" if e.paired else "no"]
            for e in claim.evidence
        ]
        rows += [[claim.section, claim.text, str(claim.outcome), *row] for row in numbers or [[""] * 4]]
    columns = ["section", "claim", "verdict", "comparison", "difference", "detectable", "paired"]
    return Table("claims", columns, rows)


def print_tables(run: Run, console: Console) -> None:
    """Prints the tables of every section that was run, then the verdicts on the claims."""
    for section in prose.shown_sections(run.index):
        print_section(section, run.index, console)
    if prose.studies_paper(run.index):
        colours = {Outcome.REPRODUCED: "green", Outcome.NOT_REPRODUCED: "red"}
        verdicts = RichTable("claim of the paper", "verdict", box=box.SIMPLE_HEAD, show_edge=False)
        for claim in run.claims:
            verdicts.add_row(Text(claim.text), Text(claim.outcome, colours.get(claim.outcome, "")))
        console.print(Text(f"\n{prose.headline(run.claims)}", style="bold"))
        console.print(verdicts)


def print_section(section: str, index: Index, console: Console) -> None:
    """Prints the tables of one section that a terminal has room for, numbers ± half their interval."""
    for table in section_tables(section, index):
        columns = [i for i, column in enumerate(table.columns) if column in table.printed]
        numeric = [i for i in columns if any(isinstance(row[i], Cell) for row in table.rows)]
        if not numeric:
            continue
        shown = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for i in columns:
            header = table.columns[i].removeprefix("num_").replace("_per_", "\nper ")
            shown.add_column(header, justify="right" if i in numeric else "left", no_wrap=True)
        for rows, style in ((table.rows, None), (table.foot, "dim")):
            shown.add_section()
            for row in rows:
                shown.add_row(*(_text(row[i]) for i in columns), style=style)
        title = f"\n{HEADINGS[section]}: {table.title[0].lower()}{table.title[1:]}"
        console.print(Text(title, style="bold"))
        console.print(shown)


def _text(cell: str | Condition | Cell) -> Text:
    if not isinstance(cell, Cell):
        return Text(cell.label if isinstance(cell, Condition) else cell)
    text = prose.number(cell.value, cell.digits)
    if cell.low is not None and cell.high is not None:
        text += " ±" + prose.number((cell.high - cell.low) / 2, cell.digits)
    return Text(text)
