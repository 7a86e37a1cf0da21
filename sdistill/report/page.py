"""The page of one run."""

import base64
import hashlib
import json
from collections.abc import Sequence

from sdistill.analysis.attribution import ATTRIBUTION
from sdistill.analysis.probes import PROBES
from sdistill.analysis.records import Record
from sdistill.report import attribution, figures, markup, probes, prose
from sdistill.report.claims import Claim
from sdistill.report.evidence import MARGIN, Evidence
from sdistill.report.lookup import SECTIONS, integer_seeds
from sdistill.report.markup import badge, escape, fill
from sdistill.report.runs import SETTINGS, Run
from sdistill.report.tables import PROBE_COLUMNS, RANKING, section_tables
from sdistill.report.traces import Packed


def run_page(run: Run, traces: Packed, svgs: dict[str, str]) -> str:
    """The HTML of a run's page.

    Args:
      run: What to report.
      traces: Its responses.
      svgs: Its figures by name, as `draw` makes them.
    """
    records, claims = run.records, run.claims
    about_paper = prose.studies_paper(records)
    title = "Fixes for self-distillation: one run, ranked"
    if PROBES in prose.shown_sections(records):
        title = "What doubt does in reasoning: one run of causal probes"
    summary = fixes_summary(records) + probes_summary(records)
    parts = {section: _section(section, records, svgs) for section in prose.shown_sections(records)}
    headings = {section: prose.HEADINGS[section] for section in parts}
    if about_paper:
        title = "Why does self-distillation degrade reasoning? One run, claim by claim"
        summary = claims_summary(claims) + summary
        parts = {"claims": claims_section(claims), **parts}
        headings = {"claims": "Claims", **headings}
    parts["traces"] = traces_section(traces)
    if about_paper:
        parts["built-in"] = markup.read("built_in.html")
        headings["built-in"] = "What is built in, and what is measured"
    parts["settings"] = settings_section(run)
    return document(
        title=title,
        about=f"Run {run.name}, seeds: {', '.join(map(str, integer_seeds(records))) or 'none'}.",
        summary=summary,
        notes=run.notes,
        headings=headings | {"traces": "Traces", "settings": "Settings"},
        parts=parts,
        traces=traces,
    )


def document(
    *,
    title: str,
    about: str,
    summary: str,
    notes: Sequence[str],
    headings: dict[str, str],
    parts: dict[str, str],
    traces: Packed,
) -> str:
    """A whole page around its sections; `summary` and `parts` are HTML, all else is text.

    The page's policy lets it run its own script, and load nothing.
    """
    script = markup.read("viewer.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    contents = "".join(f'<a href="#{part}">{escape(headings[part])}</a>' for part in parts)
    return fill(
        "report.html",
        title=escape(title),
        about=escape(about),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        style=markup.read("report.css") + markup.read("viewer.css"),
        contents=contents,
        summary=summary,
        notes=markup.notices(notes),
        sections="\n\n".join(parts.values()),
        data=traces.data,
        script=script,
    )


def draw(records: Sequence[Record]) -> dict[str, "figures.Figure"]:
    """The figures of the sections that were run, by name."""
    measured = {r["section"] for r in records}
    plots = [
        plot
        for section in prose.shown_sections(records)
        for plot in figures.FIGURES[section]
        if section in measured
    ]
    return {plot.name: plot.draw(records) for plot in plots}


def claims_summary(claims: Sequence[Claim]) -> str:
    """What held in a sentence, and what did not in a list, each with its figures."""
    lines = [
        f"{badge(claim.outcome)} {escape(claim.text)}<small>{escape(rests_on)}</small>"
        for claim, rests_on in prose.exceptions(claims)
    ]
    return summary_of(prose.headline(claims), lines)


def fixes_summary(records: Sequence[Record]) -> str:
    """Which fixes are better and which worse, if any were run."""
    lines = [escape(finding) for finding in prose.fixes_findings(records)]
    return (
        summary_of("Accuracy of the fixes on problems harder than those trained on:", lines) if lines else ""
    )


def probes_summary(records: Sequence[Record]) -> str:
    """What each probe says, if any were made."""
    lines = [escape(finding) for finding in probes.findings(records)]
    return summary_of("Accuracy under causal probes, on harder problems:", lines) if lines else ""


def summary_of(sentence: str, lines: Sequence[str]) -> str:
    """A sentence, and lines of HTML in a list below it."""
    items = "".join(f"<li>{line}</li>" for line in lines)
    return f'<p class="summary">{escape(sentence)}</p>' + (
        f'<ul class="findings">{items}</ul>' if items else ""
    )


def claims_section(claims: Sequence[Claim]) -> str:
    """Every claim with its verdict and what it rests on."""
    scales = _scales(claims)
    rows, section = [], ""
    for claim in claims:
        if claim.section != section:
            section = claim.section
            rows.append(f'<tr><th colspan="3" scope="colgroup">{escape(SECTIONS[section])}</th></tr>')
        lines = [_evidence(e, scales) for e in claim.evidence]
        more = "".join(_evidence(e, scales) for e in claim.also)
        also = f"<details><summary>More figures, not part of the verdict</summary><ul>{more}</ul></details>"
        note = f'<p class="note">{escape(claim.note)}</p>' if claim.note else ""
        rows.append(
            f"<tr><td>{badge(claim.outcome)}</td><td>{escape(claim.text[0].upper() + claim.text[1:])}</td>"
            f"<td><ul>{''.join(lines)}</ul>{note}{also if more else ''}</td></tr>"
        )
    tally = " ".join(f"{badge(outcome)} {count}" for outcome, count in prose.counts(claims).items())
    return fill("claims.html", tally=tally, claims="".join(rows), margin=MARGIN)


def _scales(claims: Sequence[Claim]) -> dict[str, float]:
    """Metric → the largest bound of any difference, so that lines of one metric can be compared."""
    scales: dict[str, float] = {}
    for claim in claims:
        for e in (*claim.evidence, *claim.also):
            sizes = [abs(b) for b in (e.value, e.low, e.high) if b is not None]
            scales[e.comparison.metric] = max(scales.get(e.comparison.metric, 1e-9), *sizes)
    return scales


def _evidence(e: Evidence, scales: dict[str, float]) -> str:
    remark = prose.remarks(e)
    return (
        f"<li>{markup.forest(e.value, e.low, e.high, scales[e.comparison.metric])}"
        f"<span>{escape(prose.compared(e))} <b>{escape(prose.measured(e))}</b> "
        f"{f'<small>({escape(remark)})</small>' if remark else ''}</span></li>"
    )


def _section(section: str, records: Sequence[Record], svgs: dict[str, str]) -> str:
    heading = f'<section id="{section}"><h2>{escape(prose.HEADINGS[section])}</h2>'
    marks = markup.notices(prose.missing(section, records))
    tables = section_tables(section, records)
    if not tables:
        return f"{heading}{marks}</section>"
    ranking = ""
    if tables[0].title == RANKING:
        ranking = fill("ranking.html", table=markup.table(tables.pop(0)))
    if section == PROBES:
        shown = [table for table in tables if tuple(table.columns) == PROBE_COLUMNS]
        tables = tables[len(shown) :]
        words = "".join(f"<li>{escape(line)}</li>" for line in probes.words_named(records))
        ranking = fill("probes.html", tables="".join(map(markup.table, shown)), words=words)
    if section == ATTRIBUTION:
        marks += markup.notices(attribution.not_measured(records))
        words = "".join(f"<li>{escape(line)}</li>" for line in attribution.words_moved(records))
        ranking = fill("attribution.html", words=words)
    drawn = "".join(figure(svgs[plot.name], plot.caption) for plot in figures.FIGURES[section])
    note = markup.read("tables.html")
    rest = "".join(map(markup.table, tables))
    return (
        f"{heading}{marks}{ranking}{drawn}<details><summary>Tables</summary>{note}{rest}</details></section>"
    )


def figure(svg: str, caption: str) -> str:
    """A figure with its caption, which is also what a screen reader says of it."""
    text = escape(caption)
    box = f'<div class="scroll" tabindex="0" role="img" aria-label="{text}">{svg}</div>'
    return f'<figure role="group">{box}<figcaption>{text}</figcaption></figure>'


def traces_section(traces: Packed) -> str:
    """The viewer, or why there is none."""
    if not traces.traces:
        missing = markup.notices(["No generations were kept.", *traces.notes])
        return f'<section id="traces"><h2>Traces</h2>{missing}</section>'
    which = (
        "all problems" if traces.problems is None else f"the first {traces.problems} problems of each file"
    )
    return fill("viewer.html", count=f"{traces.traces:,}", which=which, notes=markup.notices(traces.notes))


def settings_section(run: Run) -> str:
    """The settings as they were written down."""
    blocks = []
    for file, title in SETTINGS.items():
        if file in run.settings:
            text = json.dumps(run.settings[file], indent=1, ensure_ascii=False)
            blocks.append(f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>")
    return f'<section id="settings"><h2>Settings and versions</h2>{"".join(blocks)}</section>'
