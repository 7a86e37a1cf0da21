"""Grain iterators: deterministic, checkpointable, and the same for any number of processes.

The order of batches is a function of the seed. Each of several processes takes its `Shard` of every batch;
together they read what a single process reads. The position of an iterator counts whole batches, so that a
run can continue at any step with another number of processes.
"""

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from sdistill.settings import require
from sdistill.tasks.problem import Problem
from sdistill.text.tokenizer import Tokenizer, check_response

# One thread is enough for data in memory, and more of them compete with the training step for the cores.
PREFETCH = 4  # batches that are made while a step runs
EXAMPLE_OPTIONS = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)  # the packer's thread makes them
BATCH_OPTIONS = grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCH)


@dataclass(frozen=True)
class Shard:
    """The part of every batch that a process takes: of B rows, rows index·B/count to (index+1)·B/count.

    Attributes:
      index: Of the process, as in `jax.process_index()`.
      count: Number of processes, as in `jax.process_count()`.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        in_range = 0 <= self.index < self.count
        require(in_range, f"index={self.index} must be from 0 to below count={self.count}")

    def of(self, batch_size: int) -> slice:
        """The rows of this shard. Raises ConfigError if the batch cannot be divided equally."""
        divisible = batch_size % self.count == 0
        require(divisible, f"batch_size={batch_size} cannot be divided among count={self.count} processes")
        size = batch_size // self.count
        return slice(self.index * size, (self.index + 1) * size)


def tokenize_example(
    example: Mapping[str, Any], tokenizer: Tokenizer, max_length: int
) -> dict[str, np.ndarray]:
    """{prompt, response} texts as next-token arrays, with weights on the response and its end only.

    In: "a b" -> "c". Out: tokens `a b c`, targets `b c </s>`, weights `0 1 1`.

    Raises:
      ValueError: if it is longer than `max_length`, or if the response has an end token inside.
    """
    prompt, response = (
        text.decode() if isinstance(text, bytes) else text
        for text in (example["prompt"], example["response"])
    )
    start = tokenizer.encode(prompt)
    target = [*tokenizer.encode(response), tokenizer.eos_id]
    check_response(target, tokenizer.stop_ids)
    ids = [*start, *target]
    if len(ids) - 1 > max_length:
        raise ValueError(
            f"an example of {len(ids) - 1} tokens does not fit a row of {max_length}; "
            f"raise sequence_length: {prompt!r} -> {response!r}"
        )
    return {
        "tokens": np.asarray(ids[:-1], np.int32),
        "targets": np.asarray(ids[1:], np.int32),
        "weights": (np.arange(1, len(ids)) >= len(start)).astype(np.float32),
    }


def example_batches(
    source: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    sequence_length: int,
    packed: bool,
    seed: int,
    shard: Shard = Shard(),
) -> grain.DatasetIterator:
    """Endless batches of rows; a row holds one example, or as many as fit if `packed`.

    Each batch maps `tokens`, `targets`, `weights`, `segment_ids` (0 is padding, examples count from 1) and
    `positions` (from 0 in each example) to arrays [batch_size / shard.count, sequence_length]. The order is a
    function of the seed.

    The content of a packed row depends on all earlier rows, so every process packs all rows and takes its
    shard of them; unpacked, it tokenizes its shard only.
    """
    mine = shard.of(batch_size)
    order = grain.MapDataset.source(range(len(source))).shuffle(seed).repeat()

    def tokenized(index: int) -> dict[str, np.ndarray]:
        return tokenize_example(source[index], tokenizer, sequence_length)

    def padded(index: int) -> dict[str, np.ndarray]:
        example = tokenized(index)
        length = len(example["tokens"])
        row = {name: np.pad(values, (0, sequence_length - length)) for name, values in example.items()}
        row["segment_ids"] = (np.arange(sequence_length) < length).astype(np.int32)
        row["positions"] = np.arange(sequence_length, dtype=np.int32) * row["segment_ids"]
        return row

    def my_rows(indices: np.ndarray) -> dict[str, np.ndarray]:
        rows = [padded(index) for index in indices[mine]]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    if not packed:
        return iter(order.batch(batch_size, drop_remainder=True).map(my_rows).to_iter_dataset(BATCH_OPTIONS))

    def my_packed_rows(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = {"tokens_segment_ids": "segment_ids", "tokens_positions": "positions"}
        names |= {name: name for name in ("tokens", "targets", "weights")}
        return {new: batch[old][mine] for old, new in names.items()}

    packed_rows = grain.experimental.FirstFitPackIterDataset(
        order.map(tokenized).to_iter_dataset(EXAMPLE_OPTIONS),
        length_struct={name: sequence_length for name in ("tokens", "targets", "weights")},
        num_packing_bins=batch_size,
    )
    batches = packed_rows.batch(batch_size, drop_remainder=True).map(my_packed_rows)
    return iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=PREFETCH))


def problem_batches(
    problems: Sequence[Problem], *, batch_size: int, seed: int, shard: Shard = Shard()
) -> grain.DatasetIterator:
    """Endless batches of indices into `problems`: [batch_size / shard.count].

    All problems come once, then all again in a new order. A batch has the same problem several times if there
    are few: |D| = 1 is one problem `batch_size` times, as in the paper.
    """
    mine = shard.of(batch_size)
    batches = grain.MapDataset.source(_Epochs(len(problems), seed)).batch(batch_size, drop_remainder=True)
    return iter(batches.map(lambda indices: indices[mine]).to_iter_dataset(BATCH_OPTIONS))


class _Epochs(Sequence[int]):
    """An endless sequence of indices: each epoch has all of them, in an order of seed and epoch.

    Grain's own shuffle, which examples use, is slow where there is little to shuffle: it takes 121 ms for 64
    indices into 8 problems. It also gives seeds 0 and 1 the same orders, one epoch apart.
    """

    def __init__(self, count: int, seed: int):
        self._count = count
        self._permutation = functools.lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng((seed, epoch)).permutation(count)
        )

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, position: Any) -> Any:
        epoch, step = divmod(position, self._count)
        return self._permutation(epoch)[step]
