"""On eight devices as on one, and no device ever holds the whole vocabulary's logits.

Runs itself as a program, because the number of CPU devices is fixed when JAX starts.
"""

import json
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sdistill.distributed.mesh import MeshConfig, make_mesh
from sdistill.divergence.chunked import chunked_token_divergence
from sdistill.divergence.definition import DivergenceConfig
from sdistill.model.scoring import top_ids_of
from tests.processes import Commands

# D is smaller than a block of positions: of fewer, to gather logits is the cheaper way, which XLA then takes.
B, T, D, V, CHUNK = 8, 10, 12, 8 * 1537, 1
TILE = 8 * 513  # ids: three tiles, of which the last overlaps.
FEW = 264  # ids of which 70 are more than a device has
SETTINGS = {
    "topk": DivergenceConfig(top_k=50),
    "renormalise": DivergenceConfig(0.0, "topk", 5, "renormalise"),
    "full": DivergenceConfig(0.3, "full", None, None),
    "sampled": DivergenceConfig(1.0, "sampled", None, None),
}
MESHES = {
    "one": MeshConfig(),
    "tensor": MeshConfig(data=2, tensor=4),
    "all": MeshConfig(fsdp=2, tensor=2, context=2),
    "fsdp": MeshConfig(data=2, fsdp=4),
}
SEVERAL = [name for name in MESHES if name != "one"]


def inputs():
    """Small whole numbers: exact logits, with many ties."""
    rng = np.random.default_rng(0)
    hidden, teacher_hidden = (rng.integers(-2, 3, (B, T, D)).astype(np.float32) / 4 for _ in range(2))
    head, teacher_head = (rng.integers(-1, 2, (D, V)).astype(np.float32) for _ in range(2))
    return hidden, head, teacher_hidden, teacher_head, rng.integers(0, V, (B, T)).astype(np.int32)


def collectives(text):
    """Of a compiled program: shapes of the results, kind, and whether it is of the backward pass."""
    kinds = "all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute"
    found = [re.search(rf"= (.*?) ({kinds})(?:-start)?\(", line) for line in text.splitlines()]
    return [[shapes_in(x[1]), x[2], "/transpose(" in x.string] for x in found if x]


def shapes_in(text):
    return [[int(n) for n in shape.split(",")] for shape in re.findall(r"\[([\d,]+)\]", text)]


def outcome(mesh_config, folder, name):
    mesh = make_mesh(mesh_config)
    positions = PartitionSpec(("data", "fsdp"), "context")
    specs = positions, PartitionSpec("fsdp", "tensor"), positions, PartitionSpec("fsdp", "tensor"), positions
    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(inputs(), specs, strict=True)]
    report = {}
    for setting, config in SETTINGS.items():

        def objective(hidden, head, teacher_hidden, teacher_head, ids, config=config):
            found = chunked_token_divergence(
                hidden,
                head,
                teacher_hidden,
                teacher_head,
                ids,
                config,
                temperature=0.7,
                logits_chunk_size=CHUNK,
            )
            return jnp.sum(found.loss_BT) + jnp.sum(found.student.log_prob_BT), found

        with jax.set_mesh(mesh):
            compiled = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True)).lower(*placed).compile()
        np.savez(f"{folder}/{name}-{setting}.npz", *jax.tree.leaves(compiled(*placed)))
        report[setting] = collectives(compiled.as_text())
    hidden, head, *_ = inputs()
    logits = jax.device_put(
        hidden @ head[:, :FEW], NamedSharding(mesh, PartitionSpec("data", None, "tensor"))
    )
    with jax.set_mesh(mesh):
        ids = jax.jit(lambda x: top_ids_of(x, 70))(logits)
    np.savez(f"{folder}/{name}-ids.npz", ids)
    return report


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    commands = Commands(folder, devices=8)
    printed = commands.succeed("tests.divergence.test_divergence_sharded", folder).splitlines()
    return folder, json.loads(next(line for line in printed if line.startswith("{")))


def arrays(path):
    with np.load(path) as file:
        return list(file.values())


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("mesh", SEVERAL)
def test_value_and_gradient_are_those_of_one_device(outcomes, mesh, setting):
    folder, _ = outcomes
    found, expected = (arrays(folder / f"{name}-{setting}.npz") for name in (mesh, "one"))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * np.abs(theirs).max())


@pytest.mark.parametrize("mesh", MESHES)
def test_the_likeliest_ids_are_the_same_where_many_tie(outcomes, mesh):
    folder, _ = outcomes
    hidden, head, *_ = inputs()
    expected = np.argsort(-(hidden @ head[:, :FEW]), axis=-1, kind="stable")[..., :70]
    np.testing.assert_array_equal(arrays(folder / f"{mesh}-ids.npz")[0], expected)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("mesh", SEVERAL)
def test_logits_are_not_gathered(outcomes, mesh, setting):
    """Nothing that is gathered or moved is as wide as a device's part of a tile, but for heads.

    Where a context axis splits both positions and ids, devices exchange parts of a chunk's logits.
    """
    _, reports = outcomes
    assert not reports["one"][setting] and reports[mesh][setting]
    allowed = {"all-reduce", "all-to-all"} if MESHES[mesh].context > 1 else {"all-reduce"}
    for shapes, kind, _ in reports[mesh][setting]:
        for shape in shapes:
            assert kind in allowed or max(shape) < TILE // 8 or D in shape or D // 2 in shape


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("mesh", SEVERAL)
def test_heads_and_their_gradients_travel_by_tiles(outcomes, mesh, setting):
    """The backward pass walks the vocabulary once a block: what it gathers and sums is part of a head."""
    _, reports = outcomes
    sizes = [
        math.prod(shape)
        for shapes, kind, backward in reports[mesh][setting]
        if backward and kind != "all-to-all"
        for shape in shapes
    ]
    assert max(sizes) == D * TILE // (MESHES[mesh].tensor * MESHES[mesh].context)


if __name__ == "__main__":
    print(json.dumps({name: outcome(config, sys.argv[1], name) for name, config in MESHES.items()}))
