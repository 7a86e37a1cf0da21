"""The models on which the decoder is compared with transformers: small, and between them every flag.

Weights and inputs are drawn from the names of the case and of the tensor. So nobody stores weights: whoever
knows a model's tensors and their shapes has it.
"""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)  # a case is equal to itself and can be a key
class Case:
    """One model.

    Attributes:
      name: E.g. `qwen3 tied`.
      model_type: What Hugging Face calls the architecture.
      fields: Fields of its `config.json`.
    """

    name: str
    model_type: str
    fields: Mapping[str, Any]

    @property
    def folder(self) -> str:
        """The name as that of a folder."""
        return self.name.replace(" ", "-")

    def weights(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        """Weights for these tensors: attention is far from uniform, logits spread over several nats."""
        return {name: self._tensor(name, shape) for name, shape in shapes.items()}

    def _tensor(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(f"{self.name} {name}".encode()))
        fan_in = shape[-1] ** 0.5
        if name == "model.norm.weight":
            # Of either sign: else tied embeddings would have every token follow itself.
            value = rng.uniform(1, 3, shape) * rng.choice([-1, 1], shape) / fan_in
        elif name.endswith(("q_norm.weight", "k_norm.weight")):
            value = rng.uniform(0.4, 1.3, shape)
        elif name.endswith("norm.weight"):
            value = rng.uniform(0.2, 0.6, shape)
        elif name.endswith("bias"):
            value = rng.normal(0, 0.5, shape)
        elif name in ("model.embed_tokens.weight", "lm_head.weight"):
            value = rng.normal(0, 1, shape)
        else:
            output = name.endswith(("o_proj.weight", "down_proj.weight"))
            value = rng.normal(0, 0.5 if output else 2.0, shape) / fan_in
        # Numbers that bfloat16 can hold: a model in bfloat16 is the same one, only computed differently.
        return value.astype(ml_dtypes.bfloat16).astype(np.float32)

    def sequence(self, label: str, length: int) -> np.ndarray:
        """Random tokens."""
        rng = np.random.default_rng(zlib.crc32(f"{self.name} {label}".encode()))
        return rng.integers(0, self.fields["vocab_size"], length)


def _case(name: str, model_type: str, shape: tuple[int, ...], **fields: Any) -> Case:
    """A case from (width, feed-forward width, layers, query heads, key heads) and what else it sets."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes = dict(zip((*names, "num_key_value_heads"), shape, strict=True))
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return Case(
        name, model_type, {"vocab_size": 96, "max_position_embeddings": 1024, **sizes, **ids, **fields}
    )


def _rope(theta: float, **yarn: float) -> dict[str, Any]:
    if not yarn:
        return {"rope_theta": theta, "rope_type": "default"}
    return {"rope_theta": theta, "rope_type": "yarn", "original_max_position_embeddings": 128, **yarn}


def _olmo_rope(theta: float, **yarn: float) -> dict[str, Any]:
    """Both kinds of layers written out: from `rope_theta` alone transformers 5.23 gets the windows wrong."""
    return {"full_attention": _rope(theta, **yarn), "sliding_attention": _rope(theta)}


_SLIDING, _FULL = "sliding_attention", "full_attention"

CASES = {
    case.name: case
    for case in (
        _case("qwen2", "qwen2", (64, 96, 4, 4, 2), rope_parameters=_rope(10_000.0)),
        _case(
            "qwen2 tied",
            "qwen2",
            (48, 64, 5, 4, 4),
            head_dim=16,
            tie_word_embeddings=True,
            rms_norm_eps=1e-5,
            rope_parameters=_rope(1_000_000.0),
        ),
        _case(
            "qwen2 yarn",
            "qwen2",
            (96, 128, 6, 8, 2),
            vocab_size=128,
            rope_parameters=_rope(50_000.0, factor=8.0),
        ),
        _case(
            "qwen2 window",
            "qwen2",
            (64, 64, 4, 4, 2),
            use_sliding_window=True,
            sliding_window=24,
            max_window_layers=2,
            rope_parameters=_rope(10_000.0, factor=8.0, beta_fast=16.0),
        ),
        _case(
            "qwen3 tied",
            "qwen3",
            (64, 96, 4, 4, 2),
            head_dim=32,
            tie_word_embeddings=True,
            rope_parameters=_rope(1_000_000.0),
        ),
        _case("qwen3", "qwen3", (32, 64, 8, 4, 4), head_dim=8, rope_parameters=_rope(10_000.0)),
        _case(
            "qwen3 yarn",
            "qwen3",
            (96, 64, 5, 8, 2),
            vocab_size=128,
            head_dim=16,
            rms_norm_eps=1e-5,
            rope_parameters=_rope(1_000_000.0, factor=8.0, attention_factor=1.2),
        ),
        _case("olmo3", "olmo3", (64, 96, 4, 4, 4), sliding_window=32, rope_parameters=_olmo_rope(500_000.0)),
        _case(
            "olmo3 tied",
            "olmo3",
            (48, 64, 8, 4, 1),
            head_dim=16,
            sliding_window=16,
            tie_word_embeddings=True,
            rms_norm_eps=1e-6,
            rope_parameters=_olmo_rope(10_000.0, factor=8.0),
        ),
        _case(
            "olmo3 yarn",
            "olmo3",
            (96, 128, 6, 8, 4),
            vocab_size=128,
            sliding_window=64,
            layer_types=[_SLIDING, _SLIDING, _FULL] * 2,
            rope_parameters=_olmo_rope(
                100_000.0, factor=8.0, attention_factor=1.3, beta_fast=24, beta_slow=2
            ),
        ),
    )
}

THOROUGHLY = ("qwen2 window", "qwen3 tied", "olmo3 yarn")
"""What takes long is compared on these: each architecture, and between them every flag."""

# How sequences lie in rows of 512 columns: kind, length, row, first column, segment. Between them whole rows,
# padding on either side, and several sequences in one row.
LENGTH = 512
LAYOUT = (
    ("whole", 512, 0, 0, 1),
    ("padded left", 400, 1, 112, 1),
    ("padded right", 300, 2, 0, 1),
    ("packed", 200, 3, 0, 1),
    ("packed", 7, 3, 200, 2),
    ("packed", 1, 3, 207, 3),
    ("packed", 280, 3, 208, 4),
)
PROMPT, RESPONSE = 16, 256
TRAINED = (2, 128)
"""Rows and columns of the batch whose loss is differentiated."""


def sequences(case: Case) -> list[np.ndarray]:
    """The sequences of LAYOUT."""
    return [case.sequence(f"sequence {i}", length) for i, (_, length, *_) in enumerate(LAYOUT)]


def prompt(case: Case) -> np.ndarray:
    """What greedy decoding starts from."""
    return case.sequence("prompt", PROMPT)


def batch(case: Case) -> np.ndarray:
    """What the gradient is taken on."""
    return case.sequence("batch", TRAINED[0] * TRAINED[1]).reshape(TRAINED)
