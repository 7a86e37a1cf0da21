"""One update: gradients of micro-batches, AdamW, and the teacher's weights that follow.

Everything here is a pure function of its arguments. What an update reports stays on the devices until
`summarize` reads all reports of a step at once, so that the host never waits in between.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from sdistill.batch import MicroBatch, list_rows
from sdistill.config import OptimizerConfig, TeacherConfig
from sdistill.distributed.rules import TRAINING, parameter_shardings, place_batch
from sdistill.losses import LossReport, MetricSums
from sdistill.model.config import ModelConfig
from sdistill.model.decoder import is_matrix
from sdistill.model.weights import parameter_shapes


class TrainState(NamedTuple):
    """Everything an update changes.

    Attributes:
      step: Number of updates made, int32 scalar.
      opt_state: The optimizer's state, laid out like the parameters it belongs to.
    """

    step: jax.Array
    params: nnx.State
    opt_state: optax.OptState


# ── Optimizer and layout ─────────────────────────────────────────────────────────────────────────


def learning_rate_schedule(config: OptimizerConfig) -> optax.Schedule:
    """Learning rate as a function of the number of updates made."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.decay_steps is not None:  # `cosine`; a config refuses one without the other
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, config.decay_steps, peak / 100)
    schedules = [optax.linear_schedule(0.0, peak, warmup), optax.constant_schedule(peak)]
    return optax.join_schedules(schedules, [warmup])


@functools.cache  # equal settings give the same object, and so the same compiled update
def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """AdamW on clipped gradients."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate_schedule(config),
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mu_dtype=config.first_moment,
            mask=_matrices,
        ),
    )


def _matrices(params: nnx.State) -> nnx.State:
    """True for every matrix, False for norms and biases."""
    return jax.tree.map(
        lambda variable: variable.replace(is_matrix(variable)),
        params,
        is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
    )


@functools.cache
def state_shardings(model: ModelConfig, optimizer: OptimizerConfig, mesh: Mesh) -> TrainState:
    """How a state is laid out: parameters by the rules, moments like their parameters, scalars everywhere."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    shapes = parameter_shapes(model)
    params = parameter_shardings(shapes, mesh, TRAINING)
    transform = make_optimizer(optimizer)
    opt_state = optax.tree_map_params(
        transform,
        lambda _, sharding: sharding,
        jax.eval_shape(transform.init, shapes),
        params,
        transform_non_params=lambda _: everywhere,
    )
    return TrainState(everywhere, params, opt_state)  # type: ignore[arg-type]


def init_state(params: nnx.State, model: ModelConfig, optimizer: OptimizerConfig, mesh: Mesh) -> TrainState:
    """The state before the first update. It is laid out as updates return it, so that none compiles again."""
    shardings = state_shardings(model, optimizer, mesh)
    init = jax.jit(make_optimizer(optimizer).init, out_shardings=shardings.opt_state)
    return TrainState(jax.device_put(jnp.zeros((), jnp.int32), shardings.step), params, init(params))


# ── Gradients and updates ────────────────────────────────────────────────────────────────────────

Loss = Callable[..., tuple[jax.Array, LossReport]]


def compute_gradient(
    params: nnx.State,
    teacher_params: nnx.State | None,
    batch: Any,
    *,
    accumulated: nnx.State | None = None,
    loss: Loss,
    model: ModelConfig,
    attribution: bool = False,
) -> tuple[nnx.State, LossReport]:
    """Gradient of the loss with respect to `params`, added to what is accumulated.

    Args:
      teacher_params: None for a loss without a teacher, and for one that has the student's weights.
      accumulated: The gradient of the micro-batches before.
      loss: One of `losses`, its settings bound.
      attribution: Report each token, with the norm of the objective's gradient in its final hidden state.
        Zeros are added there, and the loss is differentiated with respect to them as well, which the backward
        pass does anyway.
    """
    if attribution:
        zeros_BTD = jnp.zeros((*batch.token_weights.shape, model.hidden_size), model.dtype)
        (gradient, signal_BTD), report = jax.grad(
            lambda params, zeros_BTD: loss(params, teacher_params, batch, zeros_BTD, model=model),
            (0, 1),
            has_aux=True,
        )(params, zeros_BTD)
        signal_BT = jnp.linalg.norm(signal_BTD.astype(jnp.float32), axis=-1)
        report = report._replace(tokens={**report.tokens, "signal": signal_BT})
    else:
        gradient, report = jax.grad(loss, has_aux=True)(params, teacher_params, batch, model=model)
    if accumulated is not None:
        gradient = jax.tree.map(jnp.add, accumulated, gradient)
    return gradient, report


def apply_gradient(
    state: TrainState, gradient: nnx.State, *, optimizer: OptimizerConfig
) -> tuple[TrainState, MetricSums]:
    """One optimizer update; none if the gradient is not finite."""
    norm = optax.tree.norm(gradient)
    updates, opt_state = make_optimizer(optimizer).update(gradient, state.opt_state, state.params)
    updated = TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)
    state = jax.tree.map(functools.partial(jnp.where, jnp.isfinite(norm)), updated, state)
    return state, {"gradient_norm": (norm, jnp.ones(()))}


@functools.cache  # runs with equal settings share the compiled program
def jit_gradient(
    loss: Loss, model: ModelConfig, mesh: Mesh, *, attribution: bool = False, **settings: Any
) -> Callable[..., tuple[nnx.State, LossReport]]:
    """`compute_gradient` of a loss with its settings, compiled; `accumulated` is donated.

    The gradient is laid out like the parameters. Otherwise XLA would choose another layout, and the next call
    would compile again. Reports come to every device.
    """
    bound = functools.partial(loss, **settings)
    return jax.jit(
        functools.partial(compute_gradient, loss=bound, model=model, attribution=attribution),
        donate_argnames="accumulated",
        out_shardings=(
            parameter_shardings(parameter_shapes(model), mesh, TRAINING),
            NamedSharding(mesh, PartitionSpec()),
        ),
    )


@functools.cache
def jit_update(
    model: ModelConfig, mesh: Mesh, optimizer: OptimizerConfig
) -> Callable[[TrainState, nnx.State], tuple[TrainState, MetricSums]]:
    """`apply_gradient`, compiled; the state is donated."""
    return jax.jit(
        functools.partial(apply_gradient, optimizer=optimizer),
        donate_argnames="state",
        out_shardings=(state_shardings(model, optimizer, mesh), NamedSharding(mesh, PartitionSpec())),
    )


MicroReports = list[tuple[Int[np.ndarray, " b"], LossReport]]
"""Of each micro-batch of an update, its row numbers and the loss's report, on the devices."""


class UpdateReport(NamedTuple):
    """What one update reports: its micro-batches, and metrics of its own."""

    micro: MicroReports
    metrics: MetricSums


def accumulate_gradients(
    gradient_of: Callable[..., tuple[nnx.State, LossReport]],
    mesh: Mesh,
    micro_batches: Iterable[MicroBatch],
    params: nnx.State,
    teacher_params: nnx.State | None = None,
) -> tuple[nnx.State, MicroReports]:
    """The gradient of an update from those of its micro-batches, and their reports.

    Args:
      gradient_of: As `jit_gradient` makes it.
      teacher_params: None for a loss without a teacher, and for one that has the student's weights.
    """
    gradient, reports = None, []
    for rows, micro_batch in micro_batches:
        placed = place_batch(micro_batch, mesh)
        gradient, report = gradient_of(params, teacher_params, placed, accumulated=gradient)
        reports.append((rows, report))
    if gradient is None:
        raise ValueError("a batch without rows has no gradient")
    return gradient, reports


# ── Reports ──────────────────────────────────────────────────────────────────────────────────────


def summarize(updates: Sequence[UpdateReport], names: Sequence[str]) -> dict[str, float]:
    """The metrics of a step, over all of its updates.

    `logprob_diff` is that of the first update: later ones start from weights that have not sampled.

    Args:
      names: Names of the rows of all updates, for errors.

    Raises:
      FloatingPointError: if a metric is not finite; names it, the update and the rows.
    """
    updates = jax.device_get(list(updates))
    size, metrics = len(names) // len(updates), list[MetricSums]()
    for number, update in enumerate(updates):
        found = [*(report.metrics for _, report in update.micro), update.metrics]
        which = f" in update {number + 1} of {len(updates)}" if len(updates) > 1 else ""
        _check_finite(to_floats(found), update, names[number * size : (number + 1) * size], which)
        metrics += [
            {name: pair for name, pair in each.items() if number == 0 or name != "logprob_diff"}
            for each in found
        ]
    return to_floats(metrics, len(updates))


def to_floats(metrics: Sequence[MetricSums], updates: int = 1) -> dict[str, float]:
    """Σ sum / Σ count of each metric. Those with count 0, such as the loss, are averaged over updates.

    So an empty metric, such as the divergence in a step without a teacher, is 0.
    """
    totals: dict[str, Any] = {}
    for part in jax.device_get(metrics):
        for name, pair in part.items():
            totals[name] = totals.get(name, 0.0) + np.asarray(pair, np.float64)
    return {name: float(total / (count or updates)) for name, (total, count) in totals.items()}


def _check_finite(metrics: dict[str, float], update: UpdateReport, names: Sequence[str], which: str) -> None:
    bad = [f"{name}={value}" for name, value in metrics.items() if not np.isfinite(value)]
    if not bad:
        return
    found = []
    for whose in ("student", "teacher"):
        rows = sorted(
            row
            for rows, report in update.micro
            if whose in report.finite
            for row in rows[~report.finite[whose]]
        )
        if rows:
            named = list_rows([names[row] for row in rows])
            found.append(f"the {whose}'s hidden states are not finite in {named}")
    raise FloatingPointError(f"{', '.join(bad)}{which}: {'; '.join(found) or 'all hidden states are finite'}")


# ── The teacher's weights ────────────────────────────────────────────────────────────────────────


def teacher_shapes(config: TeacherConfig | None, student: nnx.State) -> nnx.State | None:
    """Shape, type and sharding of the teacher's copy; None without one, and for `live`."""
    if config is None or config.weights == "live":
        return None
    dtype, memory = jnp.dtype(config.dtype), config.memory
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding.with_memory_kind(memory)), student
    )


def init_teacher(config: TeacherConfig | None, student: nnx.State) -> nnx.State | None:
    """The teacher before the first step: a copy of the student's weights, whose buffers updates are given.

    None without a teacher, and for `live`, which has the student's weights.
    """
    if config is None or config.weights == "live":
        return None
    return copy_params(student, config.dtype, config.memory)


def copy_params(params: nnx.State, dtype: str = "float32", memory: str = "device") -> nnx.State:
    """A copy in another type, laid out alike, that shares no buffer."""
    return jax.tree.map(
        lambda x: jax.device_put(x.astype(dtype, copy=True), x.sharding.with_memory_kind(memory)), params
    )


def update_teacher(
    config: TeacherConfig | None, teacher: nnx.State | None, student: nnx.State
) -> nnx.State | None:
    """The teacher after a step: θ_T ← (1 - rate) θ_T + rate θ_S for `ema`, unchanged otherwise."""
    if config is None or config.weights != "ema" or teacher is None:
        return teacher
    moved = _ema(on_device(config, teacher), student, config.ema_rate)
    return jax.tree.map(lambda x, before: jax.device_put(x, before.sharding), moved, teacher)


@jax.jit
def _ema(teacher: nnx.State, student: nnx.State, rate: float) -> nnx.State:
    return jax.tree.map(lambda t, s: (1 - rate) * t + rate * s, teacher, student)


def on_device(config: TeacherConfig | None, teacher: nnx.State | None) -> nnx.State | None:
    """The teacher in device memory."""
    if config is None or teacher is None or config.memory == "device":
        return teacher
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding.with_memory_kind("device")), teacher)
