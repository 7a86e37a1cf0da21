"""The pages, made of the templates in `assets`, which escape whatever comes from a run."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from sdistill.analysis.probes import PROBES
from sdistill.report import prose
from sdistill.report.claims import MARGIN, Claim, Outcome
from sdistill.report.figures import FIGURES, caption
from sdistill.report.lookup import HEADINGS, name
from sdistill.report.runs import SETTINGS, Run
from sdistill.report.tables import Cell, Table, section_tables
from sdistill.report.traces import Packed
from sdistill.types import Condition

ASSETS = Path(__file__).parent / "assets"
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(ASSETS),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
TEMPLATES.globals |= {
    "prose": prose,
    "name": name,
    "HEADINGS": HEADINGS,
    "MARGIN": MARGIN,
    "Outcome": Outcome,
}
TEMPLATES.tests["numeric"] = lambda cell: isinstance(cell, Cell)
TEMPLATES.filters["text"] = lambda cell: name(cell) if isinstance(cell, Condition) else cell


def render(parts: Mapping[str, tuple[str, str]], traces: Packed, **values: Any) -> str:
    """A whole page, whose policy lets it run its own script and load nothing.

    Args:
      parts: Id of each part → its name in the contents, and its template.
      traces: Responses.
      values: What `report.html` and the templates of the parts need besides.
    """
    style, script = _read("report.css") + _read("viewer.css"), _read("viewer.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return TEMPLATES.get_template("report.html").render(
        values,
        parts=parts,
        traces=traces,
        style=style,
        script=script,
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
    )


def _read(asset: str) -> str:
    return (ASSETS / asset).read_text(encoding="utf-8")


def run_page(run: Run, traces: Packed, svgs: Mapping[str, str]) -> str:
    """The HTML of a run's page, with its responses, and its figures by the name of the plot."""
    index, sections = run.index, prose.shown_sections(run.index)
    parts = {section: (HEADINGS[section], "section.html") for section in sections}
    parts["traces"] = ("Traces", "viewer.html")
    summaries: list[tuple[str, Sequence[str | tuple[Claim, str]]]] = [
        ("Accuracy of the fixes on problems harder than those trained on:", prose.fixes_findings(index)),
        ("Accuracy under causal probes, on harder problems:", prose.probe_findings(index)),
    ]
    summaries = [(sentence, lines) for sentence, lines in summaries if lines]
    title = "Fixes for self-distillation: one run, ranked"
    if PROBES in sections:
        title = "Epistemic words in reasoning: one run of causal probes"
    if prose.studies_paper(index):
        title = "Why does self-distillation degrade reasoning? One run, claim by claim"
        summaries.insert(0, (prose.headline(run.claims), prose.exceptions(run.claims)))
        parts = {"claims": ("Claims", "claims.html"), **parts}
        parts["built-in"] = ("What is built in, and what is measured", "built_in.html")
    parts["settings"] = ("Settings", "settings.html")
    outcomes = [claim.outcome for claim in run.claims]
    tables: dict[str, list[Table]] = {section: section_tables(section, index) for section in sections}
    return render(
        parts,
        traces,
        title=title,
        about=f"Run {run.name}, seeds: {', '.join(map(str, index.seeds)) or 'none'}.",
        summaries=summaries,
        notes=run.notes,
        index=index,
        claims=run.claims,
        tally={outcome: outcomes.count(outcome) for outcome in Outcome if outcome in outcomes},
        scales=_scales(run.claims),
        tables=tables,
        figures={
            section: [(svgs[plot.__name__], caption(plot)) for plot in FIGURES[section]]
            for section in sections
            if tables[section]
        },
        settings={
            title: json.dumps(run.settings[file], indent=1, ensure_ascii=False)
            for file, title in SETTINGS.items()
            if file in run.settings
        },
    )


def _scales(claims: Sequence[Claim]) -> dict[str, float]:
    """Metric → half the width of the axis of its differences, which makes them comparable."""
    scales: dict[str, float] = {}
    for e in (e for claim in claims for e in (*claim.evidence, *claim.also)):
        sizes = [abs(bound) for bound in (e.point.value, e.point.low, e.point.high) if bound is not None]
        scales[e.comparison.metric] = max(scales.get(e.comparison.metric, 1e-9), *sizes)
    return scales
