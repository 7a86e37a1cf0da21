"""Grain iterators: deterministic, checkpointable, the same whatever the number of processes.

The order of batches is a function of the seed. Several processes take a `Share` of every batch each: together
they see what one would see. The position of an iterator counts what all of them have seen, and so a run can
continue, at any step, with another number of processes.
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

# One thread is enough for data in memory, and more of them fight the training step for the cores.
_AHEAD = 4  # batches that are made while a step runs
_EXAMPLES = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)  # the packer's thread makes them
_BATCHES = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_AHEAD)


@dataclass(frozen=True)
class Share:
    """The part of every batch that a process takes: of B rows, rows index·B/count to (index+1)·B/count.

    Attributes:
      index: Of the process, as `jax.process_index()` gives it.
      count: Of processes, as `jax.process_count()` does.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        require(
            0 <= self.index < self.count, f"index={self.index} must be from 0 to below count={self.count}"
        )

    def of(self, rows: int) -> slice:
        """The rows of a batch that are this share.

        Raises:
          ConfigError: if the batch cannot be divided equally.
        """
        require(rows % self.count == 0, f"rows={rows} cannot be divided among count={self.count} processes")
        size = rows // self.count
        return slice(self.index * size, (self.index + 1) * size)


class TokenizeExample(grain.transforms.Map):
    """{prompt, response} texts to next-token arrays, with weight on the response (and its end) only.

    In: "a b" -> "c". Out: tokens `a b c`, targets `b c </s>`, weights `0 1 1`.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int):
        self._tokenizer = tokenizer
        self._max_length = max_length

    def map(self, element: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Tokenizes one example.

        Raises:
          ValueError: if it is longer than `max_length`, or an end token stands in the middle of the response.
        """
        prompt, response = (
            text.decode() if isinstance(text, bytes) else text
            for text in (element["prompt"], element["response"])
        )
        start = self._tokenizer.encode(prompt)
        target = [*self._tokenizer.encode(response), self._tokenizer.eos_id]
        check_response(target, self._tokenizer.stop_ids)
        ids = [*start, *target]
        if len(ids) - 1 > self._max_length:
            raise ValueError(
                f"an example of {len(ids) - 1} tokens does not fit a row of {self._max_length}; "
                f"raise row_length: {prompt!r} -> {response!r}"
            )
        weights = np.arange(1, len(ids)) >= len(start)
        return {
            "tokens": np.asarray(ids[:-1], np.int32),
            "targets": np.asarray(ids[1:], np.int32),
            "weights": weights.astype(np.float32),
        }


def example_batches(
    source: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    *,
    rows: int,
    row_length: int,
    packed: bool,
    seed: int,
    share: Share = Share(),
) -> grain.DatasetIterator:
    """Endless batches of `rows` rows of `row_length` tokens, holding one example or as many as fit.

    Each batch maps `tokens`, `targets`, `weights`, `segment_ids` (0 is padding, examples count from 1) and
    `positions` (from 0 in each example) to arrays [rows / share.count, row_length]. The order is a function
    of the seed.

    What fits into a row depends on all the rows before it, so every process packs all rows, and keeps its
    share; unpacked, it tokenizes its share only.
    """
    mine = share.of(rows)
    tokenize = TokenizeExample(tokenizer, row_length)
    order = grain.MapDataset.source(range(len(source))).shuffle(seed).repeat()
    if not packed:

        def my_rows(indices: np.ndarray) -> dict[str, np.ndarray]:
            singles = [_single_row(tokenize.map(source[i]), row_length) for i in indices[mine]]
            return {name: np.stack([row[name] for row in singles]) for name in singles[0]}

        return iter(order.batch(rows, drop_remainder=True).map(my_rows).to_iter_dataset(_BATCHES))
    examples = order.map(lambda i: tokenize.map(source[i]))
    fitted = grain.experimental.FirstFitPackIterDataset(
        examples.to_iter_dataset(_EXAMPLES),
        length_struct={name: row_length for name in ("tokens", "targets", "weights")},
        num_packing_bins=rows,
    )
    whole = fitted.map(_rename).batch(rows, drop_remainder=True)
    shared = whole.map(lambda batch: {name: values[mine] for name, values in batch.items()})
    return iter(grain.experimental.ThreadPrefetchIterDataset(shared, prefetch_buffer_size=_AHEAD))


def problem_batches(
    problems: Sequence[Problem], *, batch: int, seed: int, share: Share = Share()
) -> grain.DatasetIterator:
    """Endless batches of indices into `problems`; all problems once, then all again in a new order.

    A batch may hold the same problem several times if there are few: |D| = 1 is one problem `batch`
    times, as in the paper. A process gets `batch / share.count` indices of each.
    """
    mine = share.of(batch)
    order = grain.MapDataset.source(_Epochs(len(problems), seed))
    batches = order.batch(batch, drop_remainder=True)
    return iter(batches.map(lambda indices: indices[mine]).to_iter_dataset(_BATCHES))


class _Epochs(Sequence[int]):
    """An endless walk over indices: all once, in an order of seed and epoch, then all again in another.

    Grain's own shuffle, which examples have, is slow where there is little to shuffle: it takes 121 ms for 64
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


def _single_row(example: dict[str, np.ndarray], row_length: int) -> dict[str, np.ndarray]:
    length = len(example["tokens"])
    row = {name: np.pad(values, (0, row_length - length)) for name, values in example.items()}
    row["segment_ids"] = (np.arange(row_length) < length).astype(np.int32)
    row["positions"] = np.arange(row_length, dtype=np.int32) * row["segment_ids"]
    return row


def _rename(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        "tokens": row["tokens"],
        "targets": row["targets"],
        "weights": row["weights"],
        "segment_ids": row["tokens_segment_ids"],
        "positions": row["tokens_positions"],
    }
