"""Run directories in, one self-contained page out; figures and tables as files beside it.

    python -m sdistill.report DIR              # DIR/report.html and DIR/report/, tables on the terminal
    python -m sdistill.report DIR DIR --out F  # several studies: F/report.html and F/report/

Style, script, figures and responses are inside the page, and it makes no request. Whatever comes from a study
is escaped. An interrupted study is reported as far as it got, and what is missing is named. How to read the
page: docs/report.md.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from sdistill.report.build import print_tables, write_comparison, write_report
from sdistill.report.runs import read_runs


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the report of a study and prints its tables, or compares several studies on one page."""
    parser = argparse.ArgumentParser(prog="python -m sdistill.report", description=main.__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="DIR", help="directory of a study")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write the page of several studies")
    args = parser.parse_args(argv)
    if (len(args.runs) > 1) != (args.out is not None):
        parser.error(
            "--out goes with several studies and only with them: one study's page is in its own directory"
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


if __name__ == "__main__":
    main()
