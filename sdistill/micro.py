"""How a batch is cut: into mini-batches, one an update, and these into micro-batches.

A micro-batch is the rows whose gradient is computed at the same time. Rows are sorted by length and cut; each
micro-batch keeps as many quarters of the columns as its longest row needs. So padding is bounded, and at most
four shapes are ever compiled.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sdistill.losses import OnPolicyBatch
from sdistill.rows import Rows
from sdistill.step import PackedBatch

QUARTERS = 4


def mini_batches(batch: OnPolicyBatch, rows: int) -> Iterator[OnPolicyBatch]:
    """Parts of `rows` rows each, in the order of the batch, which the iterator has shuffled already.

    Args:
      batch: On the host; its number of rows is a multiple of `rows`, and `rows` one of a group's samples.
      rows: Rows of a part.
    """
    for start in range(0, len(batch.weights), rows):
        yield _rows_of(batch, slice(start, start + rows))


def on_policy_micro_batches(
    batch: OnPolicyBatch, rows: int
) -> Iterator[tuple[Int[np.ndarray, " b"], OnPolicyBatch]]:
    """Parts of `rows` rows each, the longest first, with the numbers that their rows have in the batch.

    The order of rows does not matter to the objective: what each token counts is in the batch.

    Args:
      batch: On the host; its number of rows is a multiple of `rows`.
      rows: Rows of a part.
    """
    quarters_B = _quarters(batch)
    order_B = np.argsort(-quarters_B, kind="stable")
    for start in range(0, len(order_B), rows):
        chosen = order_B[start : start + rows]
        yield chosen, _trimmed(_rows_of(batch, chosen), int(quarters_B[chosen[0]]))


def packed_micro_batches(
    batch: PackedBatch, rows: int
) -> Iterator[tuple[Int[np.ndarray, " b"], PackedBatch]]:
    """Parts of `rows` rows each, which are full as they are, with the numbers of their rows."""
    for start in range(0, len(batch.tokens), rows):
        chosen = np.arange(start, start + rows)
        yield chosen, PackedBatch(*(x[chosen] for x in batch))


def _rows_of(batch: OnPolicyBatch, chosen: slice | Int[np.ndarray, " b"]) -> OnPolicyBatch:
    """A batch of these rows."""

    def choose(field: Any) -> Any:
        return Rows(*(x[chosen] for x in field)) if isinstance(field, Rows) else field[chosen]

    fields: Any = [None if field is None else choose(field) for field in batch]
    return OnPolicyBatch(*fields)


def _quarters(batch: OnPolicyBatch) -> Int[np.ndarray, " B"]:
    """How many quarters of the columns a row needs, of responses or of either prompt, whatever needs most."""
    shares = [_share(batch.student.response_mask.sum(axis=1), batch.student.response_mask.shape[1])]
    for rows in (batch.student, batch.teacher):
        if rows is not None:
            columns = rows.tokens.shape[1] - rows.response_mask.shape[1]
            shares.append(_share(rows.segment_ids[:, :columns].sum(axis=1), columns))
    return np.maximum(1, np.ceil(np.max(shares, axis=0) * QUARTERS)).astype(int)


def _share(lengths_B: Any, room: int) -> Float[np.ndarray, " B"]:
    return np.asarray(lengths_B) / room


def _trimmed(batch: OnPolicyBatch, quarters: int) -> OnPolicyBatch:
    """Without the columns beyond so many quarters: the ends of responses, the beginnings of prompts."""
    room = batch.student.response_mask.shape[1]
    kept = -(-room * quarters // QUARTERS)

    def cut(rows: Rows) -> Rows:
        prompt = rows.tokens.shape[1] - room
        start = prompt - -(-prompt * quarters // QUARTERS)
        columns = slice(start, prompt + kept)
        tokens, positions, segment_ids = (x[:, columns] for x in rows[:3])
        return Rows(tokens, positions, segment_ids, rows.response_mask[:, :kept])

    fields: dict[str, Any] = {}
    for name, value in batch._asdict().items():
        if isinstance(value, Rows):
            fields[name] = cut(value)
        elif value is not None:
            fields[name] = value[:, :kept] if value.ndim > 1 else value
    return batch._replace(**fields)
