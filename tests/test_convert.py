"""From Hugging Face's form of a model folder to Orbax and back: nothing is lost, nothing is overwritten."""

import dataclasses
import json
import shutil
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from sdistill import convert as module
from sdistill.convert import convert
from sdistill.model.config import YarnConfig
from sdistill.model.decoder import bind
from sdistill.model.weights import is_orbax, load_model, save_pretrained
from sdistill.settings import ConfigError
from tests import tiny

OLMO = dataclasses.replace(
    tiny.CONFIG,
    num_hidden_layers=4,
    qk_norm="projection",
    norm="output",
    tie_word_embeddings=False,
    layer_types=("sliding_attention",) * 3 + ("full_attention",),
    sliding_window=4,
    rope_scaling=YarnConfig(factor=2.0, original_max_position_embeddings=32, sliding_layers=False),
)


@pytest.fixture
def dtype():
    return "bfloat16"


@pytest.fixture
def source(tmp_path, dtype):
    params = jax.tree.map(lambda x: x.astype(dtype), tiny.parameters(OLMO))
    save_pretrained(bind(OLMO, params), tmp_path / "source", shard_bytes=9000)
    for name in ("tokenizer.json", "generation_config.json"):
        (tmp_path / "source" / name).write_text(f'{{"of": "{name}"}}')
    return tmp_path / "source"


def tensors(folder):
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_there_and_back_gives_the_same_bits(source, dtype, tmp_path):
    assert f"Orbax checkpoint, {OLMO.parameter_count():,} parameters in {dtype}" in convert(
        source, tmp_path / "orbax"
    )
    assert is_orbax(tmp_path / "orbax") and not is_orbax(source)
    assert "Hugging Face safetensors" in convert(tmp_path / "orbax", tmp_path / "back")
    ours, theirs = tensors(source), tensors(tmp_path / "back")
    assert ours.keys() == theirs.keys() and len(list(source.glob("*.safetensors"))) > 1
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype and value.tobytes() == theirs[name].tobytes(), name
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert (source / name).read_bytes() == (tmp_path / "back" / name).read_bytes()
    assert load_model(tmp_path / "orbax").config == OLMO


def test_the_type_can_be_changed_on_the_way(source, tmp_path):
    convert(source, tmp_path / "orbax", dtype="float32")
    assert json.loads((tmp_path / "orbax" / "config.json").read_text())["dtype"] == "float32"
    params = nnx.state(load_model(tmp_path / "orbax"), nnx.Param)
    assert {leaf.dtype for leaf in tiny.leaves(params)} == {np.dtype(np.float32)}
    tiny.assert_same_bits(params, nnx.state(load_model(source), nnx.Param))


def test_a_folder_in_use_is_not_overwritten(source, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes").write_text("mine")
    with pytest.raises(ConfigError, match="taken is not empty; give a new folder"):
        convert(source, tmp_path / "taken")


@pytest.mark.parametrize("damage", ["remove", "truncate", "another"])
def test_a_damaged_or_foreign_checkpoint_is_refused(damage, source, tmp_path):
    convert(source, tmp_path / "orbax")
    params = tmp_path / "orbax" / "params"
    if damage == "remove":
        shutil.rmtree(params)
        params.mkdir()
    elif damage == "truncate":
        largest = max((f for f in params.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:100])
    else:
        values = json.loads((tmp_path / "orbax" / "config.json").read_text())
        values["intermediate_size"] = 40
        (tmp_path / "orbax" / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="params is damaged, or not the model of its config.json"):
        load_model(tmp_path / "orbax")


def test_the_command_says_what_it_wrote_or_what_is_wrong(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["convert", str(source), str(tmp_path / "new")])
    module.main()
    assert "parameters" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["convert", "no/such/model", str(tmp_path / "newer")])
    with pytest.raises(SystemExit, match="error: no folder no/such/model"):
        module.main()
