"""Files that are whole or absent: what makes a run killed at any moment safe to continue.

In a run of several processes all call these functions, and the first one writes; but for journals, of which
each process has one.
"""

import gzip
import json
import logging
import os
import threading
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from sdistill.distributed.processes import all_gather, is_writer, wait_for_all
from sdistill.settings import ConfigError
from sdistill.types import Measurement, Response

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"


def check_workdir(workdir: Path, settings: str, *, may_differ: Collection[str] = ()) -> None:
    """Accepts a directory that can be written, and is new or holds a run with these settings.

    Args:
      workdir: Of a run; made if it is not there.
      may_differ: Settings, with all below them, under which a run may go on although it began under others.

    Raises:
      ConfigError: if the directory cannot be written, or holds a run with other settings; names the first.
    """
    probe = workdir / f".probe-{jax.process_index()}"  # each process of a run will have to write
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"--workdir={workdir} cannot be written: {error.strerror}; give another one, or the right to: "
            "for a mounted bucket that is the role storage.objectUser of the machine's service account"
        ) from error
    path = workdir / CONFIG_FILE
    if not path.exists():
        return
    there, here = (dict(_fields(json.loads(text))) for text in (path.read_text(), settings))
    differing = {
        name: f"{name}={there.get(name, 'absent')} there, {here.get(name, 'absent')} here"
        for name in sorted(there | here)
        if there.get(name) != here.get(name)
    }
    for name, difference in differing.items():
        if not any(name == setting or name.startswith(f"{setting}.") for setting in may_differ):
            raise ConfigError(
                f"{workdir} holds a run with other settings ({difference}); "
                f"give another --workdir, or the settings in its {CONFIG_FILE}"
            )
    if differing:
        message = "%s: going on under another layout (%s): the same computation, rounded otherwise"
        logger.warning(message, workdir, "; ".join(differing.values()))


def _fields(settings: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every setting by its whole name. In: `{"a": {"b": 1}}`. Out: `a.b`, `1`."""
    if isinstance(settings, dict) and settings:
        for key, value in settings.items():
            yield from _fields(value, f"{name}.{key}" if name else key)
    else:
        yield name, json.dumps(settings)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a rerun after a kill, finds the old content or the new."""
    if is_writer():
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


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """Reads what `write_records` wrote; no file means no records."""
    path = Path(path)
    if not path.exists():
        return []
    content = path.read_bytes()
    lines = gzip.decompress(content) if path.suffix == ".gz" else content
    # Split as bytes: text may hold characters that `str.splitlines` takes for line ends.
    return [json.loads(line) for line in lines.split(b"\n") if line]


def write_responses(path: Path, responses: Iterable[Response]) -> None:
    """`write_records` of responses."""
    write_records(path, (response.to_json() for response in responses))


def read_responses(path: str | Path) -> list[Response]:
    """`read_records` of responses."""
    return [Response.from_json(record) for record in read_records(path)]


def responses_file(run: Path, dataset: str, step: int) -> Path:
    """The file of the responses to a data set after so many training steps."""
    return run / f"{dataset}-{step:06d}.jsonl.gz"


def responses_files(run: Path) -> dict[tuple[str, int], Path]:
    """(Data set, step) → file, of a run's directory."""
    names = {path: path.name.removesuffix(".jsonl.gz").rpartition("-") for path in sorted(run.glob("*-*.gz"))}
    return {(dataset, int(step)): path for path, (dataset, _, step) in names.items() if step.isdecimal()}


def write_measurements(path: Path, measurements: Iterable[Measurement]) -> None:
    """`write_records` of measurements."""
    write_records(path, (measurement.to_json() for measurement in measurements))


def read_measurements(path: Path) -> list[Measurement]:
    """`read_records` of measurements."""
    return [Measurement.from_json(record) for record in read_records(path)]


class Journal:
    """Records that are added while work goes on, and read when interrupted work is continued.

    Each process has a file of its own, `journal-0.jsonl` and so on for `journal.jsonl`. All call every method
    but `add`.

    Attributes:
      records: What all processes know: what was there when they began, and what they have shared since.
    """

    def __init__(self, path: Path):
        """Opens a journal, new or left by killed processes. Truncated last records are dropped."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        own = path.with_stem(f"{path.stem}-{jax.process_index()}")
        if own.exists():
            os.truncate(own, len(_whole_lines(own)))
        # One process reads for all: they have to agree on what is there, even where one of them sees less.
        found = [line for file in self._files() for line in _whole_lines(file).split(b"\n") if line]
        self.records: list[dict[str, Any]] = all_gather([json.loads(x) for x in found] if is_writer() else [])
        self._new: list[dict[str, Any]] = []
        self._file = open(own, "ab")  # noqa: SIM115  (closed by `close`)
        self._writing = threading.Lock()

    def _files(self) -> list[Path]:
        return sorted(self._path.parent.glob(f"{self._path.stem}-*{self._path.suffix}"))

    def add(self, record: dict[str, Any]) -> None:
        """Appends a record to the file of this process; from any thread."""
        with self._writing:
            self._file.write(to_lines([record]))
            self._file.flush()
            self._new.append(record)

    def share(self) -> None:
        """Lets all processes know what each has added."""
        self.records += all_gather(self._new)
        self._new = []

    def close(self) -> None:
        """Closes the files; the records stay."""
        self._file.close()
        wait_for_all(f"{self._path.name} closed")

    def remove(self) -> None:
        """Removes the files, which are closed."""
        if is_writer():
            for file in self._files():
                file.unlink()


def _whole_lines(path: Path) -> bytes:
    """The content of a file that was appended to, up to the end of its last whole line."""
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]
