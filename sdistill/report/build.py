"""Run directories in, one self-contained page out; figures and tables as files beside it.

    python -m sdistill.report DIR              # DIR/report.html and DIR/report/, tables on the terminal
    python -m sdistill.report DIR DIR --out F  # several runs compared: F/report.html and F/report/

The page needs nothing but itself: style, script, figures and traces are inside, and it makes no request.
Whatever comes from a run is escaped. A run that was interrupted is reported as far as it got, and what is
missing is named. How to read the page: docs/report.md.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from sdistill.report.comparison import (
    comparison_page,
    draw_comparison,
    run_tables,
    section_comparisons,
)
from sdistill.report.exports import export_figures, export_run, export_table
from sdistill.report.page import draw, run_page
from sdistill.report.runs import Run, read_runs
from sdistill.report.terminal import print_section, print_tables
from sdistill.report.traces import embed
from sdistill.storage import write_atomically

__all__ = ["print_section", "write_comparison", "write_report"]

PAGE, FILES = "report.html", "report"


def write_report(run: Run) -> Path:
    """Writes a run's page and its files into its directory; returns the path of the page."""
    svgs = export_figures(draw(run.records), run.path / FILES)
    export_run(run, run.path / FILES)
    page = run_page(run, embed([run]), svgs)
    write_atomically(run.path / PAGE, page.encode())
    return run.path / PAGE


def write_comparison(runs: Sequence[Run], out: Path) -> Path:
    """Writes a page about several runs, and its files, into `out`; returns the path of the page."""
    tables = {"runs": run_tables(runs), **section_comparisons(runs)}
    figures = draw_comparison(runs, [section for section in tables if section != "runs"])
    svgs = export_figures(figures, out / FILES)
    page = comparison_page(runs, tables, embed(runs), svgs)
    for section, found in tables.items():
        for table in found:
            export_table(table, section, out / FILES)
    write_atomically(out / PAGE, page.encode())
    return out / PAGE


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: the report of one run, with its tables on the terminal, or of several side by side."""
    parser = argparse.ArgumentParser(prog="python -m sdistill.report", description=main.__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="DIR", help="directory of a study")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the page of several runs is written")
    args = parser.parse_args(argv)
    if (len(args.runs) > 1) != (args.out is not None):
        parser.error(
            "--out goes with several runs and only with them: one run's page is in its own directory"
        )
    try:
        runs = read_runs(args.runs)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    if len(runs) > 1:
        print(write_comparison(runs, args.out))
        return
    print_tables(runs[0], Console())
    print(write_report(runs[0]))
