"""A `config.json` is read as transformers reads it, or refused by name."""

import dataclasses
import json

import numpy as np
import pytest

from sdistill.model.config import ComputeConfig, YarnConfig
from sdistill.model.hugging_face import (
    from_hugging_face,
    their_axes,
    their_block,
    their_shape,
    to_hugging_face,
    to_ours,
    to_theirs,
)
from sdistill.settings import ConfigError
from tests import tiny
from tests.model.oracle import golden
from tests.model.oracle.cases import CASES

QWEN2 = {
    "model_type": "qwen2",
    "vocab_size": 24,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
QWEN3 = QWEN2 | {"model_type": "qwen3", "head_dim": 8}
OLMO3 = QWEN2 | {"model_type": "olmo3"}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.fixture
def read(tmp_path):
    """Reads these fields as a config.json."""

    def read(values):
        path = tmp_path / "config.json"
        path.write_text(values if isinstance(values, str) else json.dumps(values))
        return from_hugging_face(path)

    return read


def test_each_architecture_is_a_set_of_flags(read):
    flags = [
        (c.attention_bias, c.qk_norm, c.norm, c.tie_word_embeddings) for c in map(read, (QWEN2, QWEN3, OLMO3))
    ]
    assert flags == [
        (True, None, "input", False),
        (False, "head", "input", False),
        (False, "projection", "output", False),
    ]


def test_a_head_is_as_wide_as_said_or_as_the_family_has_it(read):
    silent = {name: value for name, value in QWEN3.items() if name != "head_dim"}
    assert [read(c).head_dim for c in (QWEN2, QWEN2 | {"head_dim": 16}, silent, QWEN3)] == [8, 16, 128, 8]


def test_key_heads_are_as_many_as_query_heads_where_that_is_what_is_meant(read):
    assert read(QWEN2 | {"num_key_value_heads": None}).num_key_value_heads == 4
    silent = {name: value for name, value in OLMO3.items() if name != "num_key_value_heads"}
    assert read(silent).num_key_value_heads == 4
    with pytest.raises(ConfigError, match="missing field .*num_key_value_heads"):
        read(silent | {"model_type": "qwen2"})


def test_windows_of_qwen_need_to_be_switched_on(read):
    window = {"sliding_window": 6, "max_window_layers": 3}
    assert read(QWEN2 | window).layer_types is None
    config = read(QWEN2 | window | {"use_sliding_window": True})
    assert config.layer_types == ("full_attention",) * 3 + ("sliding_attention",)
    assert config.sliding_window == 6
    assert read(QWEN2 | window | {"use_sliding_window": True, "max_window_layers": 4}).sliding_window is None


def test_three_of_four_layers_of_olmo_have_windows(read):
    config = read(OLMO3)
    assert config.layer_types == ("sliding_attention",) * 3 + ("full_attention",)
    assert config.sliding_window == 4096
    assert read(OLMO3 | {"layer_types": ["full_attention"] * 4}).sliding_window is None


@pytest.mark.parametrize(
    "written",
    [
        {"rope_theta": 50_000, "rope_scaling": {**YARN, "attention_factor": 1.5}},
        {"rope_theta": 50_000, "rope_scaling": {**YARN, "type": "yarn", "attention_factor": 1.5}},
        {"rope_parameters": {**YARN, "rope_theta": 50_000.0, "attention_factor": 1.5}},
    ],
    ids=["as transformers 4 writes it", "with the older name of the type", "as transformers 5 writes it"],
)
def test_wavelengths_and_their_scaling_are_read(written, read):
    config = read(QWEN2 | written)
    assert config.rope_theta == 50_000.0
    assert config.rope_scaling == YarnConfig(4.0, 16, attention_factor=1.5)


def test_only_whole_layers_of_olmo_are_scaled(read):
    old = {"rope_theta": 50_000.0, "rope_scaling": YARN}
    plain = {"rope_type": "default", "rope_theta": 50_000.0}
    new = {
        "rope_parameters": {"full_attention": {**YARN, "rope_theta": 50_000.0}, "sliding_attention": plain}
    }
    assert read(OLMO3 | old) == read(OLMO3 | new)
    assert read(OLMO3 | new).rope_scaling == YarnConfig(4.0, 16, sliding_layers=False)


def test_fields_that_change_nothing_are_ignored(read):
    inert = {"use_cache": True, "torch_dtype": "bfloat16", "eos_token_id": [1, 2], "rope_scaling": None}
    assert read(QWEN2 | inert | {"attention_dropout": 0.0, "use_mrope": False}) == read(QWEN2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (QWEN2 | {"model_type": "llama"}, "model_type='llama' is not supported, only qwen2, qwen3, olmo3"),
        ({}, "model_type=None is not supported"),
        (QWEN2 | {"hidden_act": "gelu"}, "hidden_act='gelu' is not supported, only 'silu'"),
        (QWEN2 | {"attention_dropout": 0.1}, "attention_dropout=0.1 is not supported"),
        (QWEN2 | {"use_mrope": True}, "use_mrope=True is not supported"),
        (QWEN3 | {"attention_bias": True}, "attention_bias=True is not supported"),
        (QWEN2 | {"num_experts": 8, "logit_scale": 2}, "num_experts=8, logit_scale=2 not understood"),
        (
            QWEN2 | {"rope_scaling": {"type": "linear", "factor": 2}},
            "rope_type='linear'.*only 'default' and 'yarn'",
        ),
        (
            QWEN2 | {"rope_scaling": {"rope_type": "default", "factor": 2}},
            "rope_type='default' with {'factor': 2}",
        ),
        (QWEN2 | {"rope_scaling": {**YARN, "mscale": 1.0}}, "unknown field .*rope_scaling.mscale"),
        (QWEN2 | {"rope_scaling": {**YARN, "truncate": False}}, "truncate=False is not supported"),
        (
            QWEN2 | {"rope_scaling": {"type": "yarn", "factor": 4.0}},
            "missing .*original_max_position_embeddings",
        ),
        (QWEN2 | {"rope_scaling": {**YARN, "factor": 0.5}}, "factor=0.5 must be 1 or more"),
        (QWEN2 | {"rope_scaling": "yarn"}, "rope_scaling='yarn' must be an object"),
        (
            OLMO3 | {"rope_parameters": {"full_attention": YARN, "sliding_attention": YARN}},
            "rope_parameters.sliding_attention=.*only unscaled windows",
        ),
        (
            OLMO3
            | {
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                }
            },
            "only unscaled windows with the rope_theta of the other layers",
        ),
        (QWEN2 | {"layer_types": ["sliding_attention"] * 4}, "but there is no window"),
        (QWEN2 | {"layer_types": ["full_attention"] * 3}, "layer_types has 3 entries, num_hidden_layers=4"),
        (
            QWEN2 | {"layer_types": ["chunked_attention"] * 4},
            "layer_types.0.='chunked_attention' must be one of",
        ),
        (QWEN2 | {"num_attention_heads": 5}, "hidden_size=32 is no multiple of num_attention_heads=5"),
        (QWEN2 | {"num_key_value_heads": 3}, "num_key_value_heads=3 must divide num_attention_heads=4"),
        (QWEN2 | {"num_attention_heads": 0}, "num_attention_heads=0 must be a positive int"),
        (QWEN2 | {"hidden_size": "32"}, "hidden_size='32' must be a positive int"),
        (QWEN2 | {"hidden_size": None}, "hidden_size=None must be a positive int"),
        (QWEN2 | {"vocab_size": 2.5}, "vocab_size=2.5 must be int, not float"),
        ("{", "config.json is damaged"),
        ("[1, 2]", "config.json is damaged"),
        ('"qwen2"', "config.json is damaged"),
    ],
    ids=str,
)
def test_what_would_be_computed_wrongly_is_refused_by_name(values, message, read):
    with pytest.raises(ConfigError, match=message):
        read(values)


def test_a_folder_without_a_config_is_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no config.json in {tmp_path}: not a model folder"):
        from_hugging_face(tmp_path / "config.json")


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_what_is_written_is_read_as_the_same_model(case, read):
    config = from_hugging_face(golden.FOLDER / case.folder / "config.json")
    assert read(to_hugging_face(config, "bfloat16")) == config
    assert json.loads(to_hugging_face(config, "bfloat16"))["dtype"] == "bfloat16"


def test_how_it_is_computed_is_not_written(read):
    config = dataclasses.replace(tiny.CONFIG, compute=ComputeConfig("bfloat16", "full"))
    assert read(to_hugging_face(config, "float32")) == tiny.CONFIG


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qk_norm": None}, "no Hugging Face architecture has .*'qk_norm': None"),
        ({"norm": "output"}, "no Hugging Face architecture has .*'norm': 'output'"),
        (
            {
                "rope_scaling": YarnConfig(4.0, 16, sliding_layers=False),
                "layer_types": ("full_attention", "sliding_attention"),
                "sliding_window": 4,
            },
            "sliding_layers=False is not how qwen3 is defined",
        ),
    ],
)
def test_a_decoder_that_transformers_does_not_have_is_not_written(changes, message):
    with pytest.raises(ConfigError, match=message):
        to_hugging_face(dataclasses.replace(tiny.CONFIG, **changes), "float32")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("q_DNH", (6, 4, 2)),
        ("o_NHD", (4, 2, 6)),
        ("q_bias_NH", (4, 2)),
        ("gate_DF", (6, 10)),
        ("embedding_VD", (12, 6)),
        ("norm_D", (6,)),
    ],
)
def test_a_block_of_ours_is_read_from_a_block_of_theirs(name, shape):
    """Any cut of the first axes that devices hold: what is read is what a whole tensor would give there."""
    value = np.arange(np.prod(shape)).reshape(shape)
    theirs = to_theirs((name,), value)
    assert theirs.shape == their_shape((name,), shape) and theirs.flags.c_contiguous
    np.testing.assert_array_equal(to_ours((name,), theirs, shape), value)
    cut = {axes[0] for axes in their_axes((name,), len(shape))}
    for half in (slice(0, None), slice(0, shape[0] // 2), slice(shape[0] // 2, None)):
        for axis in cut:
            block = tuple(
                slice(*half.indices(size)) if i == axis and half.stop is not None else slice(0, size)
                for i, size in enumerate(shape)
            )
            expected = value[block]
            found = to_ours((name,), theirs[their_block((name,), block, shape)], expected.shape)
            np.testing.assert_array_equal(found, expected)
