"""Hugging Face's names and layouts: `config.json` to ModelConfig and back, tensors to parameters and back.

Every field of a `config.json` is read, checked against the one value that is implemented, or on the list of
fields that do not matter here. Any other is refused by name: it might change the function.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdistill.model.config import ModelConfig
from sdistill.settings import ConfigError, parse
from sdistill.text.hugging_face import read_json


class Family(NamedTuple):
    """An architecture of transformers that the decoder computes.

    Attributes:
      architecture: Its class in transformers.
      flags: The fields of ModelConfig that define it.
      defaults: What transformers 5.23 assumes for fields that a `config.json` lacks (class `Qwen2Config`, …).
    """

    architecture: str
    flags: dict[str, Any]
    defaults: dict[str, Any]


FAMILIES = {
    "qwen2": Family(
        "Qwen2ForCausalLM",
        {"attention_bias": True, "qk_norm": None, "norm": "input"},
        {"rope_theta": 10_000.0, "rms_norm_eps": 1e-6, "max_position_embeddings": 32_768},
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        {"attention_bias": False, "qk_norm": "head", "norm": "input"},
        {"rope_theta": 10_000.0, "rms_norm_eps": 1e-6, "max_position_embeddings": 32_768, "head_dim": 128},
    ),
    "olmo3": Family(
        "Olmo3ForCausalLM",
        {"attention_bias": False, "qk_norm": "projection", "norm": "output"},
        {"rope_theta": 500_000.0, "rms_norm_eps": 1e-5, "max_position_embeddings": 2_048},
    ),
}
"""By `model_type`."""

_SAME = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "initializer_range"),
    "max_position_embeddings",
)
"""Fields that ModelConfig has under the same name."""

_REQUIRED = {"hidden_act": "silu", "attention_dropout": 0.0, "use_mrope": False, "attention_bias": False}
"""Values that the decoder implements; absent means this value."""

_IGNORED = {
    *("architectures", "auto_map", "bos_token_id", "dtype", "eos_token_id", "model_type", "pad_token_id"),
    *("torch_dtype", "transformers_version", "use_cache", "_name_or_path"),
}
"""Fields that do not change the function."""


# ── config.json ──────────────────────────────────────────────────────────────────────────────────


def from_hugging_face(path: str | Path) -> ModelConfig:
    """Reads a `config.json`.

    Raises:
      FileNotFoundError: if there is none.
      ConfigError: naming the field, for a model that this decoder would compute wrongly.
    """
    path = Path(path)
    values = read_json(path)
    family = values.get("model_type")
    if family not in FAMILIES:
        raise ConfigError(f"{path}: model_type={family!r} is not supported, only {', '.join(FAMILIES)}")
    # `rest` shrinks as fields are understood.
    rest = {name: value for name, value in values.items() if name not in _IGNORED}
    for name, expected in _REQUIRED.items():
        if (found := rest.pop(name, expected)) != expected:
            raise ConfigError(f"{path}: {name}={found!r} is not supported, only {expected!r}")
    fields = FAMILIES[family].flags | FAMILIES[family].defaults | {"tie_word_embeddings": False}
    fields |= {name: rest.pop(name) for name in _SAME if rest.get(name) is not None}
    if family == "olmo3" or "num_key_value_heads" in values:  # as null; Qwen's default is 32 heads
        fields.setdefault("num_key_value_heads", fields.get("num_attention_heads"))
    for name in ("hidden_size", "num_attention_heads", "num_hidden_layers"):
        if type(fields.get(name)) is not int or fields[name] < 1:
            raise ConfigError(f"{path}: {name}={fields.get(name)!r} must be a positive int")
    fields |= _head_dim(rest, fields, path) | _layers(rest, fields, family, path) | _rope(rest, family, path)
    if unknown := [f"{name}={value!r}" for name, value in rest.items() if value is not None]:
        raise ConfigError(
            f"{path}: {', '.join(unknown)} not understood; the decoder might compute another function "
            "than the one that was trained"
        )
    return parse(ModelConfig, fields, str(path))


def stored_dtype(path: str | Path) -> str:
    """Type of the tensors beside a `config.json`; float32 if it does not say."""
    values = read_json(Path(path))
    return str(values.get("dtype") or values.get("torch_dtype") or "float32")


def _head_dim(rest: dict[str, Any], fields: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """As given, or the family's, or the width divided by the heads."""
    given = rest.pop("head_dim", None)
    if given is not None or "head_dim" in fields:
        return {"head_dim": given or fields["head_dim"]}
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    if width % heads:
        raise ConfigError(f"{path}: hidden_size={width} is no multiple of num_attention_heads={heads}")
    return {"head_dim": width // heads}


def _layers(rest: dict[str, Any], fields: Mapping[str, Any], family: str, path: Path) -> dict[str, Any]:
    """Types of layers, and their window. The Qwen families have one only with `use_sliding_window`."""
    types, window = rest.pop("layer_types", None), rest.pop("sliding_window", None)
    used, first = rest.pop("use_sliding_window", None), rest.pop("max_window_layers", None)
    count = fields["num_hidden_layers"]
    if family == "olmo3":
        window = 4096 if window is None else window  # transformers' default
        types = types or ["full_attention" if i % 4 == 3 else "sliding_attention" for i in range(count)]
    else:
        window = window if used else None
        first = 28 if first is None else first  # transformers' default
        sliding = ["full_attention" if i < first else "sliding_attention" for i in range(count)]
        types = types or (sliding if window is not None else ["full_attention"] * count)
    if types == ["full_attention"] * count:
        return {"layer_types": None, "sliding_window": None}
    if "sliding_attention" in types and window is None:
        raise ConfigError(f"{path}: layer_types has 'sliding_attention' layers, but there is no window")
    return {"layer_types": types, "sliding_window": window}


def _rope(rest: dict[str, Any], family: str, path: Path) -> dict[str, Any]:
    """RoPE as transformers 5 writes it (`rope_parameters`) or as 4 did (`rope_theta`, `rope_scaling`).

    Olmo-3 scales only the layers that see the whole sequence: see docs/models.md.
    """
    for name in ("rope_scaling", "rope_parameters"):
        if not isinstance(rest.get(name), dict | None):
            raise ConfigError(f"{path}: {name}={rest[name]!r} must be an object")
    top = {"rope_theta": rest.pop("rope_theta", None), **(rest.pop("rope_scaling", None) or {})}
    nested = rest.pop("rope_parameters", None) or {}
    if "full_attention" in nested:
        sliding = {k: v for k, v in (nested.get("sliding_attention") or {}).items() if v is not None}
        nested = nested["full_attention"]
        theta = nested.get("rope_theta")
        if sliding.get("rope_type", "default") != "default" or sliding.get("rope_theta", theta) != theta:
            raise ConfigError(
                f"{path}: rope_parameters.sliding_attention={sliding} is not supported; only unscaled "
                "windows with the rope_theta of the other layers"
            )
    rope = {name: value for name, value in {**top, **nested}.items() if value is not None}
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    rope.pop("type", None)
    fields = {"rope_theta": rope.pop("rope_theta")} if "rope_theta" in rope else {}
    if kind == "yarn":
        if rope.pop("truncate", True) is not True:
            raise ConfigError(f"{path}: rope_parameters.truncate=False is not supported")
        return fields | {"rope_scaling": {**rope, "sliding_layers": family != "olmo3"}}
    if kind != "default" or rope:
        raise ConfigError(
            f"{path}: rope_type={kind!r} with {rope} is not supported, only 'default' and 'yarn'"
        )
    return fields


def to_hugging_face(config: ModelConfig, dtype: str) -> str:
    """The `config.json` with which transformers loads the same model.

    Args:
      dtype: Type of the saved tensors, e.g. `bfloat16`.

    Raises:
      ConfigError: if no architecture of transformers is this decoder.
    """
    flags = {name: getattr(config, name) for name in ("attention_bias", "qk_norm", "norm")}
    family = next((name for name, family in FAMILIES.items() if family.flags == flags), None)
    if family is None:
        known = {name: family.flags for name, family in FAMILIES.items()}
        raise ConfigError(f"no Hugging Face architecture has {flags}; known: {known}")
    types = [config.layer_type(i) for i in range(config.num_hidden_layers)]
    values: dict[str, Any] = {
        "model_type": family,
        "architectures": [FAMILIES[family].architecture],
        "dtype": dtype,
        "hidden_act": "silu",
        "head_dim": config.head_dim,
        "layer_types": types,
        "sliding_window": config.sliding_window,
        # Which ids begin and end a text is up to the tokenizer; transformers' defaults may not exist here.
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
        **{name: getattr(config, name) for name in _SAME},
    }
    scaled = rope = {"rope_theta": config.rope_theta, "rope_type": "default"}
    if (yarn := config.rope_scaling) is not None:
        if config.sliding_window and yarn.sliding_layers != (family != "olmo3"):
            raise ConfigError(
                f"rope_scaling.sliding_layers={yarn.sliding_layers} is not how {family} is defined"
            )
        fields = {name: value for name, value in dataclasses.asdict(yarn).items() if value is not None}
        del fields["sliding_layers"]
        scaled = {"rope_theta": config.rope_theta, "rope_type": "yarn", **fields}
    if family == "olmo3":
        values["rope_parameters"] = {"full_attention": scaled, "sliding_attention": rope}
    else:
        values["rope_parameters"] = scaled
        values["use_sliding_window"] = config.sliding_window is not None
        # Olmo-3 has no such field; the Qwen families count the layers before the first window.
        first = types.index("sliding_attention") if config.sliding_window else len(types)
        values["max_window_layers"] = first
    if family == "qwen3":
        values["attention_bias"] = False
    return json.dumps(values, indent=2) + "\n"


# ── Tensors ──────────────────────────────────────────────────────────────────────────────────────

# Our parameter → their tensor.
_MODEL_TENSORS = {
    "embedding_VD": "model.embed_tokens.weight",
    "norm_D": "model.norm.weight",
    "head_DV": "lm_head.weight",
}
_LAYER_TENSORS = {
    "attention.q_DNH": "self_attn.q_proj.weight",
    "attention.k_DKH": "self_attn.k_proj.weight",
    "attention.v_DKH": "self_attn.v_proj.weight",
    "attention.o_NHD": "self_attn.o_proj.weight",
    "attention.q_bias_NH": "self_attn.q_proj.bias",
    "attention.k_bias_KH": "self_attn.k_proj.bias",
    "attention.v_bias_KH": "self_attn.v_proj.bias",
    "attention.q_norm": "self_attn.q_norm.weight",
    "attention.k_norm": "self_attn.k_norm.weight",
    "feed_forward.gate_DF": "mlp.gate_proj.weight",
    "feed_forward.up_DF": "mlp.up_proj.weight",
    "feed_forward.down_FD": "mlp.down_proj.weight",
}
_NORM_TENSORS = {
    "input": {
        "attention_norm_D": "input_layernorm.weight",
        "feed_forward_norm_D": "post_attention_layernorm.weight",
    },
    "output": {
        "attention_norm_D": "post_attention_layernorm.weight",
        "feed_forward_norm_D": "post_feedforward_layernorm.weight",
    },
}
# Our parameter → which of our axes make up each axis of their tensor; norms and biases are flat there.
_AXES = {
    **dict.fromkeys(("q_DNH", "k_DKH", "v_DKH"), ((1, 2), (0,))),
    **dict.fromkeys(("gate_DF", "up_DF", "down_FD", "head_DV"), ((1,), (0,))),
    "o_NHD": ((2,), (0, 1)),
    "embedding_VD": ((0,), (1,)),
}


def tensor_name(config: ModelConfig, path: tuple[Any, ...], repeat: int) -> str:
    """Their name of a parameter.

    In: ("layers", 1, "attention", "q_DNH"), repeat 2 of a pattern of 4 layers. Out:
    `model.layers.9.self_attn.q_proj.weight`.
    """
    if path[0] != "layers":
        return _MODEL_TENSORS[str(path[0])]
    name = ".".join(str(part) for part in path[2:])
    theirs = _LAYER_TENSORS.get(name) or _NORM_TENSORS[config.norm][name]
    return f"model.layers.{repeat * config.period() + path[1]}.{theirs}"


def their_axes(path: tuple[Any, ...], ndim: int) -> tuple[tuple[int, ...], ...]:
    """For each axis of their tensor, which axes of our parameter of one layer make it up."""
    return _AXES.get(path[-1], (tuple(range(ndim)),))


def their_shape(path: tuple[Any, ...], shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of their tensor for our parameter of one layer."""
    return tuple(prod(shape[axis] for axis in axes) for axes in their_axes(path, len(shape)))


def to_theirs(path: tuple[Any, ...], value: np.ndarray) -> np.ndarray:
    """Our array of one layer in their layout, contiguous."""
    order = [axis for axes in their_axes(path, value.ndim) for axis in axes]
    return np.ascontiguousarray(value.transpose(order)).reshape(their_shape(path, value.shape))


def to_ours(path: tuple[Any, ...], value: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Their tensor, or a block of it, as ours of this shape; a view where possible."""
    order = [axis for axes in their_axes(path, len(shape)) for axis in axes]
    return value.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))


def their_block(path: tuple[Any, ...], block: Sequence[slice], shape: Sequence[int]) -> tuple[slice, ...]:
    """The block of their tensor that holds a block of our parameter of one layer.

    In: `o_NHD` of shape (4, 8, 32), heads 2 to 3. Out: all 32 rows, columns 16 to 31.
    """
    groups = their_axes(path, len(shape))
    return tuple(_flat([block[a] for a in axes], [shape[a] for a in axes]) for axes in groups)


def _flat(block: Sequence[slice], shape: Sequence[int]) -> slice:
    """A block of several axes as a slice of their product; only the first axis may be cut."""
    assert all(part.indices(size) == (0, size, 1) for part, size in zip(block[1:], shape[1:], strict=True))
    start, stop, _ = block[0].indices(shape[0])
    return slice(start * prod(shape[1:]), stop * prod(shape[1:]))
