"""On eight devices as on one, and no device ever holds the whole vocabulary's logits.

Runs itself as a program, because the number of CPU devices is fixed when JAX starts.
"""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sdistill.distill.divergence import chunked_token_divergence
from sdistill.models.scoring import top_ids_of
from sdistill.parallel.mesh import MeshConfig, make_mesh
from tests.processes import Commands

B, T, D, V, CHUNK = 4, 10, 6, 264, 8
SETTINGS = {
    "topk": {"alpha": 0.5, "support": "topk", "top_k": 50, "tail": "bucket"},
    "renormalise": {"alpha": 0.0, "support": "topk", "top_k": 5, "tail": "renormalise"},
    "full": {"alpha": 0.3, "support": "full"},
    "sampled": {"alpha": 1.0, "support": "sampled"},
}
MESHES = {
    "one": MeshConfig(),
    "tensor": MeshConfig(data=2, tensor=4),
    "all": MeshConfig(fsdp=2, tensor=2, context=2),
}


def inputs():
    """Small whole numbers: exact logits, with many ties."""
    rng = np.random.default_rng(0)
    hidden, teacher_hidden = (rng.integers(-2, 3, (B, T, D)).astype(np.float32) / 4 for _ in range(2))
    head, teacher_head = (rng.integers(-1, 2, (D, V)).astype(np.float32) for _ in range(2))
    return hidden, head, teacher_hidden, teacher_head, rng.integers(0, V, (B, T)).astype(np.int32)


def outcome(mesh_config, folder, name):
    mesh = make_mesh(mesh_config)
    positions = PartitionSpec(("data", "fsdp"), "context")
    specs = positions, PartitionSpec("fsdp", "tensor"), positions, PartitionSpec("fsdp", "tensor"), positions
    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(inputs(), specs, strict=True)]
    report = {}
    for setting, options in SETTINGS.items():

        def objective(hidden, head, teacher_hidden, teacher_head, ids, options=options):
            found = chunked_token_divergence(
                hidden, head, teacher_hidden, teacher_head, ids, temperature=0.7, chunk_size=CHUNK, **options
            )
            return jnp.sum(found.loss_BT) + jnp.sum(found.student.log_prob_BT), found

        compiled = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True)).lower(*placed).compile()
        np.savez(f"{folder}/{name}-{setting}.npz", *jax.tree.leaves(compiled(*placed)))
        collectives = re.findall(r"= (.*?) (all-[a-z]+|collective-permute)(?:-start)?\(", compiled.as_text())
        report[setting] = [[shape, kind] for shape, kind in collectives]
    logits = jax.device_put(
        inputs()[0] @ inputs()[1], NamedSharding(mesh, PartitionSpec("data", None, "tensor"))
    )
    ids = jax.jit(lambda x: top_ids_of(x, 70))(logits)  # more than a device has of 264
    np.savez(f"{folder}/{name}-ids.npz", ids)
    return report


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    commands = Commands(folder / "cache", folder, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
    printed = commands.succeed("tests.distill.test_divergence_sharded", folder).splitlines()
    return folder, json.loads(next(line for line in printed if line.startswith("{")))


def arrays(path):
    with np.load(path) as file:
        return list(file.values())


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("mesh", ["tensor", "all"])
def test_value_and_gradient_are_those_of_one_device(outcomes, mesh, setting):
    folder, _ = outcomes
    found, expected = (arrays(folder / f"{name}-{setting}.npz") for name in (mesh, "one"))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * np.abs(theirs).max())


@pytest.mark.parametrize("mesh", MESHES)
def test_the_likeliest_ids_are_the_same_where_many_tie(outcomes, mesh):
    folder, _ = outcomes
    hidden, head, *_ = inputs()
    expected = np.argsort(-(hidden @ head), axis=-1, kind="stable")[..., :70]
    np.testing.assert_array_equal(arrays(folder / f"{mesh}-ids.npz")[0], expected)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("mesh", ["tensor", "all"])
def test_logits_are_not_gathered(outcomes, mesh, setting):
    """Nothing that is gathered or moved is as wide as a device's vocabulary, but for the head itself."""
    _, reports = outcomes
    assert not reports["one"][setting] and reports[mesh][setting]
    wide = {V, V // MESHES[mesh].tensor}
    for shapes, kind in reports[mesh][setting]:
        if kind != "all-reduce":
            for shape in re.findall(r"\[([\d,]+)\]", shapes):
                sizes = {int(n) for n in shape.split(",")}
                assert not sizes & wide or sizes & {D, D // 2}, (shapes, kind)


if __name__ == "__main__":
    print(json.dumps({name: outcome(config, sys.argv[1], name) for name, config in MESHES.items()}))
