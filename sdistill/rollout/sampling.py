"""Drawing one token from logits: temperature, top-k, top-p, and the log-probabilities to go with it."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from sdistill.config import require


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. The values are array inputs of the compiled sampler.

    Attributes:
      temperature: Divides the logits; 0 takes the likeliest token.
      top_k: Only the k likeliest tokens may be drawn; None for all.
      top_p: Only the smallest set of tokens with at least this probability may be drawn.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        require(
            math.isfinite(self.temperature) and self.temperature >= 0,
            f"temperature={self.temperature} must be 0 or more",
        )
        require(self.top_k is None or self.top_k > 0, f"top_k={self.top_k} must be positive, or None")
        require(0 < self.top_p <= 1, f"top_p={self.top_p} must be above 0 and at most 1")

    def arrays(self, vocab_size: int) -> "SamplingArrays":
        """The settings as arrays, so that changing them compiles nothing."""
        top_k = vocab_size if self.top_k is None else min(self.top_k, vocab_size)
        return SamplingArrays(jnp.float32(self.temperature), jnp.int32(top_k), jnp.float32(self.top_p))


class SamplingArrays(NamedTuple):
    """`Sampling` on the device."""

    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]


def truncate(logits_BV: Float[Array, "B V"], settings: SamplingArrays) -> Float[Array, "B V"]:
    """Sets to -inf what top-k and then top-p forbid. At least one token always stays."""
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    vocab_size = logits_BV.shape[-1]
    allowed_V = jnp.arange(vocab_size) < settings.top_k
    p_BV = jax.nn.softmax(jnp.where(allowed_V, sorted_BV, -jnp.inf), axis=-1)
    before_BV = jnp.cumsum(p_BV, axis=-1) - p_BV  # probability of all likelier tokens
    kept_BV = allowed_V & ((before_BV < settings.top_p) | (settings.top_p >= 1))
    last_B1 = jnp.sum(kept_BV, axis=-1, keepdims=True) - 1
    threshold_B1 = jnp.take_along_axis(sorted_BV, last_B1, axis=-1)
    return jnp.where(logits_BV >= threshold_B1, logits_BV, -jnp.inf)


class Drawn(NamedTuple):
    """One token a row.

    Attributes:
      ids_B: The tokens.
      log_prob_B: Their log-probability under the distribution they were drawn from.
      full_log_prob_B: The same before top-k and top-p, at the same temperature (at 1 when greedy).
    """

    ids_B: Int[Array, " B"]
    log_prob_B: Float[Array, " B"]
    full_log_prob_B: Float[Array, " B"]


def draw(logits_BV: Float[Array, "B V"], keys_B: UInt32[Array, "B 2"], settings: SamplingArrays) -> Drawn:
    """Draws by the Gumbel-max trick, each row with its own key, whatever the other rows are."""
    logits_BV = logits_BV.astype(jnp.float32)
    greedy = settings.temperature == 0
    scaled_BV = logits_BV / jnp.where(greedy, 1.0, settings.temperature)
    unrestricted = (settings.top_k >= logits_BV.shape[-1]) & (settings.top_p >= 1)
    allowed_BV = jax.lax.cond(unrestricted, lambda x: x, lambda x: truncate(x, settings), scaled_BV)
    gumbel_BV = jax.vmap(lambda key: jax.random.gumbel(key, logits_BV.shape[-1:]))(keys_B)
    ids_B = jnp.argmax(jnp.where(greedy, scaled_BV, allowed_BV + gumbel_BV), axis=-1)

    def log_prob(x_BV: jax.Array) -> jax.Array:
        chosen_B1 = jnp.take_along_axis(x_BV, ids_B[:, None], axis=-1)
        return chosen_B1[:, 0] - jax.nn.logsumexp(x_BV, axis=-1)

    log_prob_B = jnp.where(greedy, 0.0, log_prob(allowed_BV))
    return Drawn(ids_B, log_prob_B, log_prob(scaled_BV))
