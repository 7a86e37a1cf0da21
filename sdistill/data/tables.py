"""Rows of public files, parquet or JSON lines, each of which knows where it stands."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import Progress

from sdistill.settings import ConfigError
from sdistill.tasks.problem import Message

_BATCH = 4096  # rows of parquet in memory at a time


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
      file: Name of the file.
      number: Of the row, from 1.
      values: Its columns. A nested column is a mapping or a list, or the JSON text of one: files have both.
    """

    file: str
    number: int
    values: Mapping[str, Any]

    def has(self, *columns: str) -> bool:
        """Whether all these columns are there."""
        return all(column in self.values for column in columns)

    def get(self, *path: str | int) -> Any:
        """The value at a path such as `"prompt", 0, "content"`, through JSON text where that is stored.

        Raises:
          ConfigError: naming file, row and column, if there is no such value.
        """
        value: Any = self.values
        for depth, key in enumerate(path):
            if isinstance(value, str):
                value = self._parsed(value, path[:depth])
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError) as error:
                raise self.error(path, f"is missing; {_contents(value)}") from error
        return value

    def text(self, *path: str | int) -> str:
        """The text at a path, which is not empty. Whole numbers are written as such: 27.0 is `27`.

        Raises:
          ConfigError: naming file, row and column, if there is none.
        """
        value = self.get(*path)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is int:
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            raise self.error(path, f"must be text, not {_shortened(repr(value))}")
        return value

    def parsed(self, column: str) -> Any:
        """The list or mapping in a column, stored as such or as JSON text."""
        value = self.get(column)
        return self._parsed(value, (column,)) if isinstance(value, str) else value

    def messages(self, column: str) -> tuple[Message, ...]:
        """The conversation in a column: a list of messages with `role` and `content`."""
        turns = self.parsed(column)
        if not isinstance(turns, list) or not turns:
            raise self.error((column,), f"must be a list of messages, not {_shortened(repr(turns))}")
        return tuple(
            {"role": self.text(column, turn, "role"), "content": self.text(column, turn, "content")}
            for turn in range(len(turns))
        )

    def error(self, path: tuple[str | int, ...], problem: str) -> ConfigError:
        """An error about the value at a path."""
        return ConfigError(f"{self.file}, row {self.number}: column {'.'.join(map(str, path))} {problem}")

    def _parsed(self, text: str, path: tuple[str | int, ...]) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise self.error(path, f"is no JSON ({error}): {_shortened(repr(text))}") from error


def read_rows(path: Path, progress: Progress) -> Iterator[Row]:
    """The rows of a `.parquet`, `.jsonl` or `.json` file (one object a line), read as they are asked for.

    Raises:
      ConfigError: if the file is missing, empty, of another form, or damaged.
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
            for batch in file.iter_batches(batch_size=_BATCH):
                yield from batch.to_pylist()
                progress.advance(bar, batch.num_rows)
    except pa.ArrowException as error:
        raise ConfigError(f"{path} is not a whole parquet file: {error}") from error


def _json_rows(path: Path, progress: Progress) -> Iterator[dict[str, Any]]:
    bar = progress.add_task(f"{path.name} (bytes)", total=path.stat().st_size)
    with open(path, "rb") as file:  # as bytes: text may hold characters that count as line ends
        for number, line in enumerate(file, 1):
            progress.advance(bar, len(line))
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{path}, line {number} is no JSON: {error}") from error
            if not isinstance(values, dict):
                raise ConfigError(f"{path}, line {number} must be an object, not {_shortened(repr(values))}")
            yield values


def _contents(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"there are {', '.join(map(str, value)) or 'no columns'}"
    return f"there is {_shortened(repr(value))}"


def _shortened(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
