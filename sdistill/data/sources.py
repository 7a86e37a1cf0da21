"""Public files: where they come from, and the rows that they hold.

A file is pinned to a revision and a SHA-256, downloaded once, and read row by row. A `Row` knows its file and
its number, so that every error names both.
"""

import hashlib
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import Progress

from sdistill.settings import ConfigError
from sdistill.storage import finish
from sdistill.tasks.problem import Message

DOWNLOAD_TIMEOUT = 60  # seconds
PARQUET_BATCH = 4096  # rows in memory at a time


@dataclass(frozen=True)
class Source:
    """A public file, pinned.

    Attributes:
      url: Its address, at a fixed revision.
      sha256: Of its content. None where we do not know it: then it is recorded and not verified.
      licence: As its publisher declares it, or `not declared`.
    """

    url: str
    sha256: str | None
    licence: str


def on_the_hub(file: str, sha256: str | None, licence: str) -> tuple[Source]:
    """The source of a data set that is one file of Hugging Face: `owner/repository@revision/path`."""
    url = f"https://huggingface.co/datasets/{file.replace('@', '/resolve/')}"
    return (Source(url, sha256, licence),)


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def obtain(source: Source, folder: Path, name: str, progress: Progress) -> Path:
    """The file of a source of the data set `name`, verified; downloaded to `folder` if it is not there.

    Raises:
      ConfigError: if the download fails, with the ways to do without; or if it is not the pinned file.
    """
    path = folder / source.url.rpartition("/")[2]
    if not path.exists():
        try:
            _download(source.url, path, progress)
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            raise ConfigError(
                f"{name} is not prepared, and {source.url} cannot be downloaded ({error}). Get the file on "
                f"another machine and put it at {path}, or give it by hand:\n"
                f"  python -m sdistill.data.prepare {name} --from {path.name}"
            ) from error
    found = checksum(path)
    if source.sha256 not in (None, found):
        raise ConfigError(
            f"{path} has SHA-256 {found}, and the pinned file {source.sha256}; remove it to download it "
            f"again, or use it as it is with: python -m sdistill.data.prepare {name} --from {path}"
        )
    return path


def _download(url: str, path: Path, progress: Progress) -> None:
    """Downloads to a temporary name; a file under its own name is therefore complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT) as response, open(temporary, "wb") as file:
        size = int(response.headers.get("Content-Length", 0))
        content = progress.wrap_file(response, size, description=f"{path.name} (download)")
        shutil.copyfileobj(content, file)
        if size and file.tell() != size:
            raise ConnectionError(f"{file.tell()} of {size} bytes came")
    finish(temporary, path)


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
      file: Name of the file.
      number: Of the row, from 1.
      values: Its columns. A nested column is a mapping, a list, or the JSON text of one: files have both.
    """

    file: str
    number: int
    values: Mapping[str, Any]

    def get(self, *path: str | int) -> Any:
        """The value at a path such as `"prompt", 0, "content"`; JSON text on the way is parsed.

        Raises:
          ConfigError: naming file, row and column, if there is no such value.
        """
        value: Any = self.values
        for depth, key in enumerate(path):
            value = self._parse(value, path[:depth])
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError) as error:
                there = f"is {_shorten(value)}"
                if isinstance(value, Mapping):
                    there = f"are {', '.join(map(str, value)) or 'no columns'}"
                raise self.error(path, f"is missing; there {there}") from error
        return value

    def parsed(self, column: str) -> Any:
        """The list or mapping in a column, stored as such or as JSON text."""
        return self._parse(self.get(column), (column,))

    def text(self, *path: str | int) -> str:
        """The text at a path, which is not empty. A whole number is written as an integer: 27.0 is `27`.

        Raises:
          ConfigError: naming file, row and column, if there is none.
        """
        value = self.get(*path)
        if type(value) is int or (isinstance(value, float) and value.is_integer()):
            value = str(int(value))
        if not isinstance(value, str) or not value.strip():
            raise self.error(path, f"must be text, not {_shorten(value)}")
        return value

    def messages(self, column: str) -> tuple[Message, ...]:
        """The conversation in a column: a list of messages with `role` and `content`."""
        turns = self.parsed(column)
        if not isinstance(turns, list) or not turns:
            raise self.error((column,), f"must be a list of messages, not {_shorten(turns)}")
        keys = ("role", "content")
        return tuple({key: self.text(column, i, key) for key in keys} for i in range(len(turns)))

    def error(self, path: tuple[str | int, ...], problem: str) -> ConfigError:
        """An error about the value at a path."""
        return ConfigError(f"{self.file}, row {self.number}: column {'.'.join(map(str, path))} {problem}")

    def _parse(self, value: Any, path: tuple[str | int, ...]) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise self.error(path, f"is no JSON ({error}): {_shorten(value)}") from error


def read_rows(path: Path, progress: Progress) -> Iterator[Row]:
    """The rows of a `.parquet`, `.jsonl` or `.json` file (one object a line), read lazily.

    Raises:
      ConfigError: if the file is missing, empty, damaged, or of another form.
    """
    readers = {".parquet": _parquet_rows, ".jsonl": _json_rows, ".json": _json_rows}
    if path.suffix not in readers:
        raise ConfigError(f"{path} must end in one of {', '.join(readers)}")
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    number = 0
    for number, values in enumerate(readers[path.suffix](path, progress), 1):
        yield Row(path.name, number, values)
    if number == 0:
        raise ConfigError(f"{path} has no rows")


def _parquet_rows(path: Path, progress: Progress) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            bar = progress.add_task(f"{path.name} (rows)", total=file.metadata.num_rows)
            for batch in file.iter_batches(batch_size=PARQUET_BATCH):
                yield from batch.to_pylist()
                progress.advance(bar, batch.num_rows)
    except pa.ArrowException as error:
        raise ConfigError(f"{path} is not a whole parquet file: {error}") from error


def _json_rows(path: Path, progress: Progress) -> Iterator[dict[str, Any]]:
    # In text mode, characters such as U+2028 would end lines.
    with progress.open(path, "rb", description=f"{path.name} (bytes)") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{path}, line {number} is no JSON: {error}") from error
            if not isinstance(values, dict):
                raise ConfigError(f"{path}, line {number} must be an object, not {_shorten(values)}")
            yield values


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
