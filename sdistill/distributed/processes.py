"""What the processes of a run exchange.

Every process runs the same program. It samples and verifies its share of the responses. Then all of them
know all responses and lay out the same batch, and each places the rows of its own devices. The first process
writes the files, into a directory that all processes see.
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
    """Returns when every process has reached the point with this name."""
    if jax.process_count() > 1:
        sync_global_devices(where)


def any_process(value: bool) -> bool:
    """Whether the value is true in one of the processes, all of which call this."""
    return value if jax.process_count() == 1 else bool(process_allgather(np.bool_(value)).any())


def process_slice(count: int) -> slice:
    """This process's share of `count` items. Shares differ by one item at most, and some may be empty."""
    index, processes = jax.process_index(), jax.process_count()
    return slice(count * index // processes, count * (index + 1) // processes)


def all_gather(values: Sequence[Any]) -> list[Any]:
    """The values of all processes, in the order of processes. Values are JSON."""
    if jax.process_count() == 1:
        return list(values)
    content = np.frombuffer(json.dumps(list(values)).encode(), np.uint8)
    counts = _row_counts(len(content))
    parts = np.split(_gather_rows(content, counts), np.cumsum(counts)[:-1])
    return [value for part in parts for value in json.loads(part.tobytes())]


def all_gather_rows(arrays: T, rows: int) -> T:
    """A tree of host arrays with the rows of all processes; this process has `rows` of them."""
    if jax.process_count() == 1:
        return arrays
    return jax.tree.map(functools.partial(_gather_rows, counts=_row_counts(rows)), arrays)


def on_every_host(arrays: T) -> T:
    """A tree of arrays, wherever on the mesh they are, as whole arrays on every process's host."""
    return jax.device_get(arrays) if jax.process_count() == 1 else process_allgather(arrays, tiled=True)


def check_agreement(settings: str) -> None:
    """Refuses to start if the processes have different settings or packages.

    Raises:
      ConfigError: naming the first process that differs from process 0, and in what.
    """
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    first, *others = all_gather([[*versions, *settings.splitlines()]])
    for index, lines in enumerate(others, 1):
        if lines != first:
            differing = [(a, b) for a, b in zip(first, lines, strict=False) if a != b]
            ours, theirs = differing[0] if differing else (f"{len(first)} lines", f"{len(lines)} lines")
            raise ConfigError(
                f"process {index} differs from process 0: {theirs.strip()!r} there, {ours.strip()!r} here; "
                "start the same command with the same packages everywhere"
            )


def _row_counts(own: int) -> Int[np.ndarray, " processes"]:
    return np.asarray(process_allgather(np.int32(own)))


def _gather_rows(x: np.ndarray, counts: Int[np.ndarray, " processes"]) -> np.ndarray:
    """The rows of all processes, which may have different numbers of them."""
    padded = np.zeros((counts.max(), *x.shape[1:]), x.dtype)
    padded[: len(x)] = x
    found = np.asarray(process_allgather(padded))
    return np.concatenate([rows[:count] for rows, count in zip(found, counts, strict=True)])
