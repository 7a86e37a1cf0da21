"""Measured context richness: how many bits a context changes the responses by.

For y drawn from p(·|x, c), the mean of log p(y|x, c) - log p(y|x) over responses estimates
E_c KL(p(y|x,c) ‖ p(y|x)), which is at least I(y; c|x), with equality where p(y|x) is the true marginal
over contexts. The paper (arXiv 2603.24472) orders contexts by this and does not measure it.
"""

import functools
import math
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from sdistill.batch import layout, take_rows
from sdistill.engine.types import Completions
from sdistill.losses import Sequences, score_responses
from sdistill.model.config import ModelConfig


@functools.partial(jax.jit, static_argnames=("model", "chunk"))
def _response_log_probs(
    params: nnx.State, rows: Sequences, *, model: ModelConfig, chunk: int
) -> Float[Array, "B T"]:
    """Log-probability of each response token at temperature 1, in nats; 0 after the end. No entropies."""
    scores = score_responses(params, rows, model=model, temperature=1.0, logits_chunk_size=chunk)
    return scores.log_prob_BT * rows.response_mask


def richness_bits(
    params: nnx.State,
    model: ModelConfig,
    plain_prompts: Sequence[Sequence[int]],
    rollouts: Completions,
    *,
    max_prompt: int,
    batch: int,
    chunk: int,
) -> Float[np.ndarray, " N"]:
    """log2 p(y|x, c) - log2 p(y|x) of each rollout, which was sampled with a context at temperature 1.

    Args:
      params: The weights that sampled.
      plain_prompts: For each rollout the prompt without context, x.
      rollouts: y, with its log-probabilities under the context.
      max_prompt: Columns for the prompts.
      batch: Rows scored at a time.
      chunk: Positions a row whose logits exist at the same time.
    """
    count, unguided = len(plain_prompts), []
    sequences = layout(plain_prompts, rollouts.ids, rollouts.lengths, max_prompt)
    for start in range(0, count, batch):
        indices = np.minimum(np.arange(start, start + batch), count - 1)  # the last batch is filled up
        rows = take_rows(sequences, indices)
        log_prob_BT = _response_log_probs(params, rows, model=model, chunk=chunk)
        unguided.append(np.asarray(log_prob_BT).sum(axis=1))
    return (rollouts.full_log_probs.sum(axis=1) - np.concatenate(unguided)[:count]) / math.log(2)
