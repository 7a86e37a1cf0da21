"""The page of one run, and the HTML that all pages are made of.

Whatever comes from a run is escaped here, and nowhere else is HTML made of text.
"""

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template

from sdistill.analysis.attribution import ATTRIBUTION
from sdistill.analysis.probes import PROBES
from sdistill.report import figures, prose
from sdistill.report.claims import MARGIN, Claim, Evidence
from sdistill.report.lookup import HEADINGS, PAPER, Index, name
from sdistill.report.runs import SETTINGS, Run
from sdistill.report.tables import PROBE_COLUMNS, RANKING, Cell, Row, Table, section_tables
from sdistill.report.traces import Packed
from sdistill.types import Condition

ASSETS = Path(__file__).parent / "assets"


# ── HTML ─────────────────────────────────────────────────────────────────────────────────────────


def escape(value: object) -> str:
    """Text that is safe in an element and in a quoted attribute."""
    return html.escape(str(value))


def read(asset: str) -> str:
    """The text of an asset."""
    return (ASSETS / asset).read_text(encoding="utf-8")


def fill(asset: str, **values: object) -> str:
    """The text of an asset with its `$names` replaced."""
    return Template(read(asset)).substitute(values)


def badge(text: str) -> str:
    """A verdict in its colour."""
    return f'<span class="badge {escape(text.replace(" ", "-"))}">{escape(text)}</span>'


def notices(sentences: Iterable[str]) -> str:
    """Sentences on what is missing, one paragraph each."""
    return "".join(f'<p class="missing">{escape(sentence)}</p>' for sentence in sentences)


def items(lines: Iterable[str]) -> str:
    """Texts as the items of a list."""
    return "".join(f"<li>{escape(line)}</li>" for line in lines)


def summary(sentence: str, listed: str) -> str:
    """A sentence, and items of a list below it."""
    findings = f'<ul class="findings">{listed}</ul>' if listed else ""
    return f'<p class="summary">{escape(sentence)}</p>{findings}'


def section(identity: str, heading: str, body: str) -> str:
    """A section of a page."""
    return f'<section id="{identity}"><h2>{escape(heading)}</h2>{body}</section>'


def scrolling(role: str, label: str, content: str) -> str:
    """HTML in a box that scrolls sideways."""
    return f'<div class="scroll" tabindex="0" role="{role}" aria-label="{escape(label)}">{content}</div>'


def figure(svg: str, caption: str) -> str:
    """A figure with its caption, which screen readers also say of it."""
    image = scrolling("img", caption, svg)
    return f'<figure role="group">{image}<figcaption>{escape(caption)}</figcaption></figure>'


def table(content: Table) -> str:
    """A table under its title."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in content.columns)
    body, foot = ("".join(map(_row, rows)) for rows in (content.rows, content.foot))
    foot = f"<tfoot>{foot}</tfoot>" if foot else ""
    whole = f'<table class="data"><thead><tr>{head}</tr></thead><tbody>{body}</tbody>{foot}</table>'
    return f"<h3>{escape(content.title)}</h3>{scrolling('region', content.title, whole)}"


def _row(row: Row) -> str:
    cells = ""
    for cell in row:
        if isinstance(cell, Cell):
            value, bounds = (
                prose.number(cell.value, cell.digits),
                prose.interval(cell.low, cell.high, cell.digits),
            )
            cells += f'<td class="number">{value}<small>{bounds}</small></td>'
        else:
            cells += f"<td>{escape(name(cell) if isinstance(cell, Condition) else cell)}</td>"
    return f"<tr>{cells}</tr>"


def document(
    title: str, about: str, summary: str, notes: Sequence[str], parts: Mapping[str, str], traces: Packed
) -> str:
    """A whole page. `summary` and `parts`, sections by their ids, are HTML; all else is text.

    The page's policy lets it run its own script, and load nothing.
    """
    headings = HEADINGS | {"runs": "Runs", "claims": "Claims", "traces": "Traces", "settings": "Settings"}
    headings["built-in"] = "What is built in, and what is measured"
    script = read("viewer.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return fill(
        "report.html",
        title=escape(title),
        about=escape(about),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        style=read("report.css") + read("viewer.css"),
        contents="".join(f'<a href="#{part}">{escape(headings[part])}</a>' for part in parts),
        summary=summary,
        notes=notices(notes),
        sections="\n\n".join(parts.values()),
        data=traces.data,
        script=script,
    )


# ── The page of a run ────────────────────────────────────────────────────────────────────────────


def run_page(run: Run, traces: Packed, svgs: Mapping[str, str]) -> str:
    """The HTML of a run's page, with its responses, and its figures by the name of the plot."""
    index = run.index
    parts = {section: _section(section, index, svgs) for section in prose.shown_sections(index)}
    title = "Fixes for self-distillation: one run, ranked"
    if PROBES in parts:
        title = "Epistemic words in reasoning: one run of causal probes"
    findings = ""
    if lines := prose.fixes_findings(index):
        findings += summary("Accuracy of the fixes on problems harder than those trained on:", items(lines))
    if lines := prose.probe_findings(index):
        findings += summary("Accuracy under causal probes, on harder problems:", items(lines))
    parts["traces"] = traces_section(traces)
    if prose.studies_paper(index):
        title = "Why does self-distillation degrade reasoning? One run, claim by claim"
        listed = "".join(
            f"<li>{badge(claim.outcome)} {escape(claim.text)}<small>{escape(differences)}</small></li>"
            for claim, differences in prose.exceptions(run.claims)
        )
        findings = summary(prose.headline(run.claims), listed) + findings
        parts = {"claims": claims_section(run.claims), **parts, "built-in": read("built_in.html")}
    parts["settings"] = settings_section(run)
    about = f"Run {run.name}, seeds: {', '.join(map(str, index.seeds)) or 'none'}."
    return document(title, about, findings, run.notes, parts, traces)


def claims_section(claims: Sequence[Claim]) -> str:
    """Every claim with its verdict and the differences that decide it."""
    scales: dict[str, float] = {}  # metric → half the width of its axis, so that its intervals are comparable
    for e in (e for claim in claims for e in (*claim.evidence, *claim.also)):
        sizes = [abs(b) for b in (e.point.value, e.point.low, e.point.high) if b is not None]
        scales[e.comparison.metric] = max(scales.get(e.comparison.metric, 1e-9), *sizes)
    rows, section = "", ""
    for claim in claims:
        if claim.section != section:
            section = claim.section
            rows += f'<tr><th colspan="3" scope="colgroup">{escape(PAPER[section])}</th></tr>'
        deciding, more = (
            "".join(_evidence(e, scales[e.comparison.metric]) for e in found)
            for found in (claim.evidence, claim.also)
        )
        also = f"<details><summary>More figures, not part of the verdict</summary><ul>{more}</ul></details>"
        note = f'<p class="note">{escape(claim.note)}</p>' if claim.note else ""
        rows += (
            f"<tr><td>{badge(claim.outcome)}</td><td>{escape(prose.capitalized(claim.text))}</td>"
            f"<td><ul>{deciding}</ul>{note}{also if more else ''}</td></tr>"
        )
    tally = " ".join(f"{badge(outcome)} {count}" for outcome, count in prose.counts(claims).items())
    return fill("claims.html", tally=tally, claims=rows, margin=MARGIN)


def _evidence(e: Evidence, scale: float) -> str:
    """A difference: a dot with its interval, zero in the middle and ±`scale` at the edges, and in figures."""

    def x(bound: float) -> str:
        return f"{max(-1.0, min(1.0, bound / scale)) * 76 + 80:.1f}"

    p, line, remark = e.point, "", prose.remarks(e)
    if p.low is not None and p.high is not None:
        line = f'<line class="interval" x1="{x(p.low)}" x2="{x(p.high)}" y1="8" y2="8"/>'
    return (
        '<li><svg class="forest" viewBox="0 0 160 16" aria-hidden="true">'
        f'<line class="zero" x1="80" x2="80" y1="0" y2="16"/>{line}'
        f'<circle cx="{x(p.value)}" cy="8" r="3.5"/></svg>'
        f"<span>{escape(prose.compared(e))} <b>{escape(prose.measured(e))}</b> "
        f"{f'<small>({escape(remark)})</small>' if remark else ''}</span></li>"
    )


def _section(identity: str, index: Index, svgs: Mapping[str, str]) -> str:
    """A section of the study: what is missing, tables that stand above the figures, figures, other tables."""
    body, tables = notices(prose.missing(identity, index)), section_tables(identity, index)
    if not tables:
        return section(identity, HEADINGS[identity], body)
    if tables[0].title == RANKING:
        body += fill("ranking.html", table=table(tables.pop(0)))
    if identity == PROBES:
        of_probes = "".join(table(t) for t in tables if t.columns == PROBE_COLUMNS)
        tables = [t for t in tables if t.columns != PROBE_COLUMNS]
        body += fill("probes.html", tables=of_probes, words=items(prose.probe_words(index)))
    if identity == ATTRIBUTION:
        words = items(prose.word_changes(index))
        body += notices(prose.signal_missing(index)) + fill("attribution.html", words=words)
    for plot in figures.FIGURES[identity]:
        body += figure(svgs[plot.__name__], figures.caption(plot))
    rest = read("tables.html") + "".join(map(table, tables))
    return section(identity, HEADINGS[identity], f"{body}<details><summary>Tables</summary>{rest}</details>")


def traces_section(traces: Packed) -> str:
    """The viewer, or why there is none."""
    if not traces.count:
        return section("traces", "Traces", notices(["No responses were kept.", *traces.notes]))
    which = (
        "all problems" if traces.problems is None else f"the first {traces.problems} problems of each file"
    )
    return fill("viewer.html", count=f"{traces.count:,}", which=which, notes=notices(traces.notes))


def settings_section(run: Run) -> str:
    """The settings files of the run."""
    blocks = ""
    for file, title in SETTINGS.items():
        if file in run.settings:
            text = json.dumps(run.settings[file], indent=1, ensure_ascii=False)
            blocks += f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"
    return section("settings", "Settings and versions", blocks)
