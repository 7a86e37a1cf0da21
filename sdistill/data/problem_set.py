"""Public problem sets: their files, the rows of files, and the builder that makes distinct problems of them.

A file is pinned to a revision and a SHA-256, downloaded once, and read row by row. A `Row` knows its file and
its number, so that every error names both. A set is a small subclass of `ProblemSet` that names its files and
converts its rows. The numbers of rows read, merged and dropped are stored in the metadata of the prepared
data set, with the checksums of the files.
"""

import abc
import hashlib
import itertools
import json
import re
import shutil
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds
from rich.progress import Progress

from sdistill.settings import ConfigError
from sdistill.storage import finish
from sdistill.tasks.problem import Message, Problem, Task

DOWNLOAD_TIMEOUT = 60  # seconds
PARQUET_BATCH = 4096  # rows in memory at a time
MAX_EXAMPLES = 10  # dropped rows that are listed, for each reason
CHINESE = re.compile("[\u4e00-\u9fff]")

SplitProblem = tuple[str, Problem]  # the name of a split, and a problem of it


# ── Files ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Source:
    """A public file, pinned."""

    url: str  # at a fixed revision
    sha256: str | None  # None where we do not know it: then it is recorded and not verified
    licence: str  # as its publisher declares it, or `not declared`


def on_the_hub(file: str, sha256: str | None, licence: str) -> tuple[Source]:
    """The source of a data set that is one file of Hugging Face: `owner/repository@revision/path`."""
    url = f"https://huggingface.co/datasets/{file.replace('@', '/resolve/')}"
    return (Source(url, sha256, licence),)


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def obtain(source: Source, folder: Path, name: str, progress: Progress) -> Path:
    """The file of a source of the data set `name`, verified; downloaded if it is not there.

    `folder` is `DATA_DIR/downloads/name`.

    Raises:
      ConfigError: if the download fails, with the ways to do without; or if it is not the pinned file.
    """
    path = folder / source.url.rpartition("/")[2]
    command = f"python -m sdistill.data.prepare {name} --data_dir {folder.parents[1]} --from"
    if not path.exists():
        try:
            _download(source.url, path, progress)
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            raise ConfigError(
                f"{name} is not prepared, and {source.url} cannot be downloaded ({error}). Get the file on "
                f"another machine and put it at {path}, or give it by hand:\n"
                f"  {command} {path.name}"
            ) from error
    found = checksum(path)
    if source.sha256 not in (None, found):
        raise ConfigError(
            f"{path} has SHA-256 {found}, and the pinned file {source.sha256}; remove it to download it "
            f"again, or use it as it is with: {command} {path}"
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


# ── Rows ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Row:
    """One row of a file. A nested column is a mapping, a list, or the JSON text of one: files have both."""

    file: str  # its name
    number: int  # from 1
    values: Mapping[str, Any]  # column → value

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


# ── The builder ─────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Tally:
    """How many rows were read, merged and dropped."""

    read: int = 0  # rows of all files
    merged: int = 0  # rows that repeat an earlier problem
    dropped: Counter[str] = field(default_factory=Counter)  # rows left out, by reason
    examples: dict[str, list[str]] = field(default_factory=dict)  # the first few of them, by reason
    # Reference answers that the verifier cannot use: (problem id, answer, why).
    unparsed: list[tuple[str, str, str]] = field(default_factory=list)

    def count(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows, counted as `read` on their way."""
        for row in rows:
            self.read += 1
            yield row

    def drop(self, reason: str, example: str, count: int = 1) -> None:
        """Counts `count` rows as dropped."""
        self.dropped[reason] += count
        examples = self.examples.setdefault(reason, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append(example)


class ProblemSet(tfds.core.GeneratorBasedBuilder):
    """Problems of public files, stored as `array_record`, which needs no TensorFlow.

    Attributes:
      SOURCES: The public files; downloaded unless others are given.
      task: Makes the task that verifies responses.
    """

    VERSION = tfds.core.Version("1.0.0")
    SOURCES: ClassVar[tuple[Source, ...]]
    task: ClassVar[type[Task]]

    def __init__(
        self,
        *,
        files: Sequence[Path] = (),
        drop_unparsed: bool = False,
        progress: Progress | None = None,
        **arguments: Any,
    ):
        """Opens the set, prepared or not; see `prepare.prepare`. Other arguments are those of TFDS."""
        self._files = tuple(files)
        self._drop_unparsed = drop_unparsed
        self._progress = progress or Progress(disable=True)
        super().__init__(**arguments)

    @abc.abstractmethod
    def convert(self, rows: Iterator[Row], tally: Tally) -> Iterator[SplitProblem]:
        """The problems of the rows, repeated ones included; `tally.drop` records rows without one."""

    def defects(self, answers: Sequence[str]) -> Iterable[str | None]:
        """Why each reference answer cannot be compared with; None where it can."""
        return itertools.repeat(None, len(answers))

    @staticmethod
    def record_of(problem: Problem) -> dict[str, Any]:
        """The record that is stored of a problem."""
        metadata = dict(problem.metadata)
        *system, user = problem.messages
        return {
            "id": problem.id,
            "system": system[0]["content"] if system else "",
            "prompt": user["content"],
            "answer": problem.answer,
            "language": metadata.pop("language"),
            "copies": metadata.pop("copies"),
            "metadata": json.dumps(metadata, ensure_ascii=False),
        }

    @staticmethod
    def problem_of(record: dict[str, Any]) -> Problem:
        """The problem of a stored record."""
        values = {k: value.decode() if isinstance(value, bytes) else value for k, value in record.items()}
        messages = [{"role": "user", "content": values["prompt"]}]
        if values["system"]:
            messages.insert(0, {"role": "system", "content": values["system"]})
        metadata = {"language": values["language"], "copies": int(values["copies"])}
        metadata |= json.loads(values["metadata"])
        return Problem(values["id"], tuple(messages), values["answer"], metadata)

    def _info(self) -> tfds.core.DatasetInfo:
        names = ("id", "system", "prompt", "answer", "language", "copies", "metadata")
        features: dict[str, Any] = dict.fromkeys(names, tfds.features.Text())
        features["copies"] = tfds.features.Scalar(np.int64)
        return self.dataset_info_from_configs(
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,  # the order of the file is part of the data
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        # TFDS's own downloads are renamed to hashes, so that nobody could put them there by hand.
        folder = Path(self.data_dir_root) / "downloads" / self.name
        files = self._files or tuple(obtain(s, folder, self.name, self._progress) for s in self.SOURCES)
        tally = Tally()
        rows = (row for file in files for row in read_rows(file, self._progress))
        splits = merge_duplicates(self.convert(tally.count(rows), tally), tally)
        self._check_answers(splits, tally)
        splits = {split: problems for split, problems in splits.items() if problems}
        if not splits:
            names = ", ".join(map(str, files))
            raise ConfigError(f"{names}: no problem is left; dropped: {dict(tally.dropped)}")
        self.info.metadata.update(
            sources=[{"file": file.name, "sha256": checksum(file)} for file in files],
            drop_unparsed=self._drop_unparsed,
            **vars(tally),
        )
        return {split: self._generate_examples(problems) for split, problems in splits.items()}

    def _check_answers(self, splits: dict[str, list[Problem]], tally: Tally) -> None:
        """Lists the problems whose reference answers have a defect, and drops them if that is wanted."""
        answers = sorted({problem.answer for problem in itertools.chain(*splits.values())})
        checked = zip(answers, self.defects(answers), strict=True)
        bar = self._progress.track(checked, len(answers), description=f"{self.name} (answers)")
        defects = {answer: defect for answer, defect in bar if defect is not None}
        for split, problems in splits.items():
            for problem in problems:
                if problem.answer in defects:
                    tally.unparsed.append((problem.id, problem.answer, defects[problem.answer]))
                    if self._drop_unparsed:
                        tally.drop("reference answer cannot be parsed", problem.id)
            if self._drop_unparsed:
                splits[split] = [problem for problem in problems if problem.answer not in defects]

    def _generate_examples(self, problems: Sequence[Problem]) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from enumerate(map(self.record_of, problems))


def merge_duplicates(found: Iterable[SplitProblem], tally: Tally) -> dict[str, list[Problem]]:
    """The distinct problems of each split, in the order of their first rows.

    Problems of a split are the same if their prompts are. Their metadata gets the number of rows (`copies`)
    and the language (`zh` if there is a Chinese character, else `en`). A problem whose rows give different
    answers is dropped: none of them can be trusted.

    Raises:
      ConfigError: if two different problems have the same id.
    """
    first: dict[tuple[str, str], Problem] = {}
    copies: Counter[tuple[str, str]] = Counter()
    contradicted = set()
    for split, problem in found:
        key = (split, problem.messages[-1]["content"])
        copies[key] += 1
        if first.setdefault(key, problem).answer != problem.answer:
            contradicted.add(key)
    splits: dict[str, list[Problem]] = {}
    prompt_of: dict[str, str] = {}
    for key, problem in first.items():
        split, prompt = key
        if prompt_of.setdefault(problem.id, prompt) != prompt:
            raise ConfigError(
                f"id {problem.id!r} belongs to two problems, {prompt_of[problem.id][:60]!r} and "
                f"{prompt[:60]!r}; the file is damaged, or a mixture of several"
            )
        problems = splits.setdefault(split, [])
        if key in contradicted:
            tally.drop("rows give different answers", problem.id, copies[key])
            continue
        tally.merged += copies[key] - 1
        language = "zh" if CHINESE.search(prompt) else "en"
        metadata = {**problem.metadata, "language": language, "copies": copies[key]}
        problems.append(Problem(problem.id, problem.messages, problem.answer, metadata))
    return splits
