"""Draws one token per row from logits: temperature, top-k, top-p, min-p, and log-probabilities.

All three truncations keep the tokens above some probability, so each row has one threshold. It is found by
halving an interval: exactly, in 30 passes over the vocabulary, which cost far less than sorting it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from sdistill.settings import require, require_fraction, require_positive

LIKELIEST = 80.0  # nats by which a forbidden token may exceed the others before float32 ends
BLOCK = 128  # tokens whose probabilities are added up before one of them is drawn


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. The values are array inputs of the compiled sampler, one a row.

    The distribution is truncated in the order of the fields, as in Hugging Face's generation.

    Attributes:
      temperature: Divides the logits; 0 takes the likeliest token.
      top_k: Only the k likeliest tokens may be drawn; None for all.
      top_p: Only the smallest set of tokens with at least this probability may be drawn.
      min_p: Only tokens with at least this share of the likeliest one's probability may be drawn.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        require(
            math.isfinite(self.temperature) and self.temperature >= 0,
            f"temperature={self.temperature} must be 0 or more",
        )
        require_positive(self, "top_k")
        require_fraction(self, "min_p")
        require(0 < self.top_p <= 1, f"top_p={self.top_p} must be above 0 and at most 1")


class SamplingArrays(NamedTuple):
    """`Sampling` of each row; `top_k` is 0 for all tokens."""

    temperature_B: Float[Array | np.ndarray, " B"]
    top_k_B: Int[Array | np.ndarray, " B"]
    top_p_B: Float[Array | np.ndarray, " B"]
    min_p_B: Float[Array | np.ndarray, " B"]

    @classmethod
    def of(cls, rows: Sequence[Sampling]) -> "SamplingArrays":
        """On the host."""
        return cls(
            np.asarray([row.temperature for row in rows], np.float32),
            np.asarray([row.top_k or 0 for row in rows], np.int32),
            np.asarray([row.top_p for row in rows], np.float32),
            np.asarray([row.min_p for row in rows], np.float32),
        )


class Drawn(NamedTuple):
    """One token per row.

    Attributes:
      ids_B: The tokens.
      log_prob_B: Their log-probability under the distribution they were drawn from.
      full_log_prob_B: The same before truncation and with nothing forbidden, at the same temperature (at 1
        when greedy).
      finite_B: Whether the row's logits were finite. Where not, the rest is to be ignored.
    """

    ids_B: Int[Array, " B"]
    log_prob_B: Float[Array, " B"]
    full_log_prob_B: Float[Array, " B"]
    finite_B: Bool[Array, " B"]


def draw(
    logits_BV: Float[Array, "B V"],
    keys_B: UInt32[Array, "B 2"],
    settings: SamplingArrays,
    forbidden_V: Bool[Array, " V"],
) -> Drawn:
    """Draws a token for each row with its own key, whatever the other rows are.

    Forbidden tokens are never drawn; the settings apply to the others. Some token must be allowed.
    """
    logits_BV = logits_BV.astype(jnp.float32)
    greedy_B = settings.temperature_B == 0
    scaled_BV = logits_BV / jnp.where(greedy_B, 1.0, settings.temperature_B)[:, None]

    # Weights are probabilities as shares of the likeliest allowed token's.
    allowed_BV = jnp.where(forbidden_V, -jnp.inf, scaled_BV)
    peak_B = jnp.max(allowed_BV, axis=-1)
    weights_BV = jnp.exp(jnp.minimum(scaled_BV - peak_B[:, None], LIKELIEST))

    # Truncate, and draw.
    open_BV = jnp.where(forbidden_V, 0.0, weights_BV)
    kept_BV = jnp.where(open_BV >= lowest_kept(open_BV, settings)[:, None], open_BV, 0.0)
    drawn_B = jax.vmap(_invert)(keys_B, kept_BV)
    ids_B = jnp.where(greedy_B, jnp.argmax(allowed_BV, axis=-1), drawn_B).astype(jnp.int32)

    # Log-probabilities under what was drawn from, and under the model.
    chosen_B = jnp.take_along_axis(scaled_BV, ids_B[:, None], axis=-1)[:, 0] - peak_B
    log_prob_B = jnp.where(greedy_B, 0.0, chosen_B - jnp.log(jnp.sum(kept_BV, axis=-1)))
    full_log_prob_B = chosen_B - jnp.log(jnp.sum(weights_BV, axis=-1))
    return Drawn(ids_B, log_prob_B, full_log_prob_B, jnp.isfinite(full_log_prob_B))


def lowest_kept(weights_BV: Float[Array, "B V"], settings: SamplingArrays) -> Float[Array, " B"]:
    """The smallest weight with which a token of the row may be drawn.

    Args:
      weights_BV: Probabilities as shares of the likeliest token's.
      settings: How to truncate. Tokens as likely as the last one kept are kept as well.
    """
    rows, top_k_B, top_p_B = len(weights_BV), settings.top_k_B, settings.top_p_B

    def kept(lowest_B: jax.Array) -> jax.Array:
        return weights_BV >= lowest_B[:, None]

    def mass(lowest_B: jax.Array) -> jax.Array:
        return jnp.sum(weights_BV, axis=-1, where=kept(lowest_B))

    def of_top_k() -> jax.Array:
        lowest_B = _largest(rows, lambda x_B: jnp.sum(kept(x_B), axis=-1) >= top_k_B)
        return jnp.where(top_k_B > 0, lowest_B, 0.0)

    zeros_B = jnp.zeros(rows)
    of_top_k_B = jax.lax.cond(jnp.any(top_k_B > 0), of_top_k, lambda: zeros_B)

    def of_top_p() -> jax.Array:
        target_B = top_p_B * mass(of_top_k_B)  # a share of what top-k leaves
        lowest_B = _largest(rows, lambda x_B: mass(jnp.maximum(x_B, of_top_k_B)) >= target_B)
        return jnp.where(top_p_B < 1, lowest_B, 0.0)

    of_top_p_B = jax.lax.cond(jnp.any(top_p_B < 1), of_top_p, lambda: zeros_B)
    return jnp.maximum(jnp.maximum(of_top_k_B, of_top_p_B), settings.min_p_B)


def _largest(rows: int, holds: Callable[[jax.Array], jax.Array]) -> Float[Array, " B"]:
    """The largest number from 0 to 1 for which a condition holds that holds from 0 up to some number.

    Exact after 30 halvings: between 0 and 1, floats are in the order of their bits.
    """

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low_B, high_B = bounds
        middle_B = (low_B + high_B) // 2
        holds_B = holds(middle_B.view(jnp.float32))
        return jnp.where(holds_B, middle_B, low_B), jnp.where(holds_B, high_B, middle_B)

    beyond = int(np.float32(1).view(np.int32)) + 1
    start = jnp.zeros(rows, jnp.int32), jnp.full(rows, beyond, jnp.int32)
    return jax.lax.fori_loop(0, beyond.bit_length(), halve, start)[0].view(jnp.float32)


def _invert(key: UInt32[Array, " 2"], weights_V: Float[Array, " V"]) -> Int[Array, ""]:
    """An index, drawn in proportion to its weight: first its block, then which of the block.

    That takes two random numbers. Gumbel noise would take V, which cost a small model more than its layers.
    """
    blocks = jnp.pad(weights_V, (0, -len(weights_V) % BLOCK)).reshape(-1, BLOCK)
    u, v = jax.random.uniform(key, (2,))
    block = _first_beyond(u, jnp.sum(blocks, axis=-1))
    return block * BLOCK + _first_beyond(v, blocks[block])


def _first_beyond(u: Float[Array, ""], weights_N: Float[Array, " N"]) -> Int[Array, ""]:
    """Where the running sum passes the share `u` of the whole; rounding never leads to a weight of zero."""
    running_N = jnp.where(weights_N > 0, jnp.cumsum(weights_N), 0.0)
    return jnp.argmax(running_N > u * jnp.max(running_N))
