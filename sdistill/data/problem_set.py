"""The TFDS builder that all public problem sets share: it turns rows of files into distinct problems.

A set is a small subclass that names its sources and converts its rows. The numbers of rows read, merged and
dropped are stored in the metadata of the prepared data set, with the checksums of the files.
"""

import abc
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from rich.progress import Progress

from sdistill.data.sources import Row, Source, checksum, obtain, read_rows
from sdistill.settings import ConfigError
from sdistill.tasks.problem import Problem, Task

SplitProblem = tuple[str, Problem]
"""The name of a split, and a problem of it."""

CHINESE = re.compile("[\u4e00-\u9fff]")
MAX_EXAMPLES = 10  # dropped rows that are listed, for each reason


@dataclass
class Tally:
    """How many rows were read, merged and dropped.

    Attributes:
      read: Rows of all files.
      merged: Rows that repeat an earlier problem.
      dropped: Rows left out, by reason.
      examples: The first few of them, by reason.
      unparsed: Reference answers that the verifier cannot use: (problem id, answer, why).
    """

    read: int = 0
    merged: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    unparsed: list[tuple[str, str, str]] = field(default_factory=list)

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

        def rows() -> Iterator[Row]:
            for row in itertools.chain.from_iterable(read_rows(file, self._progress) for file in files):
                tally.read += 1
                yield row

        splits = merge_duplicates(self.convert(rows(), tally), tally)
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
