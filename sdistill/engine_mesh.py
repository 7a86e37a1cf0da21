"""The mesh of a run: one that is named, or one that suits model and devices."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sdistill.auto_mesh import Load, check_splits, chosen_mesh, shapes_of
from sdistill.distributed.mesh import MeshConfig, make_mesh
from sdistill.engine.memory import device_memory
from sdistill.engine.schedule import PREFILL_TOKENS
from sdistill.model.config import ComputeConfig, ModelConfig
from sdistill.model.folders import find_model
from sdistill.model.hugging_face import from_hugging_face
from sdistill.model.weights import CONFIG_FILE


def sampling_mesh(
    named: MeshConfig | None,
    source: str | Path,
    compute: ComputeConfig,
    *,
    slots: int,
    max_prompt: int,
    max_response: int,
) -> Mesh:
    """The mesh over this job's devices.

    Args:
      named: Its sizes; None for one over all devices that suits the model.
      source: The model, as `find_model` takes it.
      compute: How it is computed, in the type of its weights.
      slots: Responses decoded at a time.
      max_prompt: Longest prompt, in tokens.
      max_response: Longest response, in tokens.

    Raises:
      ConfigError: if the named mesh has more devices than there are, or cannot split the model; or if none is
        named, and no mesh fits.
      FileNotFoundError: if there is no such model.
    """

    def load() -> Load:
        model = replace(from_hugging_face(find_model(source) / CONFIG_FILE), compute=compute)
        return sampling_load(model, slots=slots, max_prompt=max_prompt, max_response=max_response)

    return mesh_for(named, load)


def mesh_for(named: MeshConfig | None, load: Callable[[], Load]) -> Mesh:
    """The named mesh, if it can split what the run asks; without a name, one over all devices that suits it.

    `load` is called unless one device is named: then nothing has to be known of the model.
    """
    mesh = None if named is None else make_mesh(named)
    if mesh is not None and mesh.size == 1:
        return mesh
    asked = load()
    if mesh is None:
        return chosen_mesh(asked, jax.devices(), device_memory())
    check_splits(shapes_of(asked.model), mesh, samples=asked.slots > 0)  # before anything is loaded
    return mesh


def sampling_load(model: ModelConfig, *, slots: int, max_prompt: int, max_response: int) -> Load:
    """What it asks of its devices: the weights as loaded, once more for sampling, and a cache."""
    return Load(
        model,
        state=jnp.dtype(model.compute.dtype).itemsize,
        slots=slots,
        cached=slots * (max_prompt + max_response),
        prompts=max(1, PREFILL_TOKENS // max_prompt),
        prompt=max_prompt,
    )
