"""Weights on disk: names and shapes of transformers' Qwen3, whole files or clear errors."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from sdistill.config import ConfigError
from sdistill.models.config import from_hugging_face
from sdistill.models.decoder import bind
from sdistill.models.weights import SIGNS_BASE, load_pretrained, save_pretrained
from tests import tiny

ONE_LAYER = dataclasses.replace(tiny.CONFIG, num_hidden_layers=1)

# What transformers calls the weights of a Qwen3ForCausalLM of this shape: [out, in] for every projection.
QWEN3 = {
    "model.embed_tokens.weight": (24, 32),
    "model.layers.0.input_layernorm.weight": (32,),
    "model.layers.0.self_attn.q_proj.weight": (32, 32),
    "model.layers.0.self_attn.k_proj.weight": (16, 32),
    "model.layers.0.self_attn.v_proj.weight": (16, 32),
    "model.layers.0.self_attn.o_proj.weight": (32, 32),
    "model.layers.0.self_attn.q_norm.weight": (8,),
    "model.layers.0.self_attn.k_norm.weight": (8,),
    "model.layers.0.post_attention_layernorm.weight": (32,),
    "model.layers.0.mlp.gate_proj.weight": (48, 32),
    "model.layers.0.mlp.up_proj.weight": (48, 32),
    "model.layers.0.mlp.down_proj.weight": (32, 48),
    "model.norm.weight": (32,),
}


def save(folder, config=ONE_LAYER):
    params = tiny.parameters(config)
    save_pretrained(bind(config, params), folder)
    return params


def rewrite(folder, change):
    """Changes the tensors of a saved model."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def rewrite_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_names_and_shapes_are_those_of_qwen3(tmp_path):
    save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert {name: value.shape for name, value in tensors.items()} == QWEN3
    assert {value.dtype for value in tensors.values()} == {np.dtype(np.float32)}


def test_an_untied_head_is_one_tensor_more(tmp_path):
    config = dataclasses.replace(ONE_LAYER, tie_word_embeddings=False)
    params = save(tmp_path, config)
    tensors = load_file(tmp_path / "model.safetensors")
    assert {name: value.shape for name, value in tensors.items()} == QWEN3 | {"lm_head.weight": (24, 32)}
    np.testing.assert_array_equal(tensors["lm_head.weight"], params["head_DV"][...].T)
    tiny.assert_same_bits(nnx.state(load_pretrained(tmp_path), nnx.Param), params)


def test_projections_are_laid_out_as_transformers_multiplies_them(tmp_path):
    """transformers computes x @ W.T, and head n has the outputs n·H to (n+1)·H."""
    params = save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    attention = params["layers"][0]["attention"]
    x_D = np.random.default_rng(0).normal(size=32).astype(np.float32)
    for name, ours in (("q", "q_DNH"), ("k", "k_DKH"), ("v", "v_DKH")):
        expected = np.einsum("d,dnh->nh", x_D, attention[ours][...])
        theirs = x_D @ tensors[f"model.layers.0.self_attn.{name}_proj.weight"].T
        np.testing.assert_allclose(theirs.reshape(-1, 8), expected, rtol=1e-4, atol=1e-5)
    y_NH = x_D.reshape(4, 8)
    np.testing.assert_allclose(
        x_D @ tensors["model.layers.0.self_attn.o_proj.weight"].T,
        np.einsum("nh,nhd->d", y_NH, attention["o_NHD"][...]),
        rtol=1e-4,
        atol=1e-5,
    )
    np.testing.assert_array_equal(
        tensors["model.layers.0.mlp.gate_proj.weight"].T, params["layers"][0]["feed_forward"]["gate_DF"][...]
    )
    np.testing.assert_array_equal(tensors["model.embed_tokens.weight"], params["embedding_VD"][...])


def test_save_load_save_is_bit_identical(tmp_path):
    params = save(tmp_path / "first", tiny.CONFIG)
    model = load_pretrained(tmp_path / "first")
    assert model.config == tiny.CONFIG
    tiny.assert_same_bits(nnx.state(model, nnx.Param), params)
    save_pretrained(model, tmp_path / "second")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_the_config_is_one_that_transformers_loads(tmp_path):
    save(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["model_type"] == "qwen3" and values["architectures"] == ["Qwen3ForCausalLM"]
    assert values["hidden_act"] == "silu" and values["attention_bias"] is False
    for field in ("vocab_size", "hidden_size", "head_dim", "num_key_value_heads", "rope_theta"):
        assert values[field] == getattr(ONE_LAYER, field)
    with pytest.raises(ConfigError, match="qk_norm"):
        save(tmp_path, dataclasses.replace(ONE_LAYER, qk_norm=False))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(file, tmp_path):
    save(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"no {file} in {tmp_path}"):
        load_pretrained(tmp_path)


def test_a_missing_tensor_is_named(tmp_path):
    save(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(ValueError, match=r"lacks tensors \['model.norm.weight'\]"):
        load_pretrained(tmp_path)


def test_a_tensor_too_many_is_named(tmp_path):
    save(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({"model.bias": np.zeros(3, np.float32)}))
    with pytest.raises(ValueError, match=r"does not call for|not call for: \['model.bias'\]"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.self_attn.k_proj.weight", (32, 16)),  # as many numbers, the other way round
        ("model.embed_tokens.weight", (25, 32)),
        ("model.norm.weight", (32, 1)),
    ],
)
def test_a_tensor_of_another_shape_is_named_with_both_shapes(name, shape, tmp_path):
    save(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({name: np.zeros(shape, np.float32)}))
    with pytest.raises(ValueError) as error:
        load_pretrained(tmp_path)
    assert (
        name in str(error.value) and str(shape) in str(error.value) and str(QWEN3[name]) in str(error.value)
    )


@pytest.mark.parametrize("size", [0, 4, 500, -1])
def test_a_truncated_file_is_called_damaged(size, tmp_path):
    save(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0}),
        ("sliding_window", 4096),
        ("attention_bias", True),
        ("hidden_act", "gelu"),
        ("model_type", "llama"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused_by_name(field, value, tmp_path):
    save(tmp_path)
    rewrite_config(tmp_path, **{field: value})
    with pytest.raises(ConfigError, match=field):
        load_pretrained(tmp_path)


def test_fields_that_change_nothing_are_ignored(tmp_path):
    save(tmp_path)
    rewrite_config(tmp_path, rope_scaling=None, sliding_window=None, use_cache=True, torch_dtype="float32")
    assert from_hugging_face(tmp_path / "config.json") == ONE_LAYER


def test_the_wavelengths_that_newer_transformers_writes_are_read(tmp_path):
    """From version 5 on `rope_theta` is inside `rope_parameters`."""
    save(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["rope_theta"]
    values["rope_parameters"] = {"rope_type": "default", "rope_theta": 1_000_000.0}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert from_hugging_face(tmp_path / "config.json").rope_theta == 1_000_000.0


def test_a_config_without_a_needed_field_is_refused_by_name(tmp_path):
    save(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["hidden_size"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="hidden_size"):
        from_hugging_face(tmp_path / "config.json")


def test_the_shipped_base_is_small_and_fits_the_tokenizer(tokenizer, tmp_path):
    assert sum(path.stat().st_size for path in SIGNS_BASE.iterdir()) <= 2 * 2**20
    model = load_pretrained(SIGNS_BASE)
    assert tokenizer.vocab_size <= model.config.vocab_size < tokenizer.vocab_size + 8
    assert all(np.isfinite(leaf).all() for leaf in tiny.leaves(nnx.state(model, nnx.Param)))
    save_pretrained(model, tmp_path)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / file).read_bytes() == (SIGNS_BASE / file).read_bytes()


def test_a_copy_of_a_model_folder_is_the_same_model(tmp_path):
    params = save(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    tiny.assert_same_bits(nnx.state(load_pretrained(str(tmp_path / "there")), nnx.Param), params)
