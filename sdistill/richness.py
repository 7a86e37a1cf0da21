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

from sdistill.batch import layout
from sdistill.engine.types import Completions
from sdistill.losses import Sequences, response_hidden, response_ids
from sdistill.model.config import ModelConfig
from sdistill.model.decoder import bind
from sdistill.model.scoring import score_tokens


def bits_between(
    params: nnx.State,
    model: ModelConfig,
    prompts: Sequence[tuple[Sequence[int], Sequence[int]]],
    responses: Sequence[Sequence[int]],
    *,
    max_prompt: int,
    max_response: int,
    chunk: int,
) -> Float[np.ndarray, " N"]:
    """log2 p(y|x, c) - log2 p(y|x) of responses that are there as tokens only; a row is scored at a time.

    Args:
      params: The weights that sampled, at temperature 1.
      model: Their shape.
      prompts: Of each response, without the context and with it.
      responses: With their end tokens.
      max_prompt: Columns for the prompts.
      max_response: Columns for the responses.
      chunk: Positions whose logits exist at the same time.
    """
    found = np.empty((len(responses), 2))
    for i, (pair, response) in enumerate(zip(prompts, responses, strict=True)):
        ids = np.zeros((1, max_response), np.int32)
        ids[0, : len(response)] = response
        for j, prompt in enumerate(pair):
            rows = layout([prompt], ids, np.asarray([len(response)]), max_prompt)
            found[i, j] = response_log_probs(params, rows, model=model, chunk=chunk).sum()
    return (found[:, 1] - found[:, 0]) / math.log(2)


@functools.partial(jax.jit, static_argnames=("model", "chunk"))
def response_log_probs(
    params: nnx.State, rows: Sequences, *, model: ModelConfig, chunk: int
) -> Float[Array, "B T"]:
    """Log-probability of each response token at temperature 1, in nats; 0 after the end."""
    decoder = bind(model, params)
    scores = score_tokens(response_hidden(decoder, rows), decoder.head(), response_ids(rows), chunk=chunk)
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
      model: Their shape.
      plain_prompts: For each rollout the prompt without context, x.
      rollouts: y, with its log-probabilities under the context.
      max_prompt: Columns for the prompts.
      batch: Rows scored at a time.
      chunk: Positions a row whose logits exist at the same time.
    """
    count = len(plain_prompts)
    unguided = []
    for start in range(0, count, batch):
        indices = np.minimum(np.arange(start, start + batch), count - 1)  # the last batch is filled up
        prompts = [plain_prompts[i] for i in indices]
        rows = layout(prompts, rollouts.ids[indices], rollouts.lengths[indices], max_prompt)
        log_probs = response_log_probs(params, rows, model=model, chunk=chunk)
        unguided.append(np.asarray(log_probs).sum(axis=1))
    return (rollouts.full_log_probs.sum(axis=1) - np.concatenate(unguided)[:count]) / math.log(2)
