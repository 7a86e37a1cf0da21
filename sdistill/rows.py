"""How prompts and responses become the fixed-shape arrays of a training step."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from sdistill.model.decoder import Decoder

NAMED_ROWS = 8  # that an error names one by one


class Rows(NamedTuple):
    """Sequences of P prompt and T response columns.

    Prompts end at column P, responses begin there, and so the prediction of response token t is always
    at column P - 1 + t. Student and teacher rows of one batch differ in P and share the response columns.

    Attributes:
      tokens: Ids; padding is 0.
      positions: Position of each token in its own sequence; 0 on padding.
      segment_ids: 1 on tokens, 0 on padding, which sees and is seen by nothing.
      response_mask: 1.0 on response tokens (the end token included), 0.0 after.
    """

    tokens: Int[Array, "B P+T"]
    positions: Int[Array, "B P+T"]
    segment_ids: Int[Array, "B P+T"]
    response_mask: Float[Array, "B T"]


def layout(
    prompts: Sequence[Sequence[int]],
    responses: Int[np.ndarray, "B T"],
    lengths: Int[np.ndarray, " B"],
    max_prompt: int,
) -> Rows:
    """Lays out B prompts and their responses (of which the first `lengths` tokens count).

    Raises:
      ValueError: if a prompt is empty or longer than `max_prompt`.
    """
    batch, response_length = responses.shape
    tokens = np.zeros((batch, max_prompt + response_length), np.int32)
    segment_ids = np.zeros_like(tokens)
    starts = np.empty(batch, np.int32)
    for row, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= max_prompt:
            raise ValueError(
                f"prompt {row} has {len(prompt)} tokens; it must have 1 to {max_prompt} "
                "(raise max_prompt or max_teacher_prompt)"
            )
        starts[row] = max_prompt - len(prompt)
        tokens[row, starts[row] : max_prompt] = prompt
        segment_ids[row, starts[row] : max_prompt + lengths[row]] = 1
    mask = np.arange(response_length) < lengths[:, None]
    tokens[:, max_prompt:] = np.where(mask, responses, 0)
    positions = (np.arange(tokens.shape[1]) - starts[:, None]) * segment_ids
    # On the host until `place_batch`: hence the cast.
    columns: Any = (tokens, positions.astype(np.int32), segment_ids, mask.astype(np.float32))
    return Rows(*columns)


def check_same_responses(student: Rows, teacher: Rows) -> None:
    """Refuses rows of one batch that do not hold the same responses: the teacher would score other tokens.

    Raises:
      ValueError: naming the first row and the first response position that differ.
    """
    ours, theirs = np.asarray(response_ids(student)), np.asarray(response_ids(teacher))
    if ours.shape != theirs.shape:
        raise ValueError(f"responses of shape {theirs.shape} beside those of shape {ours.shape}")
    counted = np.asarray(student.response_mask), np.asarray(teacher.response_mask)
    differs_BT = (ours != theirs) | (counted[0] != counted[1])
    if differs_BT.any():
        row, t = np.argwhere(differs_BT)[0]
        shown = [
            int(ids[row, t]) if mask[row, t] else None
            for ids, mask in zip((ours, theirs), counted, strict=True)
        ]
        raise ValueError(
            f"row {row}: the student's and the teacher's response differ at position {t}: token {shown[0]} "
            f"and token {shown[1]}; lay both rows out from the same rollout"
        )


def response_hidden(model: Decoder, rows: Rows) -> Float[Array, "B T D"]:
    """Hidden states that predict the response tokens."""
    hidden = model(rows.tokens, rows.positions, rows.segment_ids)
    response_length = rows.response_mask.shape[1]
    return hidden[:, -response_length - 1 : -1]


def response_ids(rows: Rows) -> Int[Array, "B T"]:
    """The response columns."""
    return rows.tokens[:, -rows.response_mask.shape[1] :]


def sequences_of(rows: Rows) -> list[tuple[int, int]]:
    """Tokens of each sequence, prompt and response together, and of its response."""
    lengths, responses = (
        np.asarray(x).sum(axis=1).astype(int) for x in (rows.segment_ids, rows.response_mask)
    )
    return list(zip(lengths.tolist(), responses.tolist(), strict=True))


def listed(rows: Sequence[str]) -> str:
    """The names of rows for an error: the first few, and how many more there are."""
    more = f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else ""
    return f"{', '.join(rows[:NAMED_ROWS])}{more}"
