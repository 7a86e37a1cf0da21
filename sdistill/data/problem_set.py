"""The builder that all public sets of problems share: from the rows of files to distinct problems.

A set is a small subclass, in a folder of its own, that names its sources and says what a row means. What
was read, merged and dropped is stored with the data, next to the checksums of the files it came from.
"""

import abc
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from rich.progress import Progress

from sdistill.data.sources import Source, checksum, obtain
from sdistill.data.tables import Row, read_rows
from sdistill.settings import ConfigError
from sdistill.tasks.problem import Problem, Task

GoldCheck = Callable[[str], str | None]
"""Why a reference answer cannot be compared with others; None if it can."""

Found = tuple[str, Problem]
"""A problem, and the split that it belongs to."""

_CHINESE = re.compile("[\u4e00-\u9fff]")
_EXAMPLES = 10  # dropped rows that are named, a reason


@dataclass
class Tally:
    """What became of the rows that were read.

    Attributes:
      read: How many they were.
      merged: How many repeated a problem that was there already.
      dropped: How many were left out, by reason.
      examples: The first few of these, by reason.
      unparsed: Of the reference answers that cannot be compared: problem, answer, why.
    """

    read: int = 0
    merged: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    unparsed: list[tuple[str, str, str]] = field(default_factory=list)

    def drop(self, reason: str, what: str, count: int = 1) -> None:
        """Counts `count` rows about the problem `what` that are left out."""
        self.dropped[reason] += count
        examples = self.examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(what)


class ProblemSet(tfds.core.GeneratorBasedBuilder):
    """Problems of public files, stored as `array_record`: no TensorFlow needed.

    Attributes:
      SOURCES: The files; downloaded unless others are given.
    """

    VERSION = tfds.core.Version("1.0.0")
    SOURCES: ClassVar[tuple[Source, ...]]

    def __init__(
        self,
        *,
        files: Sequence[Path] = (),
        drop_unparsed: bool = False,
        progress: Progress | None = None,
        **arguments: Any,
    ):
        """Opens the set, prepared or not.

        Args:
          files: Read instead of the public sources, when the set is prepared.
          drop_unparsed: Leave out problems that `gold_check` objects to then; they are listed either way.
          progress: Shows long work.
          **arguments: TFDS's own, such as `data_dir`.
        """
        self._files = tuple(files)
        self._drop_unparsed = drop_unparsed
        self._progress = progress or Progress(disable=True)
        super().__init__(**arguments)

    @staticmethod
    @abc.abstractmethod
    def task() -> Task:
        """What verifies responses. Imports its library only now: few runs need more than one."""

    @abc.abstractmethod
    def convert(self, rows: Iterator[Row], tally: Tally) -> Iterator[Found]:
        """The problems that rows hold, repeated ones included; rows without one are dropped by `tally`."""

    def gold_check(self) -> AbstractContextManager[GoldCheck | None]:
        """What reference answers are checked by while the set is prepared; None for no check."""
        return nullcontext()

    @staticmethod
    def problem_of(record: dict[str, Any]) -> Problem:
        """The problem that a stored record stands for."""
        values = {
            name: value.decode() if isinstance(value, bytes) else value for name, value in record.items()
        }
        messages = [{"role": "user", "content": values["prompt"]}]
        if values["system"]:
            messages.insert(0, {"role": "system", "content": values["system"]})
        metadata = {
            "language": values["language"],
            "copies": int(values["copies"]),
            **json.loads(values["metadata"]),
        }
        return Problem(values["id"], tuple(messages), values["answer"], metadata)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return self.dataset_info_from_configs(
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "id": text,
                    "system": text,
                    "prompt": text,
                    "answer": text,
                    "language": text,
                    "copies": tfds.features.Scalar(np.int64),
                    "metadata": text,
                }
            ),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,  # the order of the file is part of the data
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # TFDS's renames files to hashes, so that nobody could put them there by hand
        folder = Path(self.data_dir_root) / "downloads" / self.name
        files = self._files or tuple(obtain(s, folder, self.name, self._progress) for s in self.SOURCES)
        tally = Tally()
        rows = itertools.chain.from_iterable(read_rows(file, self._progress) for file in files)
        splits = distinct(self.convert(_counted(rows, tally), tally), tally)
        self._check_answers(splits, tally)
        splits = {split: problems for split, problems in splits.items() if problems}
        if not splits:
            raise ConfigError(
                f"{', '.join(map(str, files))}: no problem is left; dropped: {dict(tally.dropped)}"
            )
        self.info.metadata.update(
            sources=[{"file": file.name, "sha256": checksum(file)} for file in files],
            drop_unparsed=self._drop_unparsed,
            **vars(tally),
        )
        return {split: self._generate_examples(problems) for split, problems in splits.items()}

    def _check_answers(self, splits: dict[str, list[Problem]], tally: Tally) -> None:
        answers = sorted({problem.answer for problems in splits.values() for problem in problems})
        with self.gold_check() as check:
            if check is None:
                return
            bar = self._progress.add_task(f"{self.name} (answers)", total=len(answers))
            defects = {}
            for answer in answers:
                defects[answer] = check(answer)
                self._progress.advance(bar)
        for split, problems in splits.items():
            for problem in problems:
                defect = defects[problem.answer]
                if defect is not None:
                    tally.unparsed.append((problem.id, problem.answer, defect))
                    if self._drop_unparsed:
                        tally.drop("reference answer cannot be parsed", problem.id)
            if self._drop_unparsed:
                splits[split] = [problem for problem in problems if defects[problem.answer] is None]

    def _generate_examples(self, problems: Sequence[Problem]) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, problem in enumerate(problems):
            own = {k: v for k, v in problem.metadata.items() if k not in ("language", "copies")}
            *system, user = problem.messages
            yield (
                index,
                {
                    "id": problem.id,
                    "system": system[0]["content"] if system else "",
                    "prompt": user["content"],
                    "answer": problem.answer,
                    "language": problem.metadata["language"],
                    "copies": problem.metadata["copies"],
                    "metadata": json.dumps(own, ensure_ascii=False),
                },
            )


def distinct(found: Iterable[Found], tally: Tally) -> dict[str, list[Problem]]:
    """The distinct problems of each split, in the order in which they first come.

    Their metadata says how often they came (`copies`), and in which language (`en`, or `zh` where there is
    a Chinese character). Problems that came with different answers are dropped: none can be trusted.

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
        kept = splits.setdefault(split, [])
        if key in contradicted:
            tally.drop("rows give different answers", problem.id, copies[key])
            continue
        tally.merged += copies[key] - 1
        language = "zh" if _CHINESE.search(prompt) else "en"
        metadata = {**problem.metadata, "language": language, "copies": copies[key]}
        kept.append(Problem(problem.id, problem.messages, problem.answer, metadata))
    return splits


def _counted(rows: Iterable[Row], tally: Tally) -> Iterator[Row]:
    for row in rows:
        tally.read += 1
        yield row
