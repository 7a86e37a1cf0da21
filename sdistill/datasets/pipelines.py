"""Grain iterators: deterministic, checkpointable, fed by TFDS data sources or by plain lists."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds

from sdistill.config import ConfigError
from sdistill.datasets.signs.builders import SignsCorpus, SignsProblems
from sdistill.tasks.problem import Problem
from sdistill.tasks.signs.puzzle import problem_from_text
from sdistill.text.tokenizer import Tokenizer, check_response

# One thread is enough for data in memory, and more of them fight the training step for the cores.
_IN_MEMORY = grain.ReadOptions(num_threads=1, prefetch_buffer_size=256)


def open_corpus(split: str, data_dir: str | Path | None = None) -> list[dict[str, bytes]]:
    """The pretraining corpus, prepared first if it is not there: a list of {prompt, response}."""
    return _open(SignsCorpus, split, data_dir)


@functools.cache
def open_problems(split: str, data_dir: str | Path | None = None) -> tuple[Problem, ...]:
    """The puzzles of a split such as `k3_pool`, in their fixed order."""
    records = _open(SignsProblems, split, data_dir)
    return tuple(problem_from_text(record["question"].decode()) for record in records)


def _open(builder_class: Any, split: str, data_dir: str | Path | None) -> list[dict[str, bytes]]:
    """Reads a whole split: these data sets are small, and one read at a time costs 15 times more."""
    builder = builder_class(data_dir=data_dir, file_format="array_record")
    tfds.disable_progress_bar()  # it draws three bars for what takes seconds
    builder.download_and_prepare()
    if split not in builder.info.splits:
        raise ConfigError(f"no split {split!r} in {builder.name}; it has {', '.join(builder.info.splits)}")
    source = builder.as_data_source(split)
    return list(source.__getitems__(range(len(source))))


class TokenizeExample(grain.transforms.Map):
    """{prompt, response} texts to next-token arrays, with weight on the response (and its end) only.

    In: "a b" -> "c". Out: tokens `a b c`, targets `b c </s>`, weights `0 1 1`.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int):
        self._tokenizer = tokenizer
        self._max_length = max_length

    def map(self, element: dict[str, Any]) -> dict[str, np.ndarray]:
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
) -> grain.DatasetIterator:
    """Endless batches of `rows` rows of `row_length` tokens, holding one example or as many as fit.

    Each batch maps `tokens`, `targets`, `weights`, `segments` (0 is padding, examples count from 1) and
    `positions` (from 0 in each example) to arrays [rows, row_length]. The order is a function of the
    seed.
    """
    examples = (
        grain.MapDataset.source(source).shuffle(seed).repeat().map(TokenizeExample(tokenizer, row_length))
    )
    if not packed:
        single = examples.map(lambda example: _single_row(example, row_length))
        return iter(single.to_iter_dataset(_IN_MEMORY).batch(rows))
    fitted = grain.experimental.FirstFitPackIterDataset(
        examples.to_iter_dataset(_IN_MEMORY),
        length_struct={name: row_length for name in ("tokens", "targets", "weights")},
        num_packing_bins=rows,
    )
    return iter(fitted.map(_rename).batch(rows, drop_remainder=True))


def _single_row(example: dict[str, np.ndarray], row_length: int) -> dict[str, np.ndarray]:
    length = len(example["tokens"])
    row = {name: np.pad(values, (0, row_length - length)) for name, values in example.items()}
    row["segments"] = (np.arange(row_length) < length).astype(np.int32)
    row["positions"] = np.arange(row_length, dtype=np.int32) * row["segments"]
    return row


def _rename(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        "tokens": row["tokens"],
        "targets": row["targets"],
        "weights": row["weights"],
        "segments": row["tokens_segment_ids"],
        "positions": row["tokens_positions"],
    }


def problem_batches(problems: Sequence[Problem], *, batch: int, seed: int) -> grain.DatasetIterator:
    """Endless batches of indices into `problems`; all problems once, then all again in a new order.

    A batch may hold the same problem several times if there are few: |D| = 1 is one problem `batch`
    times, as in the paper.
    """
    indices = grain.MapDataset.source(range(len(problems))).shuffle(seed).repeat()
    return iter(indices.to_iter_dataset(_IN_MEMORY).batch(batch))
