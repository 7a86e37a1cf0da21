"""Loads, computes and saves a model on one device and on eight; writes what came out for the test to compare.

In a process of its own, because the number of CPU devices is fixed when JAX starts.
"""

import dataclasses
import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from sdistill.distributed.mesh import MeshConfig, make_mesh
from sdistill.distributed.rules import TRAINING, parameter_shardings, place_batch
from sdistill.model.config import ComputeConfig
from sdistill.model.decoder import bind
from sdistill.model.weights import load_pretrained, save_pretrained
from tests import tiny

CONFIG = dataclasses.replace(
    tiny.CONFIG,
    num_hidden_layers=4,
    attention_bias=False,
    qk_norm="projection",
    norm="output",
    tie_word_embeddings=False,
    layer_types=("sliding_attention", "full_attention") * 2,
    sliding_window=30,
)


def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eight rows of 140 columns with two sequences each, and padding after the first and the second."""
    tokens = np.random.default_rng(0).integers(0, 24, (8, 140))
    segment_ids, positions = np.zeros_like(tokens), np.zeros_like(tokens)
    for row in range(8):
        for segment, start, stop in ((1, 0, 50 + row), (2, 60 + row, 130)):
            segment_ids[row, start:stop], positions[row, start:stop] = segment, np.arange(stop - start)
    return tokens, positions, segment_ids


def outcome(mesh_config: MeshConfig, attention: str, source: str, target: str) -> dict[str, np.ndarray]:
    """Logits and gradients."""
    mesh = make_mesh(mesh_config)
    params = nnx.state(load_pretrained(source, mesh=mesh), nnx.Param)
    assert jax.tree.leaves(jax.tree.map(lambda x: x.sharding, params)) == jax.tree.leaves(
        parameter_shardings(params, mesh, TRAINING)
    )
    config = dataclasses.replace(CONFIG, compute=ComputeConfig(attention=attention))
    tokens, positions, segment_ids = place_batch(batch(), mesh)
    weights = np.random.default_rng(1).normal(size=(8, 140, 24))

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(params):
        model = bind(config, params)
        hidden = model(tokens, positions, segment_ids)
        logits = jnp.where((segment_ids > 0)[..., None], hidden @ model.head(), 0)
        return jnp.mean(logits * weights), logits

    with jax.set_mesh(mesh):
        gradients, logits = gradient(params)
    save_pretrained(bind(CONFIG, params), target, shard_bytes=20_000)
    return dict(enumerate([np.asarray(logits), *tiny.leaves(gradients)]))


def main() -> None:
    assert jax.device_count() == 8
    splash.make_splash_mha = functools.partial(splash.make_splash_mha, interpret=True)  # on a CPU
    folder = Path(sys.argv[1])
    source = folder / "source"
    save_pretrained(bind(CONFIG, tiny.parameters(CONFIG)), source, shard_bytes=20_000)
    eight = MeshConfig(data=2, fsdp=2, tensor=2)
    for name, mesh, attention in (("one", MeshConfig(), "plain"), ("eight", eight, "splash")):
        arrays = outcome(mesh, attention, str(source), str(folder / name))
        np.savez(folder / f"{name}.npz", **{str(i): value for i, value in arrays.items()})


if __name__ == "__main__":
    main()
