"""Figures and tables of a report as files, for papers and spreadsheets."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from sdistill.report import drawing, prose
from sdistill.report.claims import Claim
from sdistill.report.runs import Run
from sdistill.report.tables import Table, section_tables, to_csv
from sdistill.storage import write_atomically


def export_run(run: Run, folder: Path) -> None:
    """Writes every table and the claims as CSV."""
    for section in prose.shown_sections(run.records):
        for table in section_tables(section, run.records):
            export_table(table, section, folder)
    if prose.studies_paper(run.records):
        write_atomically(folder / "claims.csv", claims_csv(run.claims).encode())


def export_figures(figures: Mapping[str, Figure], folder: Path) -> dict[str, str]:
    """Writes figures as `name.svg` and `name.pdf`; returns them as SVG elements for a page."""
    svgs = {}
    for name, figure in figures.items():
        svgs[name] = drawing.to_svg(figure)
        figure.set_layout_engine("none")  # everything keeps its place; finding it takes as long as drawing
        write_atomically(folder / f"{name}.svg", f'<?xml version="1.0"?>\n{svgs[name]}'.encode())
        write_atomically(folder / f"{name}.pdf", drawing.to_pdf(figure))
    return svgs


def export_table(table: Table, section: str, folder: Path) -> None:
    """Writes a table as `section-title.csv`."""
    slug = re.sub(r"[^a-z0-9]+", "_", table.title.partition(",")[0].lower()).strip("_")[:80]
    write_atomically(folder / f"{section}-{slug}.csv", to_csv(table).encode())


def claims_csv(claims: Sequence[Claim]) -> str:
    """One line for each difference that a claim rests on; one for a claim without any."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["section", "claim", "verdict", "difference", "value", "low", "high", "detectable", "paired"]
    )
    for claim in claims:
        start = [claim.section, claim.text, claim.outcome]
        for e in claim.evidence:
            writer.writerow([*start, prose.compared(e), e.value, e.low, e.high, e.detectable, e.paired])
        if not claim.evidence:
            writer.writerow(start)
    return stream.getvalue()
