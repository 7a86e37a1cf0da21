"""From the logical axes of arrays to the axes of the mesh: one table for training, one for sampling."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Rules = Mapping[str, str | None]
"""Logical axis → mesh axis."""

TRAINING: Rules = {
    "layers": None,
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
}
SAMPLING: Rules = {**TRAINING, "embed": None}  # gathering parameters for every sampled token would dominate

BATCH = PartitionSpec(("data", "fsdp"))  # rows of every batch


def parameter_shardings(params: nnx.State, mesh: Mesh, rules: Rules) -> nnx.State:
    """A state like `params` with a `NamedSharding` in the place of every array."""

    def sharding(variable: nnx.Variable) -> nnx.Variable:
        axes = [None if axis is None else rules[axis] for axis in variable.get_metadata()["axes"]]
        return variable.replace(NamedSharding(mesh, PartitionSpec(*axes)))

    return jax.tree.map(sharding, params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def place(params: nnx.State, mesh: Mesh, rules: Rules) -> nnx.State:
    """Lays parameters out on the mesh as the rules say."""
    return jax.device_put(params, parameter_shardings(params, mesh, rules))


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """Splits the rows of every array of a batch over the data and fsdp axes."""
    return jax.device_put(batch, NamedSharding(mesh, BATCH))
