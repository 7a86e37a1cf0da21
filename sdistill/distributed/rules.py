"""Which device holds which part of a weight.

    model/decoder.py      names the axes of every parameter:  `axes=("vocab", "embed")`
    TRAINING, SAMPLING    name the mesh axis that splits each, here
    mesh_choice.py        chooses how many devices each mesh axis has, unless `config.mesh` says so
    distributed/mesh.py   arranges the devices

In training, `context` splits sequences, and splits parameters and their optimizer state as `fsdp` does.
Sampling has one token per row and no sequence to split: there `context` splits heads, feed-forward and
vocabulary, as `tensor` does. Losses need all ids of few positions: there it splits ids, too.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from sdistill.settings import ConfigError

Rules = Mapping[str, str | tuple[str, ...] | None]
"""Logical axis → mesh axis, or several of them."""

IDS = ("tensor", "context")
"""What splits the ids of logits, in losses as in sampling."""

TRAINING: Rules = {
    "layers": None,
    "vocab": "tensor",
    "embed": ("fsdp", "context"),
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
}
SAMPLING: Rules = {
    "layers": None,
    "vocab": IDS,
    "embed": None,  # gathering parameters for every sampled token would dominate
    "heads": ("tensor", "context"),
    "kv_heads": ("tensor", "context"),
    "mlp": ("tensor", "context"),
}
RESHARDING: Rules = {**SAMPLING, "embed": "fsdp"}
"""On the way from training to sampling: what `context` has split is exchanged, and only the rest is gathered.

Without this step XLA gathers every parameter on every chip, to keep a part of it.
"""

BATCH = PartitionSpec(("data", "fsdp"))
"""Rows of every batch."""
SEQUENCES = PartitionSpec(*BATCH, "context")
"""Rows and columns of activations in training."""


def parameter_shardings(params: nnx.State, mesh: Mesh | AbstractMesh, rules: Rules) -> nnx.State:
    """A state like `params` with a `NamedSharding` in the place of every array.

    Raises:
      ConfigError: if the mesh splits an axis into more parts than it can be cut into.
    """

    def sharding(variable: nnx.Variable) -> nnx.Variable:
        names, spec = variable.get_metadata()["axes"], spec_of(variable, rules)
        for name, size, axes in zip(names, variable.shape, spec, strict=True):
            split = (axes,) if isinstance(axes, str) else axes or ()
            if size % math.prod(mesh.shape[axis] for axis in split):
                sizes = " × ".join(f"{axis}={mesh.shape[axis]}" for axis in split)
                raise ConfigError(
                    f"mesh {sizes} cannot split {name}={size} of the model; make an axis smaller"
                )
        return variable.replace(NamedSharding(mesh, spec))

    return jax.tree.map(sharding, params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def spec_of(variable: nnx.Variable, rules: Rules) -> PartitionSpec:
    """How a parameter is split, by the names of its axes."""
    return PartitionSpec(*(None if name is None else rules[name] for name in variable.get_metadata()["axes"]))


def place(params: nnx.State, mesh: Mesh, rules: Rules) -> nnx.State:
    """Parameters laid out on the mesh as the rules say."""
    return jax.device_put(params, parameter_shardings(params, mesh, rules))


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """A batch of host arrays on the mesh, its rows split over the data and fsdp axes.

    Columns stay together: they are few bytes until `split_sequences` cuts what is computed from them.
    """
    sharding = NamedSharding(mesh, BATCH)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    # Every process has the whole batch; `device_put` would send it around to verify that.
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, sharding, lambda part: x[part]), batch
    )


def split_sequences(x: Shaped[Array, "B T ..."]) -> Shaped[Array, "B T ..."]:
    """`x` with rows split over data and fsdp and columns over context, where a mesh is set.

    Without it XLA may keep activations of a whole sequence, or gather them instead of parameters.
    """
    return constrain(x, SEQUENCES)


def constrain(x: Shaped[Array, "..."], spec: PartitionSpec) -> Shaped[Array, "..."]:
    """`x` laid out by `spec`, where a mesh is set (`jax.set_mesh`); elsewhere `x` as it is."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec)
