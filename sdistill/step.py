"""The training steps: pure functions that tests call and `compile_gradient`, `compile_update` jit.

A step is the gradient of one micro-batch after the other, added up, and one update. What a token counts is
in the batch (`weights`), so the sum is the gradient of the whole batch's objective, however it was cut.
Metrics are (sum, count) pairs, which add up over micro-batches and processes before dividing.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from sdistill.losses import (
    DistillationConfig,
    Finite,
    GRPOConfig,
    Metrics,
    OnPolicyBatch,
    Report,
    finite_rows,
    grpo_loss,
    masked_sum,
    objective,
    sdpo_loss,
    weighted_sum,
)
from sdistill.model.config import ModelConfig
from sdistill.model.decoder import bind
from sdistill.model.scoring import score_tokens
from sdistill.optimizer import OptimizerConfig, make_optimizer
from sdistill.state import TrainState, apply_gradients


class PackedBatch(NamedTuple):
    """Rows into which several examples are packed; see `datasets.pipelines.example_batches`.

    `weights` are what each token counts in the objective; they sum to 1 over a whole batch.
    """

    tokens: Int[Array, "B S"]
    targets: Int[Array, "B S"]
    weights: Float[Array, "B S"]
    segment_ids: Int[Array, "B S"]
    positions: Int[Array, "B S"]


def examples_of(batch: PackedBatch) -> list[tuple[int, int]]:
    """Tokens of each example in the rows, and how many of them are learned."""
    found: list[tuple[int, int]] = []
    for segment_ids, weights in zip(np.asarray(batch.segment_ids), np.asarray(batch.weights), strict=True):
        lengths = np.bincount(segment_ids)
        learned = np.bincount(segment_ids[weights > 0], minlength=len(lengths))
        found += zip(lengths[1:].tolist(), learned[1:].tolist(), strict=True)  # segment 0 is padding
    return found


def cross_entropy_loss(
    params: nnx.State, batch: PackedBatch, *, model: ModelConfig, chunk: int
) -> tuple[Float[Array, ""], Report]:
    """Weighted cross-entropy, in nats."""
    decoder = bind(model, params)
    hidden = decoder(batch.tokens, batch.positions, batch.segment_ids)
    scores = score_tokens(hidden, decoder.head(), batch.targets, chunk=chunk)
    loss = weighted_sum(-scores.log_prob_BT, batch.weights)
    mask = (batch.weights > 0).astype(jnp.float32)
    metrics = {"loss": objective(loss), "entropy": masked_sum(scores.entropy_BT, mask)}
    return loss, Report(metrics, Finite(finite_rows(hidden, mask)))


def cross_entropy_gradient(
    params: nnx.State,
    batch: PackedBatch,
    so_far: nnx.State | None = None,
    *,
    model: ModelConfig,
    chunk: int,
) -> tuple[nnx.State, Report]:
    """Gradient of pretraining and SFT, added to what there is of it so far."""
    loss = functools.partial(cross_entropy_loss, batch=batch, model=model, chunk=chunk)
    return _add_gradient(loss, params, so_far)


def sdpo_gradient(
    params: nnx.State,
    teacher: nnx.State | None,
    batch: OnPolicyBatch,
    so_far: nnx.State | None = None,
    *,
    model: ModelConfig,
    config: DistillationConfig,
    mix: float | None = None,
    temperature: float,
    chunk: int,
    attribution: bool = False,
) -> tuple[nnx.State, Report]:
    """Gradient of SDPO, added to what there is of it so far; if asked, with a report of each token."""
    settings: dict[str, Any] = {"config": config, "mix": mix, "temperature": temperature, "chunk": chunk}

    def loss(params: nnx.State, nudge_BTD: jax.Array | None = None) -> tuple[jax.Array, Report]:
        return sdpo_loss(params, teacher, batch, nudge_BTD, model=model, **settings)

    return _add_gradient(loss, params, so_far, _nudge(batch, model) if attribution else None)


def grpo_gradient(
    params: nnx.State,
    batch: OnPolicyBatch,
    so_far: nnx.State | None = None,
    *,
    model: ModelConfig,
    config: GRPOConfig,
    temperature: float,
    chunk: int,
    attribution: bool = False,
) -> tuple[nnx.State, Report]:
    """Gradient of GRPO, added to what there is of it so far; if asked, with a report of each token."""
    settings: dict[str, Any] = {"config": config, "temperature": temperature, "chunk": chunk}

    def loss(params: nnx.State, nudge_BTD: jax.Array | None = None) -> tuple[jax.Array, Report]:
        return grpo_loss(params, batch, nudge_BTD, model=model, **settings)

    return _add_gradient(loss, params, so_far, _nudge(batch, model) if attribution else None)


def _nudge(batch: OnPolicyBatch, model: ModelConfig) -> Float[Array, "B T D"]:
    """Zeros like the hidden states that predict the response tokens."""
    return jnp.zeros((*batch.weights.shape, model.hidden_size), model.dtype)


def _add_gradient(
    loss: Callable[..., tuple[jax.Array, Report]],
    params: nnx.State,
    so_far: nnx.State | None,
    nudge_BTD: Float[Array, "B T D"] | None = None,
) -> tuple[nnx.State, Report]:
    if nudge_BTD is None:
        gradient, report = jax.grad(loss, has_aux=True)(params)
    else:  # the backward pass has this gradient on its way to that of the parameters
        (gradient, signal_BTD), report = jax.grad(loss, (0, 1), has_aux=True)(params, nudge_BTD)
        signal_BT = jnp.linalg.norm(signal_BTD.astype(jnp.float32), axis=-1)
        report = report._replace(tokens=report.tokens._replace(signal_BT=signal_BT))
    if so_far is not None:
        gradient = jax.tree.map(jnp.add, so_far, gradient)
    return gradient, report


def update(
    state: TrainState, gradient: nnx.State, *, optimizer: OptimizerConfig
) -> tuple[TrainState, Metrics]:
    """One update with the gradient of a whole batch; none if the gradient is not finite."""
    norm = optax.tree.norm(gradient)
    updated = apply_gradients(state, gradient, make_optimizer(optimizer))
    state = jax.tree.map(functools.partial(jnp.where, jnp.isfinite(norm)), updated, state)
    return state, {"gradient_norm": (norm, jnp.ones(()))}


def compile_gradient(gradient: Callable[..., Any], state: TrainState, **settings: Any) -> Callable[..., Any]:
    """A `*_gradient` with its settings fixed, jitted; laid out like the parameters, `so_far` donated.

    Equal calls share one compilation. Without the layout fixed, XLA would choose another one for what
    comes out, and the next call would compile again. Reports come to every device.
    """
    return _compile(gradient, state.params, state, ("so_far",), settings)


def compile_update(state: TrainState, **settings: Any) -> Callable[..., Any]:
    """`update` with its settings fixed, jitted; laid out like the state, which is donated."""
    return _compile(update, state, state, ("state",), settings)


def _compile(
    function: Callable[..., Any],
    result: Any,
    state: TrainState,
    donated: tuple[str, ...],
    settings: dict[str, Any],
) -> Callable[..., Any]:
    """Jits what returns a tree like `result`, and a report that is laid out like the number of updates."""
    layout = jax.tree.map(lambda leaf: leaf.sharding, (result, state.step))
    leaves, structure = jax.tree.flatten(layout)
    return _jit(function, tuple(leaves), structure, donated, tuple(sorted(settings.items())))


@functools.cache
def _jit(
    function: Callable[..., Any],
    shardings: tuple[Any, ...],
    structure: Any,
    donated: tuple[str, ...],
    settings: tuple[tuple[str, Any], ...],
) -> Callable[..., Any]:
    layout = jax.tree.unflatten(structure, shardings)
    return jax.jit(
        functools.partial(function, **dict(settings)), donate_argnames=donated, out_shardings=layout
    )
