"""The training steps: pure functions of (state, batch) that tests call and `compile_step` jits.

Metrics are (sum, count) pairs, so that they can be added up over steps and processes before dividing.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from sdistill.models.config import ModelConfig
from sdistill.models.decoder import bind, causal_mask
from sdistill.models.scoring import score_tokens
from sdistill.training.optimizer import OptimizerConfig, make_optimizer
from sdistill.training.state import TrainState, apply_gradients

Metrics = dict[str, tuple[jax.Array, jax.Array]]


class PackedBatch(NamedTuple):
    """Rows into which several examples are packed; see `datasets.pipelines.packed_batches`."""

    tokens: Int[Array, "B S"]
    targets: Int[Array, "B S"]
    weights: Float[Array, "B S"]
    segments: Int[Array, "B S"]
    positions: Int[Array, "B S"]


def masked_sum(values: Float[Array, "..."], mask: Float[Array, "..."]) -> tuple[jax.Array, jax.Array]:
    """A metric: the sum of the values where the mask is set, and how many there are."""
    return jnp.sum(jnp.where(mask > 0, values, 0.0)), jnp.sum(mask)


def cross_entropy_step(
    state: TrainState, batch: PackedBatch, *, model: ModelConfig, optimizer: OptimizerConfig, chunk: int
) -> tuple[TrainState, Metrics]:
    """Pretraining and SFT: mean cross-entropy over the tokens with weight, in nats."""

    def loss_function(params: Any) -> tuple[jax.Array, Metrics]:
        decoder = bind(model, params)
        hidden, _ = decoder(batch.tokens, batch.positions, causal_mask(batch.segments))
        scores = score_tokens(hidden, decoder.head(), batch.targets, chunk=chunk)
        total, count = masked_sum(-scores.log_prob_BT, batch.weights)
        metrics = {"loss": (total, count), "entropy": masked_sum(scores.entropy_BT, batch.weights)}
        return total / jnp.maximum(count, 1.0), metrics

    gradients, metrics = jax.grad(loss_function, has_aux=True)(state.params)
    metrics["gradient_norm"] = (optax.global_norm(gradients), jnp.ones(()))
    return apply_gradients(state, gradients, make_optimizer(optimizer)), metrics


@functools.cache
def compile_step(step: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    """`step` with its settings fixed, jitted, its state donated; equal calls share one compilation."""
    return jax.jit(functools.partial(step, **settings), donate_argnums=0)
