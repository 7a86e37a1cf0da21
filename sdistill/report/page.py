"""The pages, made of the templates in `assets`, which escape whatever comes from a run."""

import base64
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from sdistill.analysis.probes import PROBES
from sdistill.report import prose
from sdistill.report.claims import MARGIN, Claim
from sdistill.report.figures import FIGURES, caption
from sdistill.report.lookup import HEADINGS, name
from sdistill.report.runs import SETTINGS, Run
from sdistill.report.tables import Cell, section_tables
from sdistill.report.traces import Packed
from sdistill.types import Condition

ASSETS = Path(__file__).parent / "assets"
STYLE = "".join((ASSETS / file).read_text(encoding="utf-8") for file in ("report.css", "viewer.css"))
SCRIPT = (ASSETS / "viewer.js").read_text(encoding="utf-8")
DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(ASSETS),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
TEMPLATES.tests["numeric"] = lambda cell: isinstance(cell, Cell)
TEMPLATES.filters |= {
    "text": lambda cell: name(cell) if isinstance(cell, Condition) else cell,
    "caption": caption,
    "json": functools.partial(json.dumps, indent=1, ensure_ascii=False),
}
TEMPLATES.globals |= {
    "policy": f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{DIGEST}'",
    "style": STYLE,
    "script": SCRIPT,
    "prose": prose,
    "name": name,
    "section_tables": section_tables,
    **{"HEADINGS": HEADINGS, "FIGURES": FIGURES, "SETTINGS": SETTINGS, "MARGIN": MARGIN},
}


def render(parts: Mapping[str, tuple[str, str]], **values: Any) -> str:
    """A whole page, whose policy lets it run its own script and load nothing.

    Args:
      parts: Id of each part → its name in the contents, and its template.
      values: What `report.html` and the templates of the parts need besides.
    """
    return TEMPLATES.get_template("report.html").render(values, parts=parts)


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
    return render(
        parts,
        traces=traces,
        title=title,
        about=f"Run {run.name}, seeds: {', '.join(map(str, index.seeds)) or 'none'}.",
        summaries=summaries,
        notes=run.notes,
        run=run,
        index=index,
        scales=_scales(run.claims),
        svgs=svgs,
    )


def _scales(claims: Sequence[Claim]) -> dict[str, float]:
    """Metric → half the width of the axis of its differences, which makes them comparable."""
    scales: dict[str, float] = {}
    for e in (e for claim in claims for e in (*claim.evidence, *claim.also)):
        sizes = [abs(bound) for bound in (e.point.value, e.point.low, e.point.high) if bound is not None]
        scales[e.comparison.metric] = max(scales.get(e.comparison.metric, 1e-9), *sizes)
    return scales
