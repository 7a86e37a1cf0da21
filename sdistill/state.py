"""What a training step reads and writes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec


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


def new_state(params: nnx.State, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """State before the first update, its scalars on the whole mesh and its moments where `params` are.

    Every leaf is laid out as the step will return it; otherwise the second step would compile again.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    opt_state = jax.eval_shape(optimizer.init, params)
    layouts = jax.tree.map(lambda leaf: leaf.sharding, params)
    shardings = optax.tree_map_params(
        optimizer, lambda _, layout: layout, opt_state, layouts, transform_non_params=lambda _: replicated
    )
    step = jax.device_put(jnp.zeros((), jnp.int32), replicated)
    return TrainState(step, params, jax.jit(optimizer.init, out_shardings=shardings)(params))


def apply_gradients(
    state: TrainState, gradients: nnx.State, optimizer: optax.GradientTransformation
) -> TrainState:
    """One optimizer update."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)
