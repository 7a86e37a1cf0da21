"""Whose weights the teacher has, and where they are kept."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sdistill.settings import require


@dataclass(frozen=True)
class TeacherConfig:
    """The teacher's weights (SDPO, arXiv 2601.20802).

    Attributes:
      weights: `fixed`: the initial ones. `ema`: moving towards the student after every batch of
        rollouts, once. `live`: the student's own at each update. `trust_region`: the logits of the initial
        ones, mixed with those of the student's own.
      ema_rate: Share of the student taken over each time; for `ema` only.
      mix: Share of the student's own logits; for `trust_region` only.
      dtype: Type of the copy.
      memory: Where the copy is between steps: with the student, or in the host's pinned memory.
    """

    weights: Literal["fixed", "ema", "live", "trust_region"] = "fixed"
    ema_rate: float | None = None
    mix: float | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    memory: Literal["device", "pinned_host"] = "device"

    def __post_init__(self) -> None:
        for name, value, user in (
            ("ema_rate", self.ema_rate, "ema"),
            ("mix", self.mix, "trust_region"),
        ):
            require(
                (self.weights == user) == (value is not None),
                f"{name}={value} goes with weights={user!r} and only with it",
            )
            require(value is None or 0 <= value <= 1, f"{name}={value} must be 0 to 1")
        require(
            self.weights != "ema" or self.dtype == "float32",
            "dtype='bfloat16' would round the small steps of weights='ema' away; use float32",
        )
        require(
            self.weights != "live" or (self.dtype, self.memory) == ("float32", "device"),
            "weights='live' keeps no copy; leave dtype and memory alone",
        )


class Outputs(NamedTuple):
    """What a teacher's logits are made of: `hidden @ head`."""

    hidden_BTE: Float[Array, "B T E"]
    head_EV: Float[Array, "E V"]


def mixed(initial: Outputs, own: Outputs, mix: float) -> Outputs:
    """The outputs whose logits are (1 - mix) · initial + mix · own: a mixture in log space.

    The two are put side by side, so that not even the mixture needs an array of all logits.
    """
    hidden_BTE = jnp.concatenate([initial.hidden_BTE, own.hidden_BTE], axis=-1)
    return Outputs(
        hidden_BTE,
        jnp.concatenate([(1 - mix) * initial.head_EV, mix * own.head_EV], axis=0).astype(hidden_BTE.dtype),
    )


@jax.jit
def ema_update(teacher: nnx.State, student: nnx.State, rate: float) -> nnx.State:
    """θ_T ← (1 - rate) θ_T + rate θ_S."""
    return jax.tree.map(lambda t, s: (1 - rate) * t + rate * s, teacher, student)


def kept_teacher(config: TeacherConfig, student: nnx.State) -> nnx.State | None:
    """Shape, type and place of the copy that is kept; None if none is: `live` is the student itself."""
    if config.weights == "live":
        return None

    def kept(x: jax.Array) -> jax.ShapeDtypeStruct:
        sharding = x.sharding.with_memory_kind(config.memory)
        return jax.ShapeDtypeStruct(x.shape, jnp.dtype(config.dtype), sharding=sharding)

    return jax.tree.map(kept, student)


def first_teacher(config: TeacherConfig, student: nnx.State) -> nnx.State | None:
    """The copy to keep, made when the first rollouts are learned from: updates take the student's buffers.

    Until then the student's own weights are the teacher's. None if none is kept (`live`).
    """
    kept = kept_teacher(config, student)
    if kept is None:
        return None
    copy = jax.tree.map(lambda x, like: x.astype(like.dtype, copy=True), student, kept)
    return _placed_like(kept, copy)


def on_device(config: TeacherConfig, teacher: nnx.State | None) -> nnx.State | None:
    """The teacher for a step: brought back if it is kept elsewhere."""
    if teacher is None or config.memory == "device":
        return teacher
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding.with_memory_kind("device")), teacher)


def next_teacher(config: TeacherConfig, teacher: nnx.State | None, student: nnx.State) -> nnx.State | None:
    """The teacher after a batch of rollouts has been learned from, in however many updates."""
    if config.weights != "ema" or teacher is None:
        return teacher
    return _placed_like(teacher, ema_update(on_device(config, teacher), student, config.ema_rate))


def _placed_like(kept: nnx.State, weights: nnx.State) -> nnx.State:
    """The weights where those of `kept` are."""
    return jax.tree.map(lambda like, x: jax.device_put(x, like.sharding), kept, weights)
