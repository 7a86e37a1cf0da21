"""Files that are whole or absent: what makes a run killed at any moment safe to continue."""

import gzip
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a rerun after a kill, finds the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    finish(temporary, path)


def finish(temporary: Path, path: Path) -> None:
    """Gives a file that is complete, and now on disk, its name."""
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def to_lines(records: Iterable[dict[str, Any]]) -> bytes:
    """Records as JSON lines. NaN is refused: it is not JSON, and a figure that is NaN is a mistake."""
    return "".join(json.dumps(r, ensure_ascii=False, allow_nan=False) + "\n" for r in records).encode()


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Writes JSON lines atomically, gzipped if the name ends in `.gz` (same records, same bytes)."""
    lines = to_lines(records)
    write_atomically(path, gzip.compress(lines, 6, mtime=0) if path.suffix == ".gz" else lines)


def read_records(path: Path) -> list[dict[str, Any]]:
    """Reads what `write_records` wrote; no file means no records."""
    if not path.exists():
        return []
    content = path.read_bytes()
    lines = gzip.decompress(content) if path.suffix == ".gz" else content
    # Split as bytes: text may hold characters that `str.splitlines` takes for line ends.
    return [json.loads(line) for line in lines.split(b"\n") if line]
