"""Weights on disk: names and shapes of transformers, whole files or clear errors."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from sdistill.config import ConfigError
from sdistill.models import folders, weights
from sdistill.models.decoder import bind
from sdistill.models.folders import find_model
from sdistill.models.hugging_face import from_hugging_face
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


OLMO = dataclasses.replace(
    tiny.CONFIG,
    num_hidden_layers=4,
    qk_norm="projection",
    norm="output",
    tie_word_embeddings=False,
    layer_types=("sliding_attention", "full_attention") * 2,
    sliding_window=4,
)
INDEX = "model.safetensors.index.json"


def save(folder, config=ONE_LAYER, **options):
    params = tiny.parameters(config)
    save_pretrained(bind(config, params), folder, **options)
    return params


def rewrite(folder, change):
    """Changes the tensors of a saved model."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def message_of(folder, kind=ConfigError):
    with pytest.raises(kind) as error:
        load_pretrained(folder)
    return str(error.value)


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
    layer = jax.tree.map(lambda x: x[0], params["layers"][0])
    attention = layer["attention"]
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
        tensors["model.layers.0.mlp.gate_proj.weight"].T, layer["feed_forward"]["gate_DF"][...]
    )
    np.testing.assert_array_equal(tensors["model.embed_tokens.weight"], params["embedding_VD"][...])


@pytest.mark.parametrize("config", [tiny.CONFIG, OLMO], ids=["qwen3", "olmo3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_save_load_save_is_bit_identical(config, dtype, tmp_path):
    params = jax.tree.map(lambda x: x.astype(dtype), tiny.parameters(config))
    save_pretrained(bind(config, params), tmp_path / "first", shard_bytes=30_000)
    model = load_pretrained(tmp_path / "first", dtype=dtype)
    tiny.assert_same_bits(nnx.state(model, nnx.Param), params)
    save_pretrained(model, tmp_path / "second", shard_bytes=30_000)
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "second").iterdir())
    assert INDEX in names and "config.json" in names and len(names) >= 4
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_files_are_no_larger_than_told_unless_a_single_tensor_is(tmp_path):
    save(tmp_path, shard_bytes=7_000)
    files = sorted(tmp_path.glob("*.safetensors"))
    sizes = {path.name: sum(value.nbytes for value in load_file(path).values()) for path in files}
    assert all(size <= 7_000 for size in sizes.values())
    assert list(sizes) == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert index["weight_map"] == {name: path.name for path in files for name in load_file(path)}
    save(tmp_path / "small", shard_bytes=1)
    assert [len(load_file(path)) for path in (tmp_path / "small").glob("*.safetensors")] == [1] * len(QWEN3)


def test_what_is_in_the_way_of_a_save_is_replaced(tmp_path):
    save(tmp_path, shard_bytes=7_000)
    params = save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    tiny.assert_same_bits(nnx.state(load_pretrained(tmp_path), nnx.Param), params)


@pytest.mark.parametrize("before", [False, True], ids=["nothing there", "another model there"])
def test_a_save_that_was_killed_leaves_a_folder_that_is_refused(before, tmp_path, monkeypatch):
    """Whichever file it was at: `config.json` says that all others are there."""
    save(tmp_path / "whole", shard_bytes=7_000)
    steps = len(list((tmp_path / "whole").iterdir()))
    for allowed in range(steps):
        folder = tmp_path / str(allowed)
        if before:
            save(folder, OLMO)
        done = []

        def kill_at(write, allowed=allowed, done=done):
            def or_die(*arguments):
                if len(done) == allowed:
                    raise KeyboardInterrupt
                done.append(arguments)
                write(*arguments)

            return or_die

        with monkeypatch.context() as patched:
            for name in ("finish", "write_atomically"):
                patched.setattr(weights, name, kill_at(getattr(weights, name)))
            with pytest.raises(KeyboardInterrupt):
                save(folder, shard_bytes=7_000)
        assert f"no config.json in {folder}: not a model folder" in message_of(folder, FileNotFoundError)
        save(folder)
        load_pretrained(folder)


def test_the_type_of_the_parameters_is_chosen_whatever_is_in_the_files(tmp_path):
    params = save(tmp_path)
    for file, wanted in (("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "float32")):
        rewrite(tmp_path, lambda tensors, file=file: tensors.update(cast(tensors, file)))
        loaded = nnx.state(load_pretrained(tmp_path, dtype=wanted), nnx.Param)
        expected = jax.tree.map(lambda x, t=(file, wanted): x.astype(t[0]).astype(t[1]), params)
        tiny.assert_same_bits(loaded, expected)
        save(tmp_path)


def cast(tensors, dtype):
    return {name: np.asarray(jax.numpy.asarray(value).astype(dtype)) for name, value in tensors.items()}


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


def test_a_tensor_of_integers_is_refused(tmp_path):
    save(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({"model.norm.weight": np.ones(32, np.int8)}))
    assert "model.norm.weight: found type I8, only F32, BF16, F16 can be read" in message_of(tmp_path)


def test_a_repeated_head_must_be_the_embedding(tmp_path):
    params = save(tmp_path)
    embedding = np.asarray(params["embedding_VD"][...])
    rewrite(tmp_path, lambda tensors: tensors.update({"lm_head.weight": embedding}))
    tiny.assert_same_bits(nnx.state(load_pretrained(tmp_path), nnx.Param), params)
    for head in (embedding + 1e-3 * (np.arange(24) == 23)[:, None], embedding[:20]):
        rewrite(tmp_path, lambda tensors, head=head: tensors.update({"lm_head.weight": head}))
        assert "lm_head.weight is not model.embed_tokens.weight" in message_of(tmp_path)


def test_weights_of_another_config_are_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    save(tmp_path, OLMO)
    save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "config.json", tmp_path)
    monkeypatch.setattr(weights, "_to_devices", None)
    message = message_of(tmp_path)
    assert "lacks tensors ['model.layers.0.input_layernorm.weight']" in message


def test_a_long_list_of_tensors_is_cut(tmp_path):
    save(tmp_path)
    rewrite(tmp_path, lambda tensors: [tensors.pop(name) for name in list(tensors)[:11]])
    assert message_of(tmp_path).endswith(" and 3 more")


def test_a_file_that_the_index_names_must_be_there(tmp_path):
    save(tmp_path, shard_bytes=7_000)
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    assert message_of(tmp_path, FileNotFoundError) == f"no {lost.name} in {tmp_path}: not a model folder"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"weight_map": null}', '{"weight_map": ["a"]}'])
def test_a_damaged_index_is_named(content, tmp_path):
    save(tmp_path, shard_bytes=7_000)
    (tmp_path / INDEX).write_text(content)
    assert f"{tmp_path / INDEX} is damaged" in message_of(tmp_path)


def test_a_tensor_that_is_in_no_file_is_missing_whatever_the_index_says(tmp_path):
    save(tmp_path, shard_bytes=7_000)
    path = sorted(tmp_path.glob("*.safetensors"))[-1]
    lost = sorted(load_file(path))
    save_file({}, path)
    assert f"lacks tensors {lost}" in message_of(tmp_path)


def test_a_model_that_is_neither_here_nor_there_is_explained(monkeypatch):
    def no_network(*arguments, **options):
        raise OSError("Name or service not known")

    monkeypatch.setattr(folders.huggingface_hub, "snapshot_download", no_network)
    with pytest.raises(
        FileNotFoundError, match=r"no folder Qwen/Qwen3-8B.*not known.*`hf download Qwen/Qwen3-8B"
    ):
        find_model("Qwen/Qwen3-8B")


def test_a_folder_is_found_without_asking_anyone(tmp_path, monkeypatch):
    monkeypatch.setattr(folders.huggingface_hub, "snapshot_download", None)
    assert find_model(str(tmp_path)) == tmp_path


def test_the_shipped_base_is_small_and_fits_the_tokenizer(tokenizer, tmp_path):
    assert sum(path.stat().st_size for path in SIGNS_BASE.iterdir()) <= 2 * 2**20
    model = load_pretrained(SIGNS_BASE)
    assert tokenizer.vocab_size <= model.config.vocab_size < tokenizer.vocab_size + 8
    assert all(np.isfinite(leaf).all() for leaf in tiny.leaves(nnx.state(model, nnx.Param)))
    save_pretrained(model, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (SIGNS_BASE / "model.safetensors").read_bytes()
    assert from_hugging_face(tmp_path / "config.json") == model.config


def test_a_copy_of_a_model_folder_is_the_same_model(tmp_path):
    params = save(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    tiny.assert_same_bits(nnx.state(load_pretrained(str(tmp_path / "there")), nnx.Param), params)
