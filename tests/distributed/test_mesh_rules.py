import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from sdistill.distributed.mesh import AXES, MeshConfig, make_mesh
from sdistill.distributed.rules import (
    SAMPLING,
    TRAINING,
    parameter_shardings,
    place,
    place_batch,
    split_sequences,
)
from sdistill.model.config import ModelConfig
from sdistill.model.decoder import Decoder
from sdistill.settings import ConfigError

CONFIG = ModelConfig(
    vocab_size=16,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    tie_word_embeddings=False,
)

WIDTH = ("fsdp", "context")  # of the residual stream, in training
IDS = ("tensor", "context")  # and heads, and feed-forward width, in sampling


@pytest.fixture(scope="module")
def params():
    return nnx.state(Decoder(CONFIG, nnx.Rngs(params=0)), nnx.Param)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig())


def specs(params, mesh, rules):
    shardings = parameter_shardings(params, mesh, rules)
    flat = nnx.to_flat_state(shardings)
    return {path: variable.get_value() for path, variable in flat}


def test_a_laptop_is_a_mesh_of_one(mesh):
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1, "context": 1}
    assert list(mesh.devices.flat) == jax.devices()[:1]


def test_a_mesh_larger_than_the_machine_is_refused():
    count = jax.device_count()
    with pytest.raises(ConfigError) as error:
        make_mesh(MeshConfig(data=2, fsdp=count, tensor=3))
    assert str(error.value) == (
        f"mesh data=2 × fsdp={count} × tensor=3 × context=1 needs {6 * count} devices, {count} found; "
        "make an axis smaller"
    )


@pytest.mark.parametrize(
    ("path", "training", "sampling"),
    [
        (("embedding_VD",), ("tensor", WIDTH), (IDS, None)),
        (("head_DV",), (WIDTH, "tensor"), (None, IDS)),
        (("norm_D",), (None,), (None,)),
        (("layers", 0, "attention", "q_DNH"), (None, WIDTH, "tensor", None), (None, None, IDS, None)),
        (("layers", 0, "attention", "k_DKH"), (None, WIDTH, "tensor", None), (None, None, IDS, None)),
        (("layers", 0, "attention", "o_NHD"), (None, "tensor", None, WIDTH), (None, IDS, None, None)),
        (("layers", 0, "attention", "q_norm"), (None, None), (None, None)),
        (("layers", 0, "feed_forward", "gate_DF"), (None, WIDTH, "tensor"), (None, None, IDS)),
        (("layers", 0, "feed_forward", "down_FD"), (None, "tensor", WIDTH), (None, IDS, None)),
    ],
)
def test_logical_axes_become_mesh_axes(params, mesh, path, training, sampling):
    for rules, axes in ((TRAINING, training), (SAMPLING, sampling)):
        sharding = specs(params, mesh, rules)[path]
        assert sharding.mesh == mesh and sharding.spec == PartitionSpec(*axes)


def test_every_parameter_has_a_name_for_every_axis(params, mesh):
    found = specs(params, mesh, TRAINING)
    shapes = {path: variable[...].shape for path, variable in nnx.to_flat_state(params)}
    assert set(found) == set(shapes)
    assert all(len(found[path].spec) == len(shape) for path, shape in shapes.items())


def test_an_axis_without_a_rule_is_an_error(params, mesh):
    with pytest.raises(KeyError, match="embed"):
        parameter_shardings(params, mesh, {k: v for k, v in TRAINING.items() if k != "embed"})


def test_more_parts_than_an_axis_can_be_cut_into_are_refused(params):
    mesh = jax.sharding.AbstractMesh((1, 1, 2, 2), AXES)
    message = "mesh tensor=2 × context=2 cannot split kv_heads=1 of the model; make an axis smaller"
    with pytest.raises(ConfigError) as error:
        parameter_shardings(only_keys(params), mesh, SAMPLING)
    assert str(error.value) == message


def only_keys(params):
    return nnx.State({"k_DKH": params["layers"][0]["attention"]["k_DKH"]})


def test_without_a_mesh_nothing_is_asked_for():
    x = jax.numpy.ones((2, 4, 3))
    assert split_sequences(x) is x


@pytest.mark.parametrize("rules", [TRAINING, SAMPLING], ids=["training", "sampling"])
def test_placing_changes_no_value(params, mesh, rules):
    placed = place(params, mesh, rules)
    jax.tree.map(np.testing.assert_array_equal, placed, params)
    shardings = jax.tree.leaves(parameter_shardings(params, mesh, rules))
    assert [leaf.sharding for leaf in jax.tree.leaves(placed)] == shardings


def test_batches_are_split_over_data_and_fsdp(mesh):
    batch = {"tokens": np.arange(12).reshape(4, 3), "weights": np.ones(4, np.float32), "absent": None}
    placed = place_batch(batch, mesh)
    assert placed["absent"] is None
    for name in ("tokens", "weights"):
        np.testing.assert_array_equal(placed[name], batch[name])
        assert placed[name].sharding.spec == PartitionSpec(("data", "fsdp"))
