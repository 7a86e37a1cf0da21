"""The training steps: pure functions of (state, batch) that tests call and `compile_step` jits.

Metrics are (sum, count) pairs, so that they can be added up over steps and processes before dividing.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from sdistill.models.attention import Places
from sdistill.models.config import ModelConfig
from sdistill.models.decoder import bind
from sdistill.models.scoring import score_tokens
from sdistill.training.objectives import (
    DistillationConfig,
    GRPOConfig,
    Metrics,
    OnPolicyBatch,
    grpo_loss,
    masked_sum,
    sdpo_loss,
)
from sdistill.training.optimizer import OptimizerConfig, make_optimizer
from sdistill.training.state import TrainState, apply_gradients


class PackedBatch(NamedTuple):
    """Rows into which several examples are packed; see `datasets.pipelines.packed_batches`."""

    tokens: Int[Array, "B S"]
    targets: Int[Array, "B S"]
    weights: Float[Array, "B S"]
    segments: Int[Array, "B S"]
    positions: Int[Array, "B S"]


def cross_entropy_loss(
    params: nnx.State, batch: PackedBatch, *, model: ModelConfig, chunk: int
) -> tuple[Float[Array, ""], Metrics]:
    """Mean cross-entropy over the tokens with weight, in nats."""
    decoder = bind(model, params)
    hidden = decoder(batch.tokens, Places(batch.positions, batch.segments))
    scores = score_tokens(hidden, decoder.head(), batch.targets, chunk=chunk)
    total, count = masked_sum(-scores.log_prob_BT, batch.weights)
    metrics = {"loss": (total, count), "entropy": masked_sum(scores.entropy_BT, batch.weights)}
    return total / jnp.maximum(count, 1.0), metrics


def cross_entropy_step(
    state: TrainState, batch: PackedBatch, *, model: ModelConfig, optimizer: OptimizerConfig, chunk: int
) -> tuple[TrainState, Metrics]:
    """One step of pretraining or SFT."""
    loss = functools.partial(cross_entropy_loss, batch=batch, model=model, chunk=chunk)
    return _update(state, loss, optimizer)


def sdpo_step(
    state: TrainState,
    teacher: nnx.State | None,
    batch: OnPolicyBatch,
    *,
    model: ModelConfig,
    optimizer: OptimizerConfig,
    config: DistillationConfig,
    temperature: float,
    chunk: int,
) -> tuple[TrainState, Metrics]:
    """One step of SDPO."""

    def loss(params: nnx.State) -> tuple[jax.Array, Metrics]:
        return sdpo_loss(
            params, teacher, batch, model=model, config=config, temperature=temperature, chunk=chunk
        )

    return _update(state, loss, optimizer)


def grpo_step(
    state: TrainState,
    batch: OnPolicyBatch,
    *,
    model: ModelConfig,
    optimizer: OptimizerConfig,
    config: GRPOConfig,
    temperature: float,
    chunk: int,
) -> tuple[TrainState, Metrics]:
    """One step of GRPO."""

    def loss(params: nnx.State) -> tuple[jax.Array, Metrics]:
        return grpo_loss(params, batch, model=model, config=config, temperature=temperature, chunk=chunk)

    return _update(state, loss, optimizer)


def _update(
    state: TrainState, loss: Callable[[nnx.State], tuple[jax.Array, Metrics]], optimizer: OptimizerConfig
) -> tuple[TrainState, Metrics]:
    gradients, metrics = jax.grad(loss, has_aux=True)(state.params)
    metrics["gradient_norm"] = (optax.global_norm(gradients), jnp.ones(()))
    return apply_gradients(state, gradients, make_optimizer(optimizer)), metrics


def compile_step(step: Callable[..., Any], state: TrainState, **settings: Any) -> Callable[..., Any]:
    """`step` with its settings fixed, jitted, its state donated and returned in the layout of `state`.

    Equal calls share one compilation. Without the layout fixed, XLA would choose another one for what a
    step returns, and the next step would compile again.
    """
    leaves, structure = jax.tree.flatten(jax.tree.map(lambda leaf: leaf.sharding, state))
    return _compile_step(step, tuple(leaves), structure, tuple(sorted(settings.items())))


@functools.cache
def _compile_step(
    step: Callable[..., Any],
    shardings: tuple[Any, ...],
    structure: Any,
    settings: tuple[tuple[str, Any], ...],
) -> Callable[..., Any]:
    layout = jax.tree.unflatten(structure, shardings)
    return jax.jit(functools.partial(step, **dict(settings)), donate_argnums=0, out_shardings=(layout, None))
