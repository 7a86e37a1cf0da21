"""From hidden states to what losses need of the vocabulary, a chunk of positions at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class TokenScores(NamedTuple):
    """What a model says at each position about one given id.

    Attributes:
      log_prob_BT: Log-probability of the id, in nats.
      entropy_BT: Entropy of the whole next-token distribution, in nats.
    """

    log_prob_BT: Float[Array, "B T"]
    entropy_BT: Float[Array, "B T"]


def by_chunks(
    function: Callable[..., Any], chunk: int, *arrays_BT: Float[Array, "B T ..."] | Int[Array, "B T ..."]
) -> Any:
    """Applies `function` to chunks of T positions, so that no `[B, T, V]` array is ever made.

    `function` takes slices `[B, chunk, …]` of the arrays and returns a tree of `[B, chunk, …]`; it is
    recomputed in the backward pass instead of keeping its logits. Positions are padded with zeros to
    whole chunks, and the results are cut back to T.
    """
    function = jax.checkpoint(function)
    batch, length = arrays_BT[0].shape[:2]
    if length <= chunk:
        return function(*arrays_BT)
    padding = -length % chunk

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, -1, chunk, *x.shape[2:]), 1, 0)

    def join(y: jax.Array) -> jax.Array:
        return jnp.moveaxis(y, 0, 1).reshape(batch, -1, *y.shape[3:])[:, :length]

    chunks = jax.lax.map(lambda xs: function(*xs), tuple(split(x) for x in arrays_BT))
    return jax.tree.map(join, chunks)


def score_logits(logits_BTV: Float[Array, "B T V"], ids_BT: Int[Array, "B T"]) -> TokenScores:
    """Log-probability of the ids and entropy, both from one float32 log-softmax."""
    log_p_BTV = jax.nn.log_softmax(logits_BTV.astype(jnp.float32))
    log_prob_BT = jnp.take_along_axis(log_p_BTV, ids_BT[..., None], axis=-1)[..., 0]
    return TokenScores(log_prob_BT, -jnp.sum(jnp.exp(log_p_BTV) * log_p_BTV, axis=-1))


def score_tokens(
    hidden_BTD: Float[Array, "B T D"],
    head_DV: Float[Array, "D V"],
    ids_BT: Int[Array, "B T"],
    *,
    chunk: int,
    temperature: float | Float[Array, ""] = 1.0,
) -> TokenScores:
    """Scores of ids under a model's hidden states, differentiable, by chunks of positions."""
    return by_chunks(
        lambda hidden, ids: score_logits(hidden @ head_DV / temperature, ids), chunk, hidden_BTD, ids_BT
    )
