"""Whose weights the teacher has."""

from dataclasses import dataclass
from typing import Literal

import jax
from flax import nnx

from sdistill.config import require


@dataclass(frozen=True)
class TeacherConfig:
    """The teacher's weights.

    Attributes:
      weights: `fixed`: the initial ones. `ema`: moving towards the student after every batch of
        rollouts. `live`: the student's own at each step.
      ema_rate: Share of the student taken over each time; for `ema` only.
    """

    weights: Literal["fixed", "ema", "live"] = "fixed"
    ema_rate: float | None = None

    def __post_init__(self) -> None:
        require(
            (self.weights == "ema") == (self.ema_rate is not None),
            f"ema_rate={self.ema_rate} goes with weights='ema' and only with it",
        )
        require(self.ema_rate is None or 0 <= self.ema_rate <= 1, f"ema_rate={self.ema_rate} must be 0 to 1")


@jax.jit
def ema_update(teacher: nnx.State, student: nnx.State, rate: float) -> nnx.State:
    """θ_T ← (1 - rate) θ_T + rate θ_S."""
    return jax.tree.map(lambda t, s: (1 - rate) * t + rate * s, teacher, student)


def first_teacher(config: TeacherConfig, student: nnx.State) -> nnx.State | None:
    """The teacher before the first step: a copy, because the step donates the student's buffers.

    None stands for the student's own weights at each step (`live`).
    """
    return None if config.weights == "live" else jax.tree.map(lambda x: x.copy(), student)


def next_teacher(config: TeacherConfig, teacher: nnx.State | None, student: nnx.State) -> nnx.State | None:
    """The teacher after a batch of rollouts has been learned from."""
    return ema_update(teacher, student, config.ema_rate) if config.weights == "ema" else teacher
