"""AdamW with warm-up, and the schedules that the experiments use."""

import functools
from dataclasses import dataclass
from typing import Literal

import jax
import optax
from flax import nnx

from sdistill.model.decoder import is_matrix
from sdistill.settings import require


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW.

    Attributes:
      learning_rate: Peak rate, reached after warm-up.
      warmup_steps: Updates of linear warm-up from zero.
      schedule: What follows: `constant`, or `cosine` to a hundredth of the peak at `decay_steps`.
      decay_steps: Update at which the cosine ends; required by `cosine`, refused by `constant`.
      b1: Decay of the mean of gradients.
      b2: Decay of the mean of squared gradients.
      weight_decay: Decoupled decay, of matrices only.
      clip_norm: Global gradient norm above which gradients are scaled down.
      first_moment: Type the mean of gradients is kept in. That of their squares is the parameters': with
        b2 = 0.999, bfloat16 would round its steps away.
    """

    learning_rate: float
    warmup_steps: int = 10
    schedule: Literal["constant", "cosine"] = "constant"
    decay_steps: int | None = None
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    first_moment: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, f"learning_rate={self.learning_rate} must be positive")
        require(self.warmup_steps >= 0, f"warmup_steps={self.warmup_steps} must be 0 or more")
        require(self.clip_norm > 0, f"clip_norm={self.clip_norm} must be positive")
        require(
            (self.schedule == "cosine") == (self.decay_steps is not None),
            f"decay_steps={self.decay_steps} goes with schedule='cosine' and only with it",
        )
        require(
            self.decay_steps is None or self.decay_steps > self.warmup_steps,
            f"decay_steps={self.decay_steps} must exceed warmup_steps={self.warmup_steps}",
        )

    def rate(self) -> optax.Schedule:
        """Learning rate as a function of the number of updates made."""
        if self.decay_steps is not None:
            return optax.warmup_cosine_decay_schedule(
                0.0, self.learning_rate, self.warmup_steps, self.decay_steps, self.learning_rate / 100
            )
        return optax.join_schedules(
            [
                optax.linear_schedule(0.0, self.learning_rate, self.warmup_steps),
                optax.constant_schedule(self.learning_rate),
            ],
            [self.warmup_steps],
        )


def _matrices(params: nnx.State) -> nnx.State:
    """True for every matrix, False for norms and biases."""
    return jax.tree.map(
        lambda variable: variable.replace(is_matrix(variable)),
        params,
        is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
    )


@functools.cache  # equal settings give the same object, and so the same compiled step
def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """The gradient transformation."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            config.rate(),
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mu_dtype=config.first_moment,
            mask=_matrices,
        ),
    )
