"""The page of several runs side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

from sdistill.analysis.comparison import contrasts, last_values
from sdistill.analysis.records import DIFFERENCES, Record
from sdistill.report import figures, markup, prose
from sdistill.report.claims import Claim
from sdistill.report.lookup import SECTIONS, integer_seeds, name
from sdistill.report.markup import badge, escape
from sdistill.report.page import document, figure, summary_of, traces_section
from sdistill.report.runs import Run
from sdistill.report.tables import DIGITS, Cell, Row, Table, detectable_rows
from sdistill.report.traces import Packed

Cells = Mapping[str, Mapping[tuple[str, str], Record]]
"""Metric → (condition, data set) → the record of the last step."""

CAPTION = "Accuracy at the last step of each run, with 95 % intervals over problems within its seeds."


def comparison_page(
    runs: Sequence[Run], tables: Mapping[str, Sequence[Table]], traces: Packed, svgs: Mapping[str, str]
) -> str:
    """The HTML of a page about several runs.

    Args:
      runs: What to compare; the others with the first.
      tables: Section → its tables, as `section_comparisons` makes them; `runs` for those of the settings.
      traces: Responses of all.
      svgs: Section → its figure.
    """
    parts = {"runs": _titled("runs", "Runs", "".join(map(markup.table, tables["runs"])))}
    headings = {"runs": "Runs", "traces": "Traces"}
    if any(prose.studies_paper(run.records) for run in runs):
        parts["claims"] = _titled("claims", "Claims", _claims(runs))
        headings["claims"] = "Claims"
    for section, found in tables.items():
        if section != "runs":
            headings[section] = prose.HEADINGS[section]
            drawn = figure(svgs[section], CAPTION) if section in svgs else ""
            body = drawn + markup.read("comparison.html") + "".join(map(markup.table, found))
            parts[section] = _titled(section, headings[section], body)
    parts["traces"] = traces_section(traces)
    first = runs[0].name
    return document(
        title=f"{len(runs)} runs compared",
        about=f"Differences are of each other run minus {first}.",
        summary="".join(map(_summary, runs)),
        notes=[f"{run.name}: {note}" for run in runs for note in run.notes],
        headings=headings,
        parts=parts,
        traces=traces,
    )


def _summary(run: Run) -> str:
    """A run in a sentence, and its findings about fixes in a list."""
    sentence = prose.headline(run.claims) if prose.studies_paper(run.records) else "Fixes on harder problems:"
    return summary_of(f"{run.name}: {sentence}", [escape(line) for line in prose.fixes_findings(run.records)])


def _titled(identity: str, heading: str, body: str) -> str:
    return f'<section id="{identity}"><h2>{escape(heading)}</h2>{body}</section>'


def run_tables(runs: Sequence[Run]) -> list[Table]:
    """What the runs are, and which of their settings differ."""
    rows: list[Row] = []
    for run in runs:
        environment = run.settings.get("environment.json", {})
        sections = [s for s in prose.HEADINGS if any(r["section"] == s for r in run.records)]
        seeds = ", ".join(map(str, integer_seeds(run.records))) or "none"
        commit = str(environment.get("commit", "–"))[:12]
        rows.append(
            [run.name, seeds, ", ".join(sections) or "none", commit, str(environment.get("jax", "–"))]
        )
    settings = [_flat(run.settings.get("config.json", {})) for run in runs]
    changed: list[Row] = []
    for key in sorted({key for values in settings for key in values}):
        found = [str(values.get(key, "–")) for values in settings]
        if len(set(found)) > 1:
            changed.append([key, *found])
    names = [run.name for run in runs]
    tables = [Table("What they are", ["run", "seeds", "sections", "commit", "jax"], rows)]
    return tables + [Table("Settings that differ", ["setting", *names], changed)] * bool(changed)


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level. In: {"a": {"b": 1}, "c": [2]}. Out: {"a.b": 1, "c": [2]}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items() if isinstance(settings, Mapping) else ():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def section_comparisons(runs: Sequence[Run]) -> dict[str, list[Table]]:
    """Section → a table of each metric, of the sections that at least two runs have in common."""
    tables = {}
    for section in prose.HEADINGS:
        cells = [{m: last_values(run.records, section, m) for m in DIFFERENCES} for run in runs]
        shared = [key for key in cells[0]["accuracy"] if any(key in c["accuracy"] for c in cells[1:])]
        if shared:
            found = [_contrasts(runs, cells, key) for key in shared]
            tables[section] = [
                _metric_table(metric, runs, cells, shared, [c[metric] for c in found])
                for metric in DIFFERENCES
            ]
    return tables


def _contrasts(
    runs: Sequence[Run], cells: Sequence[Cells], key: tuple[str, str]
) -> dict[str, list[tuple[str | Cell, bool]]]:
    """Metric → for each run after the first, the contrast with the first and whether it is paired."""
    sides = [
        (run.path, {m: c[m][key] for m in DIFFERENCES if key in c[m]})
        for run, c in zip(runs, cells, strict=True)
    ]
    found: dict[str, list[tuple[str | Cell, bool]]] = {metric: [] for metric in DIFFERENCES}
    for side in sides[1:]:
        contrast = contrasts(sides[0], side) if "accuracy" in side[1] else {}
        for metric in DIFFERENCES:
            c = contrast.get(metric)
            cell = Cell(c.value, c.low, c.high, DIGITS[metric]) if c else ""
            found[metric].append((cell, c is not None and c.paired))
    return found


def _metric_table(
    metric: str,
    runs: Sequence[Run],
    cells: Sequence[Cells],
    keys: Sequence[tuple[str, str]],
    differences: Sequence[Sequence[tuple[str | Cell, bool]]],
) -> Table:
    rows: list[Row] = []
    for key, found in zip(keys, differences, strict=True):
        values: Row = []
        for c in cells:
            r = c[metric].get(key)
            values.append(Cell(r["value"], r["ci_low"], r["ci_high"], DIGITS[metric]) if r else "")
        paired = "yes" if all(p for _, p in found) else "no"
        rows.append([*key, *values, *(cell for cell, _ in found), paired])
    names = [run.name for run in runs]
    minus = [f"{other} minus {names[0]}" for other in names[1:]]
    title = prose.UNITS[metric]
    columns = ["condition", "data", *names, *minus, "paired"]
    return Table(title[0].upper() + title[1:], columns, rows, detectable_rows(columns, rows, minus))


def draw_comparison(runs: Sequence[Run], sections: Sequence[str]) -> dict[str, figures.Figure]:
    """Section → figure of the accuracies of all runs."""
    return {
        section: figures.runs({run.name: last_values(run.records, section, "accuracy") for run in runs})
        for section in sections
    }


def _claims(runs: Sequence[Run]) -> str:
    """A row for each claim, a column for each run."""
    judged = [run.claims for run in runs]
    head = "".join(f'<th scope="col">{escape(run.name)}</th>' for run in runs)
    rows, section = [], ""
    for claims in zip(*judged, strict=True):
        if claims[0].section != section:
            section = claims[0].section
            span = f'colspan="{len(runs) + 1}" scope="colgroup"'
            rows.append(f"<tr><th {span}>{escape(SECTIONS[section])}</th></tr>")
        text = claims[0].text
        cells = "".join(f"<td>{_verdict(claim)}</td>" for claim in claims)
        rows.append(f"<tr><td>{escape(text[0].upper() + text[1:])}</td>{cells}</tr>")
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Claims"><table class="matrix"><thead>'
        f'<tr><th scope="col">Claim</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _verdict(claim: Claim) -> str:
    lines = "".join(
        f"<small>{escape(name(e.comparison.condition))}: {escape(prose.measured(e))}</small>"
        for e in claim.evidence
    )
    return f"{badge(claim.outcome)}{lines}"
