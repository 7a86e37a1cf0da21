"""A run directory in, one self-contained page out; the same tables for the terminal.

    python -m sdistill.report DIR     # writes DIR/report.html and prints the tables

The page needs nothing but itself: style and figures are inside, no script, no request. Whatever
comes from a run (responses, settings) is escaped. A run that was interrupted is reported as far as
it got, and what is missing is named.
"""

import argparse
import gzip
import html
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from sdistill.analysis import figures
from sdistill.analysis.claims import (
    MARGIN,
    NAMES,
    POOLED,
    SECTIONS,
    Claim,
    Evidence,
    Outcome,
    Record,
    coverage_sizes,
    integer_seeds,
    judge,
    name,
)
from sdistill.analysis.epistemic import WHOLE_WORD
from sdistill.analysis.ranking import FIXES, JUDGE, against, by_seed, last, standings

VALUES = "Values at the last step"
RANKING = f"Ranked by accuracy on {JUDGE}, problems harder than those trained on"
HEADINGS = {**SECTIONS, FIXES: "Which fix keeps reasoning?"}
KEYS = {"section", "condition", "seed", "step", "dataset", "metric", "value", "n", "ci_low", "ci_high"}
ASSETS = Path(__file__).parent / "assets"
DIGITS = {"accuracy": 3, "length": 1, "words": 2, "words_substring": 2, "bits_per_response": 2}
TERMINAL_TABLES = {
    RANKING,
    VALUES,
    *(f"Minus {name(reference)}, paired by problem" for reference in ("base", "unguided")),
}
TERMINAL = {"condition", "data", *DIGITS} - {"words_substring"}
TERMINAL_RANKING = {"rank", f"{JUDGE} accuracy", "minus base", "minus SDPO"}
ORDER = ("accuracy", "pass@", "maj@", "length", "words", "words_substring", "finished", "bits_per")
EXPECTED = {
    "richness": list(figures.CONTEXT_MARKS),
    "sft": list(figures.SFT_COLOURS),
    "on_policy": ["base", *figures.RUN_LINES],
    "coverage": ["base"],
    FIXES: [*figures.FIX_LINES],
}
TRACES = {  # section → conditions side by side, data sets in order of preference
    "richness": (("unguided", "answer", "solution"), ("walk",)),
    "on_policy": (("base", "grpo", "sdpo_answer_fixed", "sdpo_solution_fixed"), ("k4_test", "k3_test")),
}
TRACE_PROBLEMS = 6
TRACE_CHARACTERS = 3000  # of a long response the first two thirds and the last third are shown


@dataclass(frozen=True)
class Cell:
    """A number with its 95 % interval (None without one) and the decimals it is shown with."""

    value: float | None
    low: float | None = None
    high: float | None = None
    digits: int = 3


@dataclass(frozen=True)
class Table:
    """A titled table; rows hold text (conditions by their key) and `Cell`s, one for each column."""

    title: str
    columns: list[str]
    rows: list[list[str | Cell]]


# ── Reading a run ────────────────────────────────────────────────────────────────────────────────


def read_records(run_dir: Path) -> list[Record]:
    """The records of a run. A last line cut short by an interruption is dropped.

    Raises:
      FileNotFoundError: if the directory holds no results.
      ValueError: naming the line, if one is not a record.
    """
    path = run_dir / "results.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"no results.jsonl in {run_dir}: not the directory of a study")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise ValueError(f"{path}:{number}: not JSON: {error}") from error
        if missing := KEYS - set(record):
            raise ValueError(f"{path}:{number}: record without {', '.join(sorted(missing))}")
        records.append(record)
    return records


def read_generations(path: Path) -> dict[str, dict[str, Any]]:
    """The first sample of every problem, in the file's order, as far as the file can be read."""
    first: dict[str, dict[str, Any]] = {}
    try:
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            for line in stream:
                row = json.loads(line)
                kept = first.setdefault(row["problem"], row)
                if row["sample"] < kept["sample"]:
                    first[row["problem"]] = row
    except (EOFError, OSError, zlib.error, json.JSONDecodeError):
        pass  # cut short by an interruption
    return first


# ── Tables ───────────────────────────────────────────────────────────────────────────────────────


def _rank(metric: str) -> tuple[int, str]:
    starts = [i for i, start in enumerate(ORDER) if metric.startswith(start)]
    return (max(starts) if starts else len(ORDER), metric)


def _condition_rank(condition: str) -> tuple[int, str, int]:
    """Known conditions in the paper's order, then those of the coverage section by |D|."""
    known = list(NAMES)
    method, _, size = condition.partition("_")
    rank = known.index(condition) if condition in known else len(known)
    return rank, method, int(size) if size.isdecimal() else 10**9


def _cell(r: Record | None) -> str | Cell:
    if r is None:
        return ""
    digits = DIGITS.get(r["metric"].partition("_minus:")[0], 3)
    return Cell(r["value"], r["ci_low"], r["ci_high"], digits)


def _tabulate(title: str, records: Sequence[Record], all_seeds: list[int]) -> Table:
    """One row for each condition, data set and seed, at its last step; a column for each metric."""
    rows: dict[tuple[str, str, str], dict[str, Record]] = {}
    for r in records:
        row = rows.setdefault((r["condition"], r["dataset"], str(r["seed"])), {})
        metric = r["metric"].partition("_minus:")[0]
        if metric not in row or r["step"] >= row[metric]["step"]:
            row[metric] = r
    metrics = sorted({metric for row in rows.values() for metric in row}, key=_rank)
    body: list[list[str | Cell]] = []
    for key in sorted(rows, key=lambda k: (_condition_rank(k[0]), k)):
        condition, dataset, seed = key
        step = max(r["step"] for r in rows[key].values())
        row = {m: r for m, r in rows[key].items() if r["step"] == step}
        cells = [_cell(row.get(m)) for m in metrics]
        n = str(max(r["n"] for r in row.values()))
        seeds = ", ".join(map(str, all_seeds)) or seed if seed == POOLED else seed
        body.append([condition, dataset, str(step), *cells, n, seeds])
    return Table(title, ["condition", "data", "step", *metrics, "n", "seeds"], body)


def section_tables(section: str, records: Sequence[Record]) -> list[Table]:
    """The tables of one section: values, paired differences, training metrics; each if it has rows.

    Rows are pooled over seeds; what was not pooled (training metrics, a condition that was
    interrupted) is shown seed by seed.
    """
    mine = [r for r in records if r["section"] == section]
    groups: dict[str, list[Record]] = {VALUES: []}
    for r in mine:
        title = VALUES
        if r["dataset"] == "train":
            title = "Training metrics at the last step"
        elif other := r["metric"].partition("_minus:")[2]:
            title = f"Minus {name(other)}, paired by problem"
        groups.setdefault(title, []).append(r)
    tables = ranking_tables(mine) if section == FIXES else []
    for title in sorted(groups, key=lambda t: (t.startswith("Training"), t != VALUES)):
        rows = groups[title]
        pooled = {r["condition"] for r in rows if r["seed"] == POOLED}
        shown = [r for r in rows if r["seed"] == POOLED or r["condition"] not in pooled]
        if shown:
            tables.append(_tabulate(title, shown, integer_seeds(mine)))
    return tables


def ranking_tables(records: Sequence[Record]) -> list[Table]:
    """The conditions of the fixes in their order; no table where nothing was pooled."""
    columns = {
        f"{JUDGE} accuracy": (JUDGE, "accuracy"),
        "minus base": (JUDGE, "accuracy_minus:base"),
        "minus SDPO": (JUDGE, "accuracy_minus:sdpo"),
        "k3 accuracy": ("k3", "accuracy"),
        f"{JUDGE} length": (JUDGE, "length"),
        f"{JUDGE} words": (JUDGE, "words"),
        f"{JUDGE} finished": (JUDGE, "finished"),
    }
    body: list[list[str | Cell]] = []
    for standing in standings(records):
        condition = standing.condition
        cells = [_cell(last(records, condition, *figure)) for figure in columns.values()]
        seeds = ", ".join(_number(value, 2) for value in by_seed(records, condition))
        body.append([standing.place, condition, *cells, seeds])
    head = ["rank", "condition", *columns, f"{JUDGE} by seed"]
    return [Table(RANKING, head, body)] if body else []


def _number(value: float | None, digits: int, sign: str = "-") -> str:
    return "–" if value is None else format(value, f"{sign}.{digits}f").replace("-", "−")


def print_section(section: str, records: Sequence[Record], console: Console) -> None:
    """Prints what matters most of one section: values and differences, ± half the interval."""
    for table in section_tables(section, records):
        if table.title not in TERMINAL_TABLES:
            continue
        ranked = table.title == RANKING
        kept = [i for i, c in enumerate(table.columns) if c in TERMINAL or (ranked and c in TERMINAL_RANKING)]
        if not ranked and not any(table.columns[i] in DIGITS for i in kept):
            continue
        shown = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for i in kept:
            numeric = any(isinstance(row[i], Cell) for row in table.rows)
            header = table.columns[i].replace("_per_", "\nper ")
            shown.add_column(header, justify="right" if numeric else "left", no_wrap=True)
        for row in table.rows:
            shown.add_row(*(_terminal(row[i]) for i in kept))
        console.print(Text(f"\n{HEADINGS[section]}: {table.title[0].lower()}{table.title[1:]}", style="bold"))
        console.print(shown)


def _terminal(cell: str | Cell) -> Text:
    if isinstance(cell, str):
        return Text(cell)
    text = _number(cell.value, cell.digits)
    if cell.low is not None and cell.high is not None:
        text += " ±" + _number((cell.high - cell.low) / 2, cell.digits)
    return Text(text)


def print_tables(records: Sequence[Record], console: Console | None = None) -> None:
    """Prints the tables of every section that was run, then the verdicts on the claims."""
    console = console or Console()
    for section in shown_sections(records):
        print_section(section, records, console)
    if not studies_paper(records):
        return
    colours = {Outcome.REPRODUCED: "green", Outcome.NOT_REPRODUCED: "red"}
    verdicts = RichTable("claim of the paper", "verdict", box=box.SIMPLE_HEAD, show_edge=False)
    claims = judge(records)
    for claim in claims:
        verdicts.add_row(Text(claim.text), Text(claim.outcome, colours.get(claim.outcome, "")))
    console.print(Text(f"\n{summary(claims).partition('. ')[0]}", style="bold"))
    console.print(verdicts)


def studies_paper(records: Sequence[Record]) -> bool:
    """Whether the run is about the paper's claims, and not of the fixes alone."""
    return not records or any(r["section"] in SECTIONS for r in records)


def shown_sections(records: Sequence[Record]) -> list[str]:
    """The paper's sections, run or not, if the run is about them; that of the fixes if it was run."""
    paper = list(SECTIONS) if studies_paper(records) else []
    return paper + [FIXES] * any(r["section"] == FIXES for r in records)


# ── The page ─────────────────────────────────────────────────────────────────────────────────────


def _esc(value: object) -> str:
    return html.escape(str(value))


def _interval(low: float | None, high: float | None, digits: int, sign: str = "-") -> str:
    if low is None or high is None:
        return ""
    return f"[{_number(low, digits, sign)}, {_number(high, digits, sign)}]"


def summary(claims: Sequence[Claim]) -> str:
    """What held and what did not, in plain words."""
    texts: dict[Outcome, list[str]] = {o: [] for o in Outcome}
    for claim in claims:
        texts[claim.outcome].append(claim.text)
    measured = len(claims) - len(texts[Outcome.NOT_MEASURED])
    if not measured:
        return "Nothing that the paper claims was measured in this run."
    held = len(texts[Outcome.REPRODUCED])
    sentences = [f"On this run {held} of {measured} measured directions of the paper were reproduced."]
    for outcome in (Outcome.NOT_REPRODUCED, Outcome.INCONCLUSIVE, Outcome.NOT_MEASURED):
        if texts[outcome]:
            label = outcome.capitalize()
            sentences.append(f"{label} ({len(texts[outcome])}): {'; '.join(texts[outcome])}.")
    return " ".join(sentences)


def fixes_summary(records: Sequence[Record]) -> str:
    """How each condition compares with the base and with SDPO on harder problems; empty if none does."""
    sentences = []
    for other in ("base", "sdpo"):
        words = {"above": "better than", "level": "not told apart from", "below": "worse than"}
        for side, conditions in against(records, other).items():
            if conditions:
                sentences.append(
                    f"{words[side].capitalize()} {name(other)}: {', '.join(map(name, conditions))}."
                )
    return f"Accuracy on harder problems, {JUDGE}. {' '.join(sentences)}" if sentences else ""


def _evidence(e: Evidence) -> str:
    c = e.comparison
    digits = DIGITS.get(c.metric, 3)
    where = "" if c.dataset == "walk" else f" on {c.dataset}"
    at = f", step {e.step}" if e.step else ""
    text = f"{c.metric}{where}{at}: {name(c.condition)} minus {name(c.other)} "
    figure = f"{_number(e.value, digits, '+')} {_interval(e.low, e.high, digits, '+')}"
    more = [] if e.paired else ["not paired"]
    if len(e.seeds) > 1:
        more.append("by seed " + ", ".join(_number(v, digits, "+") for v in e.seeds))
    remark = f"<small>({'; '.join(more)})</small>" if more else ""
    return f"{_esc(text)}<b>{figure}</b> {remark}"


def _claims_table(claims: Sequence[Claim]) -> str:
    rows = []
    section = ""
    for claim in claims:
        if claim.section != section:
            section = claim.section
            rows.append(f'<tr><th colspan="3" scope="colgroup">{SECTIONS[section]}</th></tr>')
        lines = [f"<li>{_evidence(e)}</li>" for e in claim.evidence]
        lines += [f'<li class="also">{_evidence(e)}</li>' for e in claim.also]
        note = f'<p class="note">{_esc(claim.note)}</p>' if claim.note else ""
        rows.append(
            f"<tr><td>{_esc(claim.text[0].upper() + claim.text[1:])}</td>"
            f"<td>{_badge(claim.outcome)}</td><td><ul>{''.join(lines)}</ul>{note}</td></tr>"
        )
    head = "<tr><th>The paper's claim</th><th>Verdict</th><th>Rests on (95 % interval)</th></tr>"
    return f'<table class="claims"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'


def _badge(text: str) -> str:
    return f'<span class="badge {text.replace(" ", "-")}">{_esc(text)}</span>'


def _html_table(table: Table) -> str:
    def td(column: str, cell: str | Cell) -> str:
        if isinstance(cell, str):
            text = name(cell) if column == "condition" else cell
            return f"<td>{_esc(text)}</td>"
        interval = _interval(cell.low, cell.high, cell.digits)
        return f'<td class="number">{_number(cell.value, cell.digits)}<small>{interval}</small></td>'

    head = "".join(f"<th>{_esc(column)}</th>" for column in table.columns)
    rows = ("".join(map(td, table.columns, row)) for row in table.rows)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<h3>{_esc(table.title)}</h3><div class="scroll"><table class="data">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _section(number: int, section: str, records: Sequence[Record]) -> str:
    mine = [r for r in records if r["section"] == section]
    heading = f'<section id="{section}"><h2>{HEADINGS[section]}</h2>'
    if not mine:
        return f'{heading}<p class="missing">Not measured in this run.</p></section>'
    missing = [name(c) for c in EXPECTED[section] if c not in {r["condition"] for r in mine}]
    if section == "coverage":
        missing += [m.upper() for m in ("sdpo", "grpo") if not coverage_sizes(records, m)]
    notes = [f"Not measured in this run: {', '.join(missing)}."] if missing else []
    if not any(r["seed"] == POOLED for r in mine):
        notes.append("Not pooled over seeds: no verdict, no figure; the tables show single seeds.")
    marks = "".join(f'<p class="missing">{_esc(note)}</p>' for note in notes)
    draw, caption = figures.FIGURES[section]
    figure = (
        f'<figure role="group"><div class="scroll">{figures.to_svg(draw(records))}</div>'
        f"<figcaption><b>Figure {number}.</b> {_esc(caption)} Bars and bands are 95 % intervals."
        "</figcaption></figure>"
    )
    tables = section_tables(section, records)
    ranking = ""
    if tables and tables[0].title == RANKING:
        ranking = _fill("ranking.html", table=_html_table(tables.pop(0)))
    rest = "".join(map(_html_table, tables))
    return f"{heading}{marks}{ranking}{figure}<details><summary>Tables</summary>{rest}</details></section>"


def highlight(text: str) -> str:
    """HTML with epistemic words marked. In: `wait <b>`. Out: `<mark>wait</mark> &lt;b&gt;`."""
    pieces = WHOLE_WORD.split(text)  # odd pieces are the words
    return "".join(f"<mark>{_esc(p)}</mark>" if i % 2 else _esc(p) for i, p in enumerate(pieces))


def _shorten(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    head, tail = limit * 2 // 3, limit // 3
    return f"{text[:head]}\n[… {len(text) - head - tail} characters …]\n{text[-tail:]}"


def _find(run_dir: Path, section: str, condition: str, dataset: str) -> Path | None:
    """The generations of the last step, of the lowest seed."""
    folder = run_dir / "runs" / section / condition
    found = [
        (-int(match[1]), int(match[2]), path)
        for path in folder.glob(f"seed*/{dataset}-*.jsonl.gz")
        if (match := re.search(r"seed(\d+)/[^/]*-(\d+)\.jsonl\.gz$", path.as_posix()))
    ]
    return max(found)[2] if found else None


def _trace(row: Mapping[str, Any], condition: str) -> str:
    verdict = "correct" if row["correct"] else "wrong"
    cut = ", cut off" if row["finish"] == "length" else ""
    words = len(WHOLE_WORD.findall(row["response"]))
    return (
        f'<article class="trace"><h4>{_esc(name(condition))} {_badge(verdict)}</h4>'
        f'<p class="prompt">{_esc(_shorten(row["prompt"], 600))}</p>'
        f"<p>{highlight(_shorten(row['response'], TRACE_CHARACTERS))}</p>"
        f"<footer>{row['length']} tokens{cut}, {words} epistemic words</footer></article>"
    )


def _trace_group(run_dir: Path, section: str) -> str:
    """The same problems under the conditions of `TRACES`, side by side."""
    conditions, datasets = TRACES[section]
    files = [{c: f for c in conditions if (f := _find(run_dir, section, c, d))} for d in datasets]
    chosen = max(files, key=len)
    heading = f"<h3>{SECTIONS[section]}</h3>"
    if not chosen:
        return f'{heading}<p class="missing">No generations were kept.</p>'
    rows = {c: read_generations(path) for c, path in chosen.items()}
    problems = [p for p in next(iter(rows.values())) if all(p in row for row in rows.values())]
    missing = [name(c) for c in conditions if c not in rows]
    sources = [f"{name(c)} ({f.parent.name}, {f.name.split('.')[0]})" for c, f in chosen.items()]
    parts = [heading, f'<p class="note">First samples of {_esc("; ".join(sources))}.</p>']
    if missing:
        parts.append(f'<p class="missing">No generations of {_esc(", ".join(missing))}.</p>')
    if not problems:
        parts.append('<p class="missing">No problem in common.</p>')
    for problem in problems[:TRACE_PROBLEMS]:
        cards = "".join(_trace(row[problem], c) for c, row in rows.items())
        parts.append(f'<h4 class="problem">{_esc(problem)}</h4><div class="traces">{cards}</div>')
    return "".join(parts)


def _json_block(path: Path, title: str) -> str:
    if not path.is_file():
        return f'<p class="missing">No {path.name} in this run.</p>'
    text = json.dumps(json.loads(path.read_text(encoding="utf-8")), indent=1, ensure_ascii=False)
    return f"<details><summary>{title}</summary><pre>{_esc(text)}</pre></details>"


def _fill(asset: str, **values: object) -> str:
    """The text of an asset with its `$names` replaced."""
    return Template((ASSETS / asset).read_text(encoding="utf-8")).substitute(values)


def _page(run_dir: Path, records: Sequence[Record]) -> str:
    claims = judge(records)
    sections = [_section(i, section, records) for i, section in enumerate(shown_sections(records), 1)]
    settings = (("config.json", "Settings"), ("environment.json", "Versions, devices, seeds"))

    title, found = "Fixes for self-distillation: one run, ranked", [fixes_summary(records)]
    if studies_paper(records):
        title = "Why does self-distillation degrade reasoning? One run, claim by claim"
        found.insert(0, summary(claims))
        traces = "\n".join(_trace_group(run_dir, section) for section in TRACES)
        sections.insert(0, _fill("claims.html", claims=_claims_table(claims), margin=MARGIN))
        sections.append(_fill("traces.html", traces=traces))
    return _fill(
        "report.html",
        title=title,
        run=_esc(run_dir.resolve().name),
        style=(ASSETS / "report.css").read_text(encoding="utf-8"),
        summary=_esc(" ".join(filter(None, found))),
        seeds=", ".join(map(str, integer_seeds(records))) or "none",
        sections="\n\n".join(sections),
        settings="\n".join(_json_block(run_dir / file, title) for file, title in settings),
    )


def write_report(run_dir: Path) -> Path:
    """Writes `report.html` into a run's directory and returns its path.

    Raises:
      FileNotFoundError, ValueError: as `read_records`.
    """
    page = _page(run_dir, read_records(run_dir))
    path = run_dir / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: writes the report of one run directory and prints its tables."""
    parser = argparse.ArgumentParser(prog="python -m sdistill.report", description=main.__doc__)
    parser.add_argument("run_dir", type=Path, metavar="DIR", help="directory of a study")
    run_dir = parser.parse_args(argv).run_dir
    try:
        records = read_records(run_dir)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    print_tables(records)
    print(write_report(run_dir))


if __name__ == "__main__":
    main()
