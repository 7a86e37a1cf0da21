"""What the processes of a run have to agree on, and what each of them does for all.

Every process runs the same program. It samples and verifies its share of the responses; then all of them
know all responses, lay out the same batch, and each puts the rows of its own devices there. The first process
writes the files, into a directory that all see.
"""

import functools
import importlib.metadata
import json
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather, sync_global_devices
from jaxtyping import Int

from sdistill.settings import ConfigError

T = TypeVar("T")

PACKAGES = ("sdistill", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def is_writer() -> bool:
    """Whether this process writes the files of the run."""
    return jax.process_index() == 0


def wait_for_all(where: str) -> None:
    """Returns when every process has come to this point, which has a name."""
    if jax.process_count() > 1:
        sync_global_devices(where)


def require_one_process(command: str) -> None:
    """Refuses to run a command in several processes that only knows how to in one.

    Raises:
      ConfigError: says what to do instead.
    """
    if (count := jax.process_count()) > 1:
        raise ConfigError(
            f"{command} runs in one process, and {count} were started; it is small: start it on one machine. "
            "sdistill.train, sdistill.generate and sdistill.evaluate run in several"
        )


def any_process(value: bool) -> bool:
    """Whether it is true for one of the processes, all of which ask."""
    return value if jax.process_count() == 1 else bool(process_allgather(np.bool_(value)).any())


def share_of(count: int) -> slice:
    """Which of so many things are this process'; shares differ by one at most, and some may be empty."""
    index, processes = jax.process_index(), jax.process_count()
    return slice(count * index // processes, count * (index + 1) // processes)


def gathered(values: Sequence[Any]) -> list[Any]:
    """The values of all processes, plain JSON, one process after the other."""
    if jax.process_count() == 1:
        return list(values)
    content = np.frombuffer(json.dumps(list(values)).encode(), np.uint8)
    counts = _counts(len(content))
    whole = _gather_rows(content, counts).tobytes()
    ends = np.cumsum(counts)
    parts = [whole[end - count : end] for end, count in zip(ends, counts, strict=True)]
    return [value for part in parts for value in json.loads(part)]


def gathered_rows(arrays: T, rows: int) -> T:
    """A tree of arrays on the host, each with the rows of all processes, of which this one has so many."""
    if jax.process_count() == 1:
        return arrays
    return jax.tree.map(functools.partial(_gather_rows, counts=_counts(rows)), arrays)


def first_row(rows: int) -> int:
    """Where the rows of this process begin among those of all, of which it has so many itself."""
    if jax.process_count() == 1:
        return 0
    return int(_counts(rows)[: jax.process_index()].sum())


def on_every_host(arrays: T) -> T:
    """A tree of arrays as every process' host sees them whole, wherever on the mesh they are."""
    if jax.process_count() == 1:
        return jax.device_get(arrays)
    return process_allgather(arrays, tiled=True)


def check_agreement(settings: str) -> None:
    """Refuses to start if the processes differ in what they are to do, or in what they do it with.

    Args:
      settings: Of the run, as text.

    Raises:
      ConfigError: naming the first process that differs from process 0, and in what.
    """
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    everyone = gathered([[*versions, *settings.splitlines()]])
    for index, theirs in enumerate(everyone):
        if theirs != everyone[0]:
            differing = [(a, b) for a, b in zip(everyone[0], theirs, strict=False) if a != b]
            ours, other = differing[0] if differing else (f"{len(everyone[0])} lines", f"{len(theirs)} lines")
            raise ConfigError(
                f"process {index} differs from process 0: {other.strip()!r} there, {ours.strip()!r} here; "
                "start the same command with the same packages everywhere"
            )


def _counts(own: int) -> Int[np.ndarray, " processes"]:
    return np.asarray(process_allgather(np.int32(own)))


def _gather_rows(x: np.ndarray, counts: Int[np.ndarray, " processes"]) -> np.ndarray:
    """The rows of all processes, which may have different numbers of them."""
    padded = np.zeros((counts.max(), *x.shape[1:]), x.dtype)
    padded[: len(x)] = x
    found = np.asarray(process_allgather(padded))
    return np.concatenate([rows[:count] for rows, count in zip(found, counts, strict=True)])
