"""The tables of a report for the terminal: those that matter most, ± half the interval."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from sdistill.analysis.records import Record
from sdistill.report.evidence import Outcome
from sdistill.report.markup import number
from sdistill.report.prose import HEADINGS, headline, shown_sections, studies_paper
from sdistill.report.ranking import JUDGE
from sdistill.report.runs import Run
from sdistill.report.tables import (
    DIGITS,
    GROUPED,
    PROBE_COLUMNS,
    RANKING,
    VALUES,
    Cell,
    Table,
    minus,
    section_tables,
)

TITLES = {RANKING, VALUES, minus("base"), minus("unguided")}
COLUMNS = {"condition", "data", *DIGITS} - {"words_substring"}
RANKING_COLUMNS = COLUMNS | {"rank", f"{JUDGE} accuracy", "minus base", "minus SDPO"}


def print_section(section: str, records: Sequence[Record], console: Console) -> None:
    """Prints the values of one section and their differences to its reference."""
    for table in section_tables(section, records):
        known = RANKING_COLUMNS if table.title == RANKING else COLUMNS
        is_whole = tuple(table.columns) == PROBE_COLUMNS or table.title == GROUPED["class"]
        kept = [i for i, column in enumerate(table.columns) if is_whole or column in known]
        if (is_whole or table.title in TITLES) and any(
            isinstance(row[i], Cell) for row in table.rows for i in kept
        ):
            title = f"\n{HEADINGS[section]}: {table.title[0].lower()}{table.title[1:]}"
            console.print(Text(title, style="bold"))
            console.print(_rich_table(table, kept))


def _rich_table(table: Table, columns: Sequence[int]) -> RichTable:
    shown = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for i in columns:
        numeric = any(isinstance(row[i], Cell) for row in table.rows)
        header = table.columns[i].replace("_per_", "\nper ")
        shown.add_column(header, justify="right" if numeric else "left", no_wrap=True)
    for row in table.rows:
        shown.add_row(*(_text(row[i]) for i in columns))
    if table.foot:
        shown.add_section()
    for row in table.foot:
        shown.add_row(*(_text(row[i]) for i in columns), style="dim")
    return shown


def _text(cell: str | Cell) -> Text:
    if isinstance(cell, str):
        return Text(cell)
    text = number(cell.value, cell.digits)
    if cell.low is not None and cell.high is not None:
        text += " ±" + number((cell.high - cell.low) / 2, cell.digits)
    return Text(text)


def print_tables(run: Run, console: Console) -> None:
    """Prints the tables of every section that was run, then the verdicts on the claims."""
    for section in shown_sections(run.records):
        print_section(section, run.records, console)
    if not studies_paper(run.records):
        return
    colours = {Outcome.REPRODUCED: "green", Outcome.NOT_REPRODUCED: "red"}
    verdicts = RichTable("claim of the paper", "verdict", box=box.SIMPLE_HEAD, show_edge=False)
    for claim in run.claims:
        verdicts.add_row(Text(claim.text), Text(claim.outcome, colours.get(claim.outcome, "")))
    console.print(Text(f"\n{headline(run.claims)}", style="bold"))
    console.print(verdicts)
