"""Weights on disk: names and shapes of transformers, whole files or clear errors."""

import contextlib
import dataclasses
import json
import os
import shutil
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from sdistill.model import folders, weights
from sdistill.model.decoder import bind
from sdistill.model.folders import SIGNS_BASE, find_model
from sdistill.model.hugging_face import from_hugging_face
from sdistill.model.weights import load_model, load_pretrained, save_orbax, save_pretrained
from sdistill.settings import ConfigError
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


class PowerCut(BaseException):
    pass


def cut_power_at(number, monkeypatch):
    """The file operation of this number, counted from here, is left undone or half done."""
    begun = []

    def dying(function, half=None):
        def run(*arguments, **options):
            if threading.current_thread() is threading.main_thread():  # the others are Orbax' business
                begun.append(function)
                if len(begun) == number:
                    if half is not None:
                        half(*arguments)
                    raise PowerCut
            return function(*arguments, **options)

        return run

    for name in ("mkdir", "rename", "replace", "rmdir", "unlink", "write_bytes"):
        monkeypatch.setattr(Path, name, dying(getattr(Path, name)))
    half_written = dying(save_file, lambda tensors, path: path.touch())
    monkeypatch.setattr(weights, "save_file", half_written)
    half_removed = dying(shutil.rmtree, lambda folder, **_: [os.remove(x) for x in folder.rglob("_METADATA")])
    monkeypatch.setattr(shutil, "rmtree", half_removed)


def save_as(form, seed, folder):
    """Saves the model of this seed; returns its parameters."""
    params = tiny.parameters(ONE_LAYER, seed)
    model = bind(ONE_LAYER, params)
    if form == "orbax":
        save_orbax(model, folder)
    else:
        save_pretrained(model, folder, shard_bytes=10**9 if form == "one file" else form)
    return params


def what_is_in(folder, models):
    """The name of the model that is there, of these."""
    found = tiny.leaves(nnx.state(load_model(folder), nnx.Param))
    for name, params in models.items():
        if all(a.tobytes() == b.tobytes() for a, b in zip(found, tiny.leaves(params), strict=True)):
            return name
    raise AssertionError(f"a mixture in {folder}")


@pytest.mark.parametrize(
    ("before", "after"),
    [(7_000, 20_000), (20_000, "one file"), ("one file", "orbax"), ("orbax", 20_000)],
)
def test_a_save_cut_off_anywhere_leaves_the_old_model_or_the_new_one(before, after, tmp_path, monkeypatch):
    """Others, who know nothing of how it is done, find one of them as well, or no `config.json`."""
    models = {"old": save_as(before, 1, tmp_path / "old"), "new": save_as(after, 2, tmp_path / "new")}
    (tmp_path / "old" / "tokenizer.json").write_text("{}")
    (tmp_path / "new" / "tokenizer.json").write_text("{}")
    listing = {name: {path.name for path in (tmp_path / name).iterdir()} for name in models}
    outcomes, done = [], False
    while not done:
        folder = tmp_path / str(len(outcomes))
        shutil.copytree(tmp_path / "old", folder)
        with monkeypatch.context() as patched, contextlib.suppress(PowerCut):
            cut_power_at(len(outcomes) + 1, patched)
            save_as(after, 2, folder)
            done = True
        seen = shutil.copytree(folder, tmp_path / "seen", ignore=lambda *_: [".new", ".moving"])
        if (seen / "config.json").exists():
            what_is_in(seen, models)
        shutil.rmtree(seen)
        outcomes.append(what_is_in(folder, models))
        assert {path.name for path in folder.iterdir()} - {".new"} == listing[outcomes[-1]]
        save_as(after, 2, folder)
        assert what_is_in(folder, models) == "new"
        assert {path.name for path in folder.iterdir()} == listing["new"]
    assert outcomes.count("old") > 3 and outcomes.count("new") > 3
    assert outcomes == sorted(outcomes, reverse=True)


def test_a_first_save_that_was_cut_off_leaves_no_model(tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(PowerCut):
        cut_power_at(5, patched)
        save_as(7_000, 1, tmp_path)
    assert f"no config.json in {tmp_path}: not a model folder" in message_of(tmp_path, FileNotFoundError)
    save(tmp_path)
    load_pretrained(tmp_path)


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


def test_the_directory_of_a_run_is_told_from_that_of_a_model(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} is a run; its model is in {tmp_path}/model"):
        find_model(tmp_path)
