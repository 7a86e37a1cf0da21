"""The responses that a report shows, packed small enough to be inside the page.

A trace is a record of the generations on disk (see `sdistill.analysis.measure`). Optional fields are shown
where they are there:

    context      the teacher's user turn, null if this response had none
    tokens       the text of each token of the response, in order
    divergence   for each of these, the divergence between student and teacher there, in nats
    feedback     what the verifier said

Of every condition and data set the last step of the lowest seed is taken. If that is too much, the first
problems are kept, the same number of each file, so that what is side by side stays comparable. Rollouts of
training, which may all be of one problem, are kept from the first on, the same number of each file.
"""

import base64
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdistill.analysis.epistemic import WORDS, count_words
from sdistill.analysis.probes import PROBES
from sdistill.report.lookup import SECTIONS, condition_rank, name
from sdistill.report.ranking import FIXES
from sdistill.report.runs import Run

TRACES = 20_000  # in a page, at most
COMPRESSED = 5_000_000  # bytes of them, at most: base64 makes 6.7 MB of it
CHARACTERS = 60_000_000  # read in all: what a browser decompresses and parses in about a second
LONGEST = 400_000  # characters kept of one response
TRAIN = "train"  # what files of rollouts are named after
NEEDED = {"problem", "text", "correct", "length"}
Row = dict[str, Any]
"""A response as it is on disk (`types.Response`); of another version perhaps."""
FILE = re.compile(r"/seed(\d+)/([^/]+)-(\d+)\.jsonl\.gz$")


@dataclass(frozen=True)
class Source:
    """A file of generations.

    Attributes:
      run: Name of the run.
      section, condition, dataset, seed, step: What it was sampled for.
      path: Where it is.
    """

    run: str
    section: str
    condition: str
    dataset: str
    seed: int
    step: int
    path: Path


@dataclass(frozen=True)
class Packed:
    """Traces ready for a page.

    Attributes:
      data: JSON, gzipped, in base64. Its layout is documented in `pack`.
      traces: How many.
      problems: How many of each file were kept, at most; None for all.
      notes: What could not be read, in sentences.
    """

    data: str
    traces: int
    problems: int | None
    notes: tuple[str, ...]


def sources(run: Run) -> list[Source]:
    """The files to show: for each condition and data set the last step of the lowest seed."""
    best: dict[tuple[str, str, str], Source] = {}
    for path in sorted((run.path / "runs").glob("*/*/seed*/*.jsonl.gz")):
        if (match := FILE.search(path.as_posix())) is None:
            continue
        section, condition = path.parts[-4:-2]
        found = Source(run.name, section, condition, match[2], int(match[1]), int(match[3]), path)
        kept = best.setdefault((section, condition, match[2]), found)
        if (found.seed, -found.step) < (kept.seed, -kept.step):
            best[section, condition, match[2]] = found
    order = [*SECTIONS, FIXES, PROBES]
    known = [source for source in best.values() if source.section in order]
    return sorted(
        known,
        key=lambda s: (order.index(s.section), condition_rank(s.condition), s.dataset == TRAIN, s.dataset),
    )


def read_generations(path: Path, characters: int) -> tuple[list[Row], bool, bool]:
    """The first generations of a file, up to so many characters.

    Returns: Them; whether there are more; whether the rest could not be read, because the file was cut short
      by an interruption or holds something else.
    """
    rows: list[Row] = []
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as stream:
            for line in stream:
                if characters <= 0:
                    return rows, True, False
                row = json.loads(line)
                if not isinstance(row, dict) or not row.keys() >= NEEDED:
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
        rows, more, broken = read_generations(source.path, CHARACTERS // len(files))
        read.append((source, rows))
        if more and source.dataset != TRAIN:  # the last problem may lack samples
            limit = min(limit or len(rows), max(1, len({row["problem"] for row in rows}) - 1))
        if broken:
            cut.append(source.path.relative_to(source.path.parents[4]).as_posix())
    notes = (
        (f"Cut short, or of another version, and read as far as possible: {', '.join(cut)}.",) if cut else ()
    )
    while True:
        kept = [
            (source, rows[:rollouts] if source.dataset == TRAIN else first_problems(rows, limit))
            for source, rows in read
        ]
        problems = [len({row["problem"] for row in rows}) for s, rows in kept if s.dataset != TRAIN]
        sampled = [len(rows) for s, rows in kept if s.dataset == TRAIN]
        largest, most = max(problems, default=0), max(sampled, default=0)
        count, smallest = sum(len(rows) for _, rows in kept), max(largest, most) <= 1
        share = TRACES / max(count, 1)
        if share >= 1 or smallest:  # packing is what takes time
            data = gzip.compress(json.dumps(pack(kept), separators=(",", ":")).encode(), 6, mtime=0)
            share = COMPRESSED / len(data)
            if share >= 1 or smallest:
                return Packed(base64.b64encode(data).decode(), count, limit, notes)
        limit, rollouts = (max(1, int(0.97 * share * n)) for n in (largest, most))


def first_problems(rows: Sequence[Row], limit: int | None) -> list[Row]:
    """The rows of the first `limit` problems; None for all."""
    first = set(itertools.islice(dict.fromkeys(row["problem"] for row in rows), limit))
    return [row for row in rows if row["problem"] in first]


def pack(files: Iterable[tuple[Source, Sequence[Row]]]) -> dict[str, Any]:
    """Traces column by column: what repeats compresses best when it stands together.

    Returns: `words`, to be marked; `scale`, the divergence that has the full colour; `groups`, one a file;
      `texts`, each prompt, context, problem and feedback once; and `traces`, equally long columns. Those for
      `group`, `problem`, `prompt`, `context` and `feedback` are indices, and -1 stands for none.
    """
    texts: dict[str, int] = {}

    def index(text: object) -> int:
        return -1 if text in (None, "") else texts.setdefault(str(text), len(texts))

    groups: list[dict[str, Any]] = []
    columns: dict[str, list[Any]] = {column: [] for column in COLUMNS}
    for number, (source, rows) in enumerate(files):
        groups.append(_group(source))
        for row in rows:
            tokens, divergence = _by_token(row)
            values = {
                "group": number,
                "problem": index(row["problem"]),
                "step": row.get("step", source.step),
                "sample": row.get("sample", 0),
                "prompt": index(row.get("prompt")),
                "context": index(row.get("context")),
                "feedback": index(row.get("feedback")),
                "correct": int(row["correct"]),
                "finish": row.get("finish", "stop"),
                "length": row["length"],
                "words": row["num_epistemic"] if "num_epistemic" in row else count_words(row["text"]),
                "response": _shorten(row["text"]) if tokens is None else "",
                "tokens": tokens,
                "divergence": divergence,
            }
            for column, values_so_far in columns.items():
                values_so_far.append(values[column])
    scale = _scale(itertools.chain.from_iterable(d for d in columns["divergence"] if d))
    return {"words": WORDS, "scale": scale, "groups": groups, "texts": [*texts], "traces": columns}


COLUMNS = (
    *("group", "problem", "step", "sample", "prompt", "context", "feedback", "correct", "finish"),
    *("length", "words", "response", "tokens", "divergence"),
)


def _group(source: Source) -> dict[str, Any]:
    return {
        "run": source.run,
        "section": source.section,
        "condition": source.condition,
        "name": name(source.condition),
        "guided": source.section == "richness" and source.condition != "unguided",
        "dataset": source.dataset.removesuffix("_test"),
        "seed": source.seed,
    }


def _by_token(row: Mapping[str, Any]) -> tuple[list[str] | None, list[float] | None]:
    """Tokens and divergences of a row; nothing if it lacks them, or they do not belong together."""
    found = row.get("attribution") or {}
    tokens, divergence = found.get("tokens"), found.get("divergence")
    if not tokens or not divergence or len(tokens) != len(divergence):
        return None, None
    length = sum(map(len, tokens))
    if length > LONGEST:
        return None, None
    return list(tokens), [float(f"{value:.3g}") for value in divergence]


def _shorten(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    head, tail = LONGEST * 2 // 3, LONGEST // 3
    return f"{text[:head]}\n[… {len(text) - head - tail} characters left out …]\n{text[-tail:]}"


def _scale(values: Iterator[float]) -> float:
    """Of a hundred values ninety-nine are no larger in size: few tokens must not wash out all others."""
    sizes = sorted(map(abs, values))
    return sizes[int(0.99 * (len(sizes) - 1))] if sizes else 0.0
