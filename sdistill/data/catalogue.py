"""The names under which problems are asked for, such as `k3_test`, `math500` or `dapo_math_17k_64`."""

import difflib
import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from sdistill.data.aime24.builders import Aime24
from sdistill.data.aime25.builders import Aime25
from sdistill.data.amc23.builders import Amc23
from sdistill.data.dapo_math_17k.builders import DapoMath17k, DapoMath17kSeen
from sdistill.data.livecodebench_v6.builders import LiveCodeBenchV6
from sdistill.data.math500.builders import Math500
from sdistill.data.problem_set import ProblemSet
from sdistill.data.sciknoweval.builders import DOMAINS, SciKnowEval
from sdistill.data.signs.builders import PROBLEM_SPLITS, SignsCorpus, SignsProblems
from sdistill.distributed.processes import is_writer, wait_for_all
from sdistill.settings import ConfigError
from sdistill.tasks.problem import Problem, Task


@dataclass(frozen=True)
class Entry:
    """What a name stands for.

    Attributes:
      builder: The TFDS builder of its data set.
      split: The split there.
      size: How many problems of it, chosen by `seed`; None for all.
      seed: Of that choice.
    """

    builder: type[ProblemSet] | type[SignsProblems]
    split: str
    size: int | None = None
    seed: int = 0


ENTRIES: dict[str, Entry] = {
    **{split: Entry(SignsProblems, split) for split in PROBLEM_SPLITS},
    **{
        builder.name: Entry(builder, builder.SPLIT)
        for builder in (DapoMath17k, Aime24, Aime25, Amc23, Math500)
    },
    "dapo_math_17k_seen_1": Entry(DapoMath17kSeen, "seen_1x64"),
    "dapo_math_17k_seen_8": Entry(DapoMath17kSeen, "seen_8x8"),
    **{f"dapo_math_17k_seen_{n}": Entry(DapoMath17kSeen, f"seen_{n}") for n in (64, 128, 512)},
    **{
        f"sciknoweval_{domain}_{split}": Entry(SciKnowEval, f"{domain}_{split}")
        for domain in DOMAINS
        for split in ("train", "test")
    },
    "livecodebench_v6": Entry(LiveCodeBenchV6, "test"),
}

_SUBSET = re.compile(r"dapo_math_17k_(\d+)(?:_seed(\d+))?")


def find(name: str) -> Entry:
    """What a name stands for; `dapo_math_17k_64_seed1` are 64 of these problems, chosen by seed 1 (else 0).

    Raises:
      ConfigError: if there is no such name; lists those there are.
    """
    if name in ENTRIES:
        return ENTRIES[name]
    subset = _SUBSET.fullmatch(name)
    if subset and int(subset[1]) > 0:
        return Entry(DapoMath17k, DapoMath17k.SPLIT, int(subset[1]), int(subset[2] or 0))
    near = difflib.get_close_matches(name, ENTRIES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(
        f"no problems are called {name!r}; {hint}There are {', '.join(ENTRIES)}, and dapo_math_17k_N or "
        "dapo_math_17k_N_seedS for N of dapo_math_17k"
    )


@functools.cache
def open_problems(name: str, data_dir: str | Path | None = None) -> tuple[Problem, ...]:
    """The problems of a name, in their fixed order; their data set is prepared first if it is not there.

    Args:
      name: One of the catalogue.
      data_dir: Where data sets are prepared; None for the TFDS default.

    Raises:
      ConfigError: if there is no such name; or if its data set is not there and cannot be downloaded, with
        the file to get and the command to run.
    """
    entry = find(name)
    records = _read(prepared(entry.builder, data_dir), entry.split)
    problems = [entry.builder.problem_of(record) for record in records]
    if entry.size is None:
        return tuple(problems)
    if entry.size > len(problems):
        raise ConfigError(f"{name!r}: {entry.builder.name} has only {len(problems)} problems")
    return subset_of(problems, entry.size, entry.seed)


def open_corpus(split: str, data_dir: str | Path | None = None) -> list[dict[str, bytes]]:
    """The puzzle's pretraining corpus, prepared first if it is not there: a list of {prompt, response}."""
    return _read(prepared(SignsCorpus, data_dir), split)


def task_of(name: str) -> Task:
    """The task that verifies responses to the problems of a name."""
    return find(name).builder.task()


def subset_of(problems: list[Problem], size: int, seed: int) -> tuple[Problem, ...]:
    """`size` problems chosen by a seed; a smaller choice by the same seed is the beginning of a larger one.

    A hash of seed and id puts them in order, so that the choice does not depend on the order of the file,
    and a problem that is missing there changes nothing else.
    """
    return tuple(sorted(problems, key=lambda p: hashlib.sha256(f"{seed}/{p.id}".encode()).digest())[:size])


def prepared(builder_class: Any, data_dir: str | Path | None, **options: Any) -> tfds.core.DatasetBuilder:
    """The builder of a data set that is there, or is now prepared; `options` are `ProblemSet`'s."""
    there = f"{builder_class.__name__} is there"
    if not is_writer():
        wait_for_all(there)  # where processes share the directory, the first one prepares it for all
    tfds.disable_progress_bar()  # it draws three bars for what takes seconds
    try:
        builder = _prepared(builder_class, data_dir, options)
    except FileExistsError:  # another run prepared it at the same time and was the first to be done
        builder = _prepared(builder_class, data_dir, options)
    if is_writer():
        wait_for_all(there)
    return builder


def _prepared(
    builder_class: Any, data_dir: str | Path | None, options: Mapping[str, Any]
) -> tfds.core.DatasetBuilder:
    builder = builder_class(data_dir=data_dir, file_format="array_record", **options)
    builder.download_and_prepare()
    return builder


def _read(builder: tfds.core.DatasetBuilder, split: str) -> list[dict[str, bytes]]:
    """Reads a whole split: these data sets are small, and one read at a time costs 15 times more."""
    if split not in builder.info.splits:
        raise ConfigError(f"no split {split!r} in {builder.name}; it has {', '.join(builder.info.splits)}")
    source = builder.as_data_source(split)
    return list(source.__getitems__(range(len(source))))
