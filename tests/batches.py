"""Batches of random tokens for the losses."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sdistill.batch import layout
from sdistill.config import Aggregation
from sdistill.divergence.definition import DivergenceConfig
from sdistill.losses import GRPOBatch, SDPOBatch, token_weights
from tests import tiny

MODEL = dataclasses.replace(tiny.CONFIG, num_hidden_layers=1)
FULL = DivergenceConfig(support="full", top_k=None, tail=None)
"""Over all 24 ids."""

Ids = Sequence[Sequence[int]]


def random_ids(lengths: Sequence[int], seed: int = 0, vocab_size: int = MODEL.vocab_size) -> list[list[int]]:
    """Sequences of these lengths."""
    rng = np.random.default_rng(seed)
    return [rng.integers(1, vocab_size, length).tolist() for length in lengths]


def sdpo_batch(
    responses: Ids,
    prompts: Ids,
    contexts: Ids,
    *,
    columns: tuple[int, int, int] = (16, 8, 12),
    has_teacher: Sequence[int] | None = None,
    aggregation: Aggregation = "seq_mean_token_mean",
) -> SDPOBatch:
    """Rows with these ids; log-probabilities and epistemic words are random.

    Args:
      responses: Of each row.
      prompts: The student's.
      contexts: The teacher's prompts.
      columns: Of responses, and of the student's and the teacher's prompts.
      has_teacher: By default all rows have one.
      aggregation: Which token weights follow.
    """
    rng, shape = np.random.default_rng(0), (len(responses), columns[0])
    lengths = np.array([len(response) for response in responses])
    ids = np.array([[*response, *[0] * (columns[0] - len(response))] for response in responses])
    student, teacher = (
        layout(rows, ids, lengths, room) for rows, room in ((prompts, columns[1]), (contexts, columns[2]))
    )
    mask = np.asarray(student.response_mask)
    taught = np.asarray([1] * len(mask) if has_teacher is None else has_teacher, np.float32)
    return SDPOBatch(
        student=student,
        teacher=teacher,
        has_teacher=taught,
        token_weights=token_weights(mask * taught[:, None], aggregation),
        rollout_log_probs=(rng.normal(-3, 0.3, shape) * mask).astype(np.float32),
        epistemic_mask=(rng.integers(0, 2, shape) * mask).astype(np.float32),
    )


def grpo_batch(
    batch: SDPOBatch, advantages: Sequence[float], aggregation: Aggregation = "seq_mean_token_mean"
) -> GRPOBatch:
    """The same rollouts, with an advantage a row."""
    mask = np.asarray(batch.student.response_mask)
    return GRPOBatch(
        student=batch.student,
        advantages=np.asarray(advantages, np.float32)[:, None] * mask,
        token_weights=token_weights(mask, aggregation),
        rollout_log_probs=batch.rollout_log_probs,
    )
