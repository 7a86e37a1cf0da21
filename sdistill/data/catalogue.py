"""The names of problem sets, such as `k3_test`, `math500` or `dapo_math_17k_64`, and how to open them."""

import difflib
import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from sdistill.data import builders
from sdistill.data.builders import DapoMath17k, DapoMath17kSeen, SciKnowEval, SignsProblems
from sdistill.data.problem_set import ProblemSet
from sdistill.distributed.processes import is_writer, wait_for_all
from sdistill.settings import ConfigError
from sdistill.tasks.problem import Problem, Task


class Entry(NamedTuple):
    """The problems of a name: a split of a data set, or `size` of its problems, chosen by `seed`."""

    builder: type[ProblemSet] | type[SignsProblems]
    split: str
    size: int | None = None
    seed: int = 0


ENTRIES: dict[str, Entry] = {
    **{split: Entry(SignsProblems, split) for split in builders.PROBLEM_SPLITS},
    "dapo_math_17k": Entry(DapoMath17k, "train"),
    "aime24": Entry(builders.Aime24, "test"),
    "aime25": Entry(builders.Aime25, "test"),
    "amc23": Entry(builders.Amc23, "test"),
    "math500": Entry(builders.Math500, "test"),
    "dapo_math_17k_seen_1": Entry(DapoMath17kSeen, "seen_1x64"),
    "dapo_math_17k_seen_8": Entry(DapoMath17kSeen, "seen_8x8"),
    **{f"dapo_math_17k_seen_{n}": Entry(DapoMath17kSeen, f"seen_{n}") for n in (64, 128, 512)},
    **{
        f"sciknoweval_{domain}_{split}": Entry(SciKnowEval, f"{domain}_{split}")
        for domain in builders.DOMAINS
        for split in ("train", "test")
    },
    "livecodebench_v6": Entry(builders.LiveCodeBenchV6, "test"),
}

SUBSET = re.compile(r"dapo_math_17k_(\d+)(?:_seed(\d+))?")


def find(name: str) -> Entry:
    """The entry of a name; `dapo_math_17k_64_seed1` is 64 of these problems, chosen by seed 1 (default 0).

    Raises:
      ConfigError: if there is no such name; lists those there are.
    """
    if name in ENTRIES:
        return ENTRIES[name]
    subset = SUBSET.fullmatch(name)
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
    """The problems of a name, in their fixed order; a data set that is not there is prepared first.

    Data sets are stored in `data_dir`; None for the TFDS default.

    Raises:
      ConfigError: if there is no such name; or if the data set is not there and cannot be downloaded, with
        the file to get and the command to run.
    """
    builder, split, size, seed = find(name)
    problems = tuple(map(builder.problem_of, _records(builder, split, data_dir)))
    if size is None:
        return problems
    if size > len(problems):
        raise ConfigError(f"{name!r}: {builder.name} has only {len(problems)} problems")
    return subset_of(problems, size, seed)


def open_corpus(split: str, data_dir: str | Path | None = None) -> list[dict[str, bytes]]:
    """The puzzle's pretraining corpus, prepared first if it is not there: a list of {prompt, response}."""
    return _records(builders.SignsCorpus, split, data_dir)


def task_of(name: str) -> Task:
    """The task that verifies responses to the problems of a name."""
    return find(name).builder.task()


def subset_of(problems: Sequence[Problem], size: int, seed: int) -> tuple[Problem, ...]:
    """`size` problems chosen by a seed; a smaller choice by the same seed is a prefix of a larger one.

    A hash of seed and id puts them in order. So the choice does not depend on the order of the file, and a
    problem that is missing there changes nothing else.
    """
    return tuple(sorted(problems, key=lambda p: hashlib.sha256(f"{seed}/{p.id}".encode()).digest())[:size])


def prepared(builder_class: Any, data_dir: str | Path | None, **options: Any) -> tfds.core.DatasetBuilder:
    """The builder of a data set, prepared now if it is not there; `options` are `ProblemSet`'s.

    Where several processes share the directory, the first one prepares the data set for all.
    """
    point = f"{builder_class.__name__} is prepared"
    if not is_writer():
        wait_for_all(point)
    tfds.disable_progress_bar()  # it draws three bars for what takes seconds
    make_builder = functools.partial(builder_class, data_dir=data_dir, file_format="array_record", **options)
    builder = make_builder()
    try:
        builder.download_and_prepare()
    except FileExistsError:  # another run prepared it meanwhile: now it can be read
        builder = make_builder()
    if is_writer():
        wait_for_all(point)
    return builder


def _records(builder_class: Any, split: str, data_dir: str | Path | None) -> list[dict[str, bytes]]:
    """Reads a whole split: these data sets are small, and one read at a time costs 15 times more."""
    builder = prepared(builder_class, data_dir)
    if split not in builder.info.splits:
        raise ConfigError(f"no split {split!r} in {builder.name}; it has {', '.join(builder.info.splits)}")
    source = builder.as_data_source(split)
    return list(source.__getitems__(range(len(source))))
