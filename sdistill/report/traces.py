"""The responses that a report shows, packed small enough to be inside the page.

Of every condition and data set the last step of the lowest seed is taken. If that is too much, the first
problems are kept, the same number of each file, so that responses to the same problems can be compared.
Rollouts of training, which may all be of one problem, are kept from the first on, the same number of each
file.
"""

import base64
import gzip
import itertools
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sdistill.analysis.attribution import ATTRIBUTION
from sdistill.analysis.epistemic import WORDS, count_words
from sdistill.analysis.measure import BASE
from sdistill.report.lookup import HEADINGS, ON_POLICY, SFT, name, rank
from sdistill.report.runs import Run
from sdistill.storage import responses_files
from sdistill.types import Condition

MAX_TRACES = 20_000  # in a page
MAX_BYTES = 5_000_000  # of compressed traces: base64 makes 6.7 MB of it
MAX_CHARACTERS = 60_000_000  # read in all: what a browser decompresses and parses in about a second
MAX_RESPONSE = 400_000  # characters of one response
TRAIN = "train"  # files of rollouts are named after it
REQUIRED = {"problem", "text", "correct", "length"}
Row = dict[str, Any]
"""A response as it is on disk (`types.Response`); another version may have written it."""


class Source(NamedTuple):
    """A file of responses. Its directory has the condition's label, which may be unknown to this version."""

    run: str
    section: str
    label: str
    dataset: str
    seed: int
    step: int
    path: Path
    condition: Condition | None = None


@dataclass(frozen=True)
class Packed:
    """Traces ready for a page.

    Attributes:
      data: JSON, gzipped, in base64. Its layout is documented in `pack`.
      count: Number of traces.
      problems: Largest number of problems kept of a file; None for all.
      notes: Which files could not be read to their end, in sentences.
    """

    data: str
    count: int
    problems: int | None
    notes: tuple[str, ...]


def sources(run: Run) -> list[Source]:
    """The files to show: for each condition and data set the last step of the lowest seed."""
    measured = (m.condition for found in run.index.sections.values() for m in found)
    conditions = {c.label: c for c in (BASE, *SFT, *ON_POLICY, *measured)}
    folders = (run.path / "runs").glob("*/*/seed[0-9]*")
    last: dict[tuple[str, str, str], Source] = {}
    for folder in sorted(folders, key=lambda folder: -int(folder.name[4:])):
        section, label, seed = folder.parts[-3:]
        for (dataset, step), path in responses_files(folder).items():  # by step
            of = (run.name, section, label, dataset, int(seed[4:]), step, path)
            last[section, label, dataset] = Source(*of, conditions.get(label))
    order = [section for section in HEADINGS if section != ATTRIBUTION]

    def place(s: Source) -> tuple[Any, ...]:
        known = (0, rank(s.condition)) if s.condition else (1, s.label)
        return order.index(s.section), known, s.dataset == TRAIN, s.dataset

    return sorted((source for source in last.values() if source.section in order), key=place)


def read_rows(path: Path, characters: int) -> tuple[list[Row], bool, bool]:
    """The first responses of a file, up to this many characters.

    Returns:
      The responses; whether there are more; whether the rest could not be read, because an interruption cut
      the file short or it holds something else.
    """
    rows: list[Row] = []
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as stream:
            for line in stream:
                if characters <= 0:
                    return rows, True, False
                row = json.loads(line)
                if not isinstance(row, dict) or not row.keys() >= REQUIRED:
                    return rows, False, True
                rows.append(row)
                characters -= len(line)
    except (EOFError, OSError, zlib.error, ValueError):
        return rows, False, True
    return rows, False, False


def embed(runs: Sequence[Run]) -> Packed:
    """Reads and packs the traces of runs, within the limits above."""
    files = [source for run in runs for source in sources(run)]
    read, cut, limit, rollouts = [], [], None, None
    for source in files:
        rows, more, broken = read_rows(source.path, MAX_CHARACTERS // len(files))
        read.append((source, rows))
        if more and source.dataset != TRAIN:  # the last problem may lack samples
            limit = min(limit or len(rows), max(1, len({row["problem"] for row in rows}) - 1))
        if broken:
            cut.append(source.path.relative_to(source.path.parents[4]).as_posix())
    note = f"Cut short, or of another version, and read as far as possible: {', '.join(cut)}."
    while True:
        kept = [
            (source, rows[:rollouts] if source.dataset == TRAIN else first_problems(rows, limit))
            for source, rows in read
        ]
        evaluated = [{row["problem"] for row in rows} for s, rows in kept if s.dataset != TRAIN]
        problems = max(map(len, evaluated), default=0)
        sampled = max((len(rows) for s, rows in kept if s.dataset == TRAIN), default=0)
        count, is_smallest = sum(len(rows) for _, rows in kept), max(problems, sampled) <= 1
        share = MAX_TRACES / max(count, 1)
        if share >= 1 or is_smallest:  # packing takes the most time
            data = gzip.compress(json.dumps(pack(kept), separators=(",", ":")).encode(), 6, mtime=0)
            share = MAX_BYTES / len(data)
            if share >= 1 or is_smallest:
                return Packed(base64.b64encode(data).decode(), count, limit, (note,) if cut else ())
        limit, rollouts = (max(1, int(0.97 * share * n)) for n in (problems, sampled))


def first_problems(rows: Sequence[Row], limit: int | None) -> list[Row]:
    """The rows of the first `limit` problems; None for all."""
    first = set(itertools.islice(dict.fromkeys(row["problem"] for row in rows), limit))
    return [row for row in rows if row["problem"] in first]


def pack(files: Iterable[tuple[Source, Sequence[Row]]]) -> dict[str, Any]:
    """Traces column by column, which compresses best.

    Returns:
      `words`, which the viewer marks; `scale`, the divergence that has the full colour; `groups`, one for
      each file; `texts`, each prompt, context, problem and feedback once; and `traces`, equally long columns.
      Those for `group`, `problem`, `prompt`, `context` and `feedback` are indices, and -1 stands for none.
    """
    texts: dict[str, int] = {}

    def index(text: object) -> int:
        return -1 if text in (None, "") else texts.setdefault(str(text), len(texts))

    groups: list[dict[str, Any]] = []
    traces: dict[str, list[Any]] = {"group": []}
    for number, (source, rows) in enumerate(files):
        groups.append(_group(source))
        for row in rows:
            tokens, divergence = _by_token(row)
            epistemic = row.get("num_epistemic")
            trace = {
                "group": number,
                **{key: index(row.get(key)) for key in ("problem", "prompt", "context", "feedback")},
                "step": row.get("step", source.step),
                "sample": row.get("sample", 0),
                "correct": int(row["correct"]),
                "finish": row.get("finish", "stop"),
                "length": row["length"],
                "num_epistemic": count_words(row["text"]) if epistemic is None else epistemic,
                "text": _shorten(row["text"]) if tokens is None else "",
                "tokens": tokens,
                "divergence": divergence,
            }
            for key, value in trace.items():
                traces.setdefault(key, []).append(value)
    # The 99th percentile of sizes has the full colour: a few large ones must not fade all others.
    sizes = sorted(abs(value) for values in traces.get("divergence", ()) for value in values or ())
    scale = sizes[int(0.99 * (len(sizes) - 1))] if sizes else 0.0
    return {"words": WORDS, "scale": scale, "groups": groups, "texts": [*texts], "traces": traces}


def _group(source: Source) -> dict[str, Any]:
    """The viewer's data about a file. `role` decides which responses are shown side by side."""
    c, role = source.condition, ""
    if c == BASE:
        role = "base"
    elif c and source.section == "richness" and c.prompt:
        role = c.prompt if c.prompt in ("none", "solution") else "guided"
    return {
        "run": source.run,
        "section": source.section,
        "condition": source.label,
        "name": name(c) if c else source.label,
        "role": role,
        "dataset": source.dataset.removesuffix("_test"),
        "seed": source.seed,
    }


def _by_token(row: Mapping[str, Any]) -> tuple[list[str] | None, list[float] | None]:
    """Tokens and divergences of a row; None if it lacks them, or their lengths differ."""
    found = row.get("attribution") or {}
    tokens, divergence = found.get("tokens"), found.get("divergence")
    if not tokens or not divergence or len(tokens) != len(divergence) or sum(map(len, tokens)) > MAX_RESPONSE:
        return None, None
    return list(tokens), [float(f"{value:.3g}") for value in divergence]


def _shorten(text: str) -> str:
    if len(text) <= MAX_RESPONSE:
        return text
    head, tail = MAX_RESPONSE * 2 // 3, MAX_RESPONSE // 3
    return f"{text[:head]}\n[… {len(text) - head - tail} characters left out …]\n{text[-tail:]}"
