"""What a training step reads and writes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx


class TrainState(NamedTuple):
    """Everything a step updates.

    Attributes:
      step: Number of updates made, int32 scalar.
      params: The model's parameters.
      opt_state: The optimizer's state, laid out like the parameters it belongs to.
    """

    step: jax.Array
    params: nnx.State
    opt_state: optax.OptState


def new_state(params: nnx.State, optimizer: optax.GradientTransformation) -> TrainState:
    """State before the first update."""
    return TrainState(jnp.zeros((), jnp.int32), params, jax.jit(optimizer.init)(params))


def apply_gradients(
    state: TrainState, gradients: nnx.State, optimizer: optax.GradientTransformation
) -> TrainState:
    """One optimizer update."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)
