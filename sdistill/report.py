"""A run directory in, one self-contained page out; the same tables for the terminal.

    python -m sdistill.report DIR     # writes DIR/report.html and prints the tables

The page needs nothing but itself: style and figures are inside, no script, no request. Whatever comes
from a run (responses, settings) is escaped. A run that was interrupted is reported as far as it got,
and what is missing is named.
"""

import argparse
import gzip
import html
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

KEYS = frozenset("section condition seed step dataset metric value n ci_low ci_high".split())
STYLE = Path(__file__).parent / "assets" / "report.css"
EPISTEMIC = re.compile(
    r"\b(wait|hmm|perhaps|maybe|actually|alternatively|seems|might|likely|check)\b", re.IGNORECASE
)
DIGITS = {"length": 1, "words": 2, "words_substring": 2, "bits_per_response": 2}  # others 3
ORDER = ("accuracy", "pass@", "maj@", "length", "words", "words_substring", "finished", "bits_per")
EXPECTED = {
    "richness": list(figures.CONTEXT_MARKS),
    "sft": list(figures.SFT_COLOURS),
    "on_policy": ["base", *figures.RUN_LINES],
    "coverage": ["base"],
}
TRACES = {  # section → conditions side by side, data sets in order of preference
    "richness": (("unguided", "answer", "solution"), ("walk",)),
    "on_policy": (("base", "grpo", "sdpo_answer_fixed", "sdpo_solution_fixed"), ("k4", "k3")),
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
    """A titled table; rows hold text and `Cell`s and are as long as `columns`."""

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
    """Known conditions in the paper's order, then runs of the coverage section by method and |D|."""
    known = list(NAMES)
    method, _, size = condition.partition("_")
    rank = known.index(condition) if condition in known else len(known)
    return rank, method, int(size) if size.isdecimal() else 10**9


def _cell(r: Record | None) -> str | Cell:
    if r is None:
        return ""
    digits = DIGITS.get(r["metric"].partition("_minus:")[0], 3)
    return Cell(r["value"], r["ci_low"], r["ci_high"], digits)


def _tabulate(title: str, records: Sequence[Record], lead: str, all_seeds: list[int]) -> Table:
    """One row for each condition, opponent, data set and seed, at its last step; a column a metric.

    `lead` names the column of what is subtracted, empty for values.
    """
    rows: dict[tuple[Any, ...], dict[str, Record]] = {}
    for r in records:
        metric, _, other = r["metric"].partition("_minus:")
        row = rows.setdefault((r["condition"], other, r["dataset"], r["seed"]), {})
        if metric not in row or r["step"] >= row[metric]["step"]:
            row[metric] = r
    metrics = sorted({metric for row in rows.values() for metric in row}, key=_rank)
    body: list[list[str | Cell]] = []
    for key in sorted(rows, key=lambda k: (_condition_rank(k[0]), k[2], k[1], str(k[3]))):
        condition, other, dataset, seed = key
        row = rows[key]
        step = max(r["step"] for r in row.values())
        current = {m: r for m, r in row.items() if r["step"] == step}
        seeds = ", ".join(map(str, all_seeds)) if seed == POOLED else str(seed)
        body.append(
            [
                name(condition),
                *([name(other)] if lead else []),
                dataset,
                str(step),
                *(_cell(current.get(m)) for m in metrics),
                str(max(r["n"] for r in current.values())),
                seeds,
            ]
        )
    columns = ["condition", *([lead] if lead else []), "data", "step", *metrics, "n", "seeds"]
    return Table(title, columns, body)


def section_tables(section: str, records: Sequence[Record]) -> list[Table]:
    """The tables of one section: values, paired differences, training metrics; each if it has rows.

    Rows are pooled over seeds. A section that was interrupted before pooling shows single seeds.
    """
    mine = [r for r in records if r["section"] == section]
    groups: dict[str, list[Record]] = {"values": [], "differences": [], "training": []}
    for r in mine:
        paired = "_minus:" in r["metric"]
        kind = "training" if r["dataset"] == "train" else "differences" if paired else "values"
        groups[kind].append(r)
    titles = {
        "values": ("Values at the last step", ""),
        "differences": ("Differences, paired by problem", "minus"),
        "training": ("Training metrics at the last step", ""),
    }
    tables = []
    for kind, rows in groups.items():
        pooled = [r for r in rows if r["seed"] == POOLED]
        title, lead = titles[kind]
        if rows:
            tables.append(_tabulate(title, pooled or rows, lead, integer_seeds(mine)))
    return tables


def _number(value: float | None, digits: int, sign: str = "-") -> str:
    return "–" if value is None else format(value, f"{sign}.{digits}f").replace("-", "−")


def print_section(section: str, records: Sequence[Record], console: Console) -> None:
    """Prints the tables of one section; ± is half the width of the interval."""
    for table in section_tables(section, records):
        shown = RichTable(title=f"{SECTIONS[section]}: {table.title.lower()}", title_justify="left")
        numeric = {i for row in table.rows for i, cell in enumerate(row) if isinstance(cell, Cell)}
        for i, column in enumerate(table.columns):
            shown.add_column(Text(column), justify="right" if i in numeric else "left")
        for row in table.rows:
            texts = []
            for cell in row:
                text = cell if isinstance(cell, str) else _number(cell.value, cell.digits)
                if isinstance(cell, Cell) and cell.low is not None and cell.high is not None:
                    text += " ±" + _number((cell.high - cell.low) / 2, cell.digits)
                texts.append(Text(text))
            shown.add_row(*texts)
        console.print(shown)


def print_tables(records: Sequence[Record], console: Console | None = None) -> None:
    """Prints the tables of every section that was run, then the verdicts on the claims."""
    console = console or Console()
    for section in SECTIONS:
        print_section(section, records, console)
    colours = {Outcome.REPRODUCED: "green", Outcome.NOT_REPRODUCED: "red"}
    verdicts = RichTable("claim of the paper", "verdict", title="Claims", title_justify="left")
    for claim in judge(records):
        verdicts.add_row(Text(claim.text), Text(claim.outcome, colours.get(claim.outcome, "")))
    console.print(verdicts)


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
    sentences = [f"On this run {held} of {measured} directions that the paper reports reproduced."]
    for outcome in (Outcome.NOT_REPRODUCED, Outcome.INCONCLUSIVE, Outcome.NOT_MEASURED):
        if texts[outcome]:
            label = outcome.capitalize()
            sentences.append(f"{label} ({len(texts[outcome])}): {'; '.join(texts[outcome])}.")
    return " ".join(sentences)


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
    return f"{_esc(text)}<b>{figure}</b> <small>{'; '.join(more)}</small>"


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
            f"<tr><td>{_esc(claim.text)}</td><td>{_badge(claim.outcome)}</td>"
            f"<td><ul>{''.join(lines)}</ul>{note}</td></tr>"
        )
    head = "<tr><th>The paper's claim</th><th>Verdict</th><th>Rests on (95 % interval)</th></tr>"
    return f'<table class="claims"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'


def _badge(text: str) -> str:
    return f'<span class="badge {text.replace(" ", "-")}">{_esc(text)}</span>'


def _html_table(table: Table) -> str:
    def td(cell: str | Cell) -> str:
        if isinstance(cell, str):
            return f"<td>{_esc(cell)}</td>"
        interval = _interval(cell.low, cell.high, cell.digits)
        return (
            f'<td class="number">{_number(cell.value, cell.digits)}<small>{interval}</small></td>'
        )

    head = "".join(f"<th>{_esc(column)}</th>" for column in table.columns)
    body = "".join(f"<tr>{''.join(map(td, row))}</tr>" for row in table.rows)
    return (
        f'<h3>{_esc(table.title)}</h3><div class="scroll"><table class="data">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _section(number: int, section: str, records: Sequence[Record]) -> str:
    mine = [r for r in records if r["section"] == section]
    heading = f'<section id="{section}"><h2>{SECTIONS[section]}</h2>'
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
    tables = "".join(map(_html_table, section_tables(section, records)))
    return f"{heading}{marks}{figure}<details><summary>Tables</summary>{tables}</details></section>"


def highlight(text: str) -> str:
    """Text as HTML with its epistemic words marked. In: `wait <b>`. Out: `<mark>wait</mark> &lt;b&gt;`."""
    pieces = EPISTEMIC.split(text)  # odd pieces are the words
    return "".join(f"<mark>{_esc(p)}</mark>" if i % 2 else _esc(p) for i, p in enumerate(pieces))


def _shorten(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    head, tail = limit * 2 // 3, limit // 3
    return f"{text[:head]}\n[… {len(text) - head - tail} characters …]\n{text[-tail:]}"


def _find(run_dir: Path, section: str, condition: str, dataset: str) -> Path | None:
    """The generations of the last step, of the lowest seed."""
    folder = run_dir / "generations" / section / condition
    found = [
        (-int(match[1]), int(match[2]), path)
        for path in folder.glob(f"seed*/{dataset}-*.jsonl.gz")
        if (match := re.search(r"seed(\d+)/[^/]*-(\d+)\.jsonl\.gz$", path.as_posix()))
    ]
    return max(found)[2] if found else None


def _trace(row: Mapping[str, Any], condition: str) -> str:
    verdict = "correct" if row["correct"] else "wrong"
    cut = ", cut off" if row["finish"] == "length" else ""
    words = len(EPISTEMIC.findall(row["response"]))
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


READING = f"""<p class="note">A direction is <i>reproduced</i> if the 95 % interval of the difference
lies wholly on the claimed side of zero, <i>not reproduced</i> if wholly on the other, else
<i>inconclusive</i>. Claims of no loss allow {MARGIN} of accuracy. Intervals are over problems, stratified
by seed, so they do not show how much another seed would differ: the figures by seed do. Nothing is
corrected for the number of claims. Trained runs are judged at their last step. Indented lines did not
enter the verdict. Data: k3 unseen problems of the trained difficulty, k4 harder ones, never trained on.
</p>"""

BUILT_IN = """<section><h2>What is built in, and what is measured</h2>
<p><b>Built in</b>, by the corpus that the base model of the signs puzzle learned from: confident words
go with few open candidates; a solved trace in the context is not verified again, a bare answer is
verified once. That a richer context makes this base shorter and surer is therefore a check of the
instrument, not a finding.</p>
<p><b>Measured</b>: everything that training does afterwards. What happens to accuracy, length and
uncertainty words, on trained, unseen and harder problems, after SFT on guided responses, after SDPO,
after GRPO and as |D| grows was put in nowhere.</p></section>"""


def _page(run_dir: Path, records: Sequence[Record]) -> Iterable[str]:
    claims = judge(records)
    title = "Why does self-distillation degrade reasoning? One run, claim by claim"
    seeds = ", ".join(map(str, integer_seeds(records))) or "none"
    yield '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield '<meta name="color-scheme" content="light dark">'
    yield f"<title>{title}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head>"
    yield f'<body><main><h1>{title}</h1><p class="summary">{_esc(summary(claims))}</p>'
    yield f'<p class="note">Run {_esc(run_dir.resolve().name)}, seeds {seeds}.</p>'
    yield f"<section><h2>Claims</h2>{_claims_table(claims)}{READING}</section>"
    for number, section in enumerate(SECTIONS, 1):
        yield _section(number, section, records)
    yield '<section id="traces"><h2>Sample traces</h2><p class="note">Chosen by position, not by'
    yield " outcome: the first problems that all conditions have. <mark>Epistemic words</mark> are"
    yield " marked.</p>"
    yield from (_trace_group(run_dir, section) for section in TRACES)
    yield f"</section>{BUILT_IN}<section><h2>Settings and versions</h2>"
    yield _json_block(run_dir / "config.json", "Settings")
    yield _json_block(run_dir / "environment.json", "Versions, devices, seeds")
    yield "</section></main></body></html>\n"


def write_report(run_dir: Path) -> Path:
    """Writes `report.html` into a run's directory and returns its path.

    Raises:
      FileNotFoundError, ValueError: as `read_records`.
    """
    page = "\n".join(_page(run_dir, read_records(run_dir)))
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
