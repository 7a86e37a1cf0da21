"""Hugging Face safetensors in and out, under the names and shapes transformers gives a Qwen3 model."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from sdistill.config import ConfigError
from sdistill.models.config import ModelConfig, from_hugging_face, to_hugging_face
from sdistill.models.decoder import Decoder
from sdistill.storage import write_atomically

SIGNS_BASE = Path(__file__).parent / "assets" / "signs_base"
"""The shipped base model of the signs puzzle; `configs/signs/pretrain.py` makes it."""

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"

_LAYER_NAMES = {
    "attention_norm_D": "input_layernorm",
    "attention.q_DNH": "self_attn.q_proj",
    "attention.k_DKH": "self_attn.k_proj",
    "attention.v_DKH": "self_attn.v_proj",
    "attention.o_NHD": "self_attn.o_proj",
    "attention.q_norm_H": "self_attn.q_norm",
    "attention.k_norm_H": "self_attn.k_norm",
    "feed_forward_norm_D": "post_attention_layernorm",
    "feed_forward.gate_DF": "mlp.gate_proj",
    "feed_forward.up_DF": "mlp.up_proj",
    "feed_forward.down_FD": "mlp.down_proj",
}
_MODEL_NAMES = {"embedding_VD": "model.embed_tokens", "norm_D": "model.norm", "head_DV": "lm_head"}


def new_model(config: ModelConfig, seed: int) -> Decoder:
    """A decoder with freshly drawn float32 weights."""
    return Decoder(config, nnx.Rngs(params=seed))


def _hugging_face_name(path: tuple[Any, ...]) -> str:
    """In: ("layers", 0, "attention", "q_DNH"). Out: `model.layers.0.self_attn.q_proj.weight`."""
    if path[0] == "layers":
        name = ".".join(str(part) for part in path[2:])
        return f"model.layers.{path[1]}.{_LAYER_NAMES[name]}.weight"
    return f"{_MODEL_NAMES[str(path[0])]}.weight"


def _to_hugging_face(name: str, value: np.ndarray) -> np.ndarray:
    """Our [in…, out…] to their [out, in]; embeddings and norms are the same in both."""
    if value.ndim == 1 or name == "model.embed_tokens.weight":
        return value
    inputs = 2 if name.endswith("o_proj.weight") else 1
    return value.reshape(int(np.prod(value.shape[:inputs])), -1).T


def save_pretrained(model: Decoder, path: str | Path) -> None:
    """Writes `config.json` and `model.safetensors`, each of them whole or not at all."""
    path = Path(path)
    tensors = {}
    for parts, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        name = _hugging_face_name(parts)
        value = np.asarray(jax.device_get(variable[...]))
        tensors[name] = np.ascontiguousarray(_to_hugging_face(name, value))
    write_atomically(path / CONFIG_FILE, to_hugging_face(model.config).encode())
    write_atomically(path / WEIGHTS_FILE, save(tensors, metadata={"format": "pt"}))


def load_pretrained(path: str | Path) -> Decoder:
    """Reads what `save_pretrained` (or transformers, for a Qwen3 model) wrote.

    Raises:
      FileNotFoundError: if a file is missing.
      ConfigError: if a tensor is missing, extra or of another shape, or the file is damaged.
    """
    path = Path(path)
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (path / file).is_file():
            raise FileNotFoundError(f"no {file} in {path}: not a model folder")
    model = nnx.eval_shape(lambda: new_model(from_hugging_face(path / CONFIG_FILE), seed=0))
    try:
        tensors = load_file(path / WEIGHTS_FILE)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path / WEIGHTS_FILE} is damaged: {error}") from error
    state = nnx.state(model, nnx.Param)
    flat = nnx.to_flat_state(state)
    expected = {_hugging_face_name(parts): variable for parts, variable in flat}
    if missing := expected.keys() - tensors.keys():
        raise ConfigError(f"{path / WEIGHTS_FILE} lacks tensors {sorted(missing)}")
    if extra := tensors.keys() - expected.keys():
        raise ConfigError(f"{path / WEIGHTS_FILE} has tensors the config does not call for: {sorted(extra)}")
    values = []
    for parts, variable in flat:
        name = _hugging_face_name(parts)
        wanted = _to_hugging_face(name, np.empty(variable.shape)).shape
        if tensors[name].shape != wanted:
            raise ConfigError(f"{name}: expected shape {wanted}, found {tensors[name].shape}")
        ours = tensors[name] if tensors[name].shape == variable.shape else tensors[name].T
        values.append((parts, variable.replace(jax.numpy.asarray(ours.reshape(variable.shape)))))
    nnx.update(model, nnx.from_flat_state(values))
    return model
