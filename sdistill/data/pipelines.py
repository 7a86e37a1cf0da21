"""Grain iterators: deterministic, checkpointable, and the same for any number of processes.

The order of batches is a function of the seed. Each of several processes takes its shard of every batch, rows
index·B/count to (index+1)·B/count of B; together they read what a single process reads. The position of an
iterator counts whole batches, so a run can continue at any step with another number of processes.
"""

import functools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np
from grain.sharding import ShardOptions

from sdistill.settings import require
from sdistill.tasks.problem import Problem
from sdistill.text.tokenizer import Tokenizer, check_response

PREFETCH = 4  # batches that are made while a step runs
# One thread is enough for data in memory, and more of them compete with the training step for the cores.
EXAMPLE_OPTIONS = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)  # the packer's thread makes them
BATCH_OPTIONS = grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCH)
SINGLE_PROCESS = ShardOptions(0, 1)


def _rows_of(shard: ShardOptions, batch_size: int) -> slice:
    """The rows of a shard. Raises ConfigError if the batch cannot be divided equally."""
    index, count = shard.shard_index, shard.shard_count
    require(batch_size % count == 0, f"{batch_size=} cannot be divided among {count=} processes")
    return slice(index * batch_size // count, (index + 1) * batch_size // count)


def tokenize_example(
    example: Mapping[str, Any], tokenizer: Tokenizer, max_length: int
) -> dict[str, np.ndarray]:
    """{prompt, response} texts as next-token arrays, with weights on the response and its end only.

    In: "a b" -> "c". Out: tokens `a b c`, targets `b c </s>`, weights `0 1 1`.

    Raises:
      ValueError: if it is longer than `max_length`, or if the response has an end token inside.
    """
    texts = (example["prompt"], example["response"])
    prompt, response = (text.decode() if isinstance(text, bytes) else text for text in texts)
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
    shard: ShardOptions = SINGLE_PROCESS,
) -> grain.DatasetIterator:
    """Endless batches of rows; a row holds one example, or as many as fit if `packed`.

    Each batch maps `tokens`, `targets`, `weights`, `segment_ids` (0 is padding, examples count from 1) and
    `positions` (from 0 in each example) to arrays [batch_size / count of shards, sequence_length]. The order
    is a function of the seed.

    The content of a packed row depends on all earlier rows, so every process makes all rows and takes its
    shard of them.
    """
    mine = _rows_of(shard, batch_size)
    fields = ("tokens", "targets", "weights")
    names = {name: name for name in fields}
    names |= {"tokens_segment_ids": "segment_ids", "tokens_positions": "positions"}

    def tokenized(index: int) -> dict[str, np.ndarray]:
        return tokenize_example(source[index], tokenizer, sequence_length)

    examples = grain.MapDataset.range(len(source)).shuffle(seed).repeat().map(tokenized)
    rows = grain.experimental.FirstFitPackIterDataset(
        examples.to_iter_dataset(EXAMPLE_OPTIONS),
        length_struct=dict.fromkeys(fields, sequence_length),
        num_packing_bins=batch_size,
        max_sequences_per_bin=None if packed else 1,
        shuffle_bins=packed,  # the first bins are the fullest
    )
    batches = rows.batch(batch_size, drop_remainder=True)
    batches = batches.map(lambda batch: {new: batch[old][mine] for old, new in names.items()})
    return iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=PREFETCH))


def problem_batches(
    problems: Sequence[Problem], *, batch_size: int, seed: int, shard: ShardOptions = SINGLE_PROCESS
) -> grain.DatasetIterator:
    """Endless batches of indices into `problems`: [batch_size / count of shards].

    All problems come once, then all again in a new order. A batch has the same problem several times if there
    are few: |D| = 1 is one problem `batch_size` times, as in the paper.

    Grain's own shuffle, which examples use, is slow where there is little to shuffle: it takes 121 ms for 64
    indices into 8 problems. It also gives seeds 0 and 1 the same orders, one epoch apart.
    """
    mine = _rows_of(shard, batch_size)

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(len(problems))

    def batch(step: int) -> np.ndarray:
        rows = range(step * batch_size, (step + 1) * batch_size)[mine]
        return np.array([order(row // len(problems))[row % len(problems)] for row in rows])

    return iter(grain.MapDataset.range(sys.maxsize).map(batch).to_iter_dataset(BATCH_OPTIONS))
