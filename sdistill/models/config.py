"""What a decoder is made of, in the field names of a Hugging Face `config.json`."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from sdistill.config import ConfigError, parse, require


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder. Field names and meanings are those of Hugging Face's `Qwen3Config`.

    Attributes:
      vocab_size: Rows of the embedding; at least the tokenizer's size.
      hidden_size: Width D of the residual stream.
      intermediate_size: Width F of the SwiGLU feed-forward layer.
      num_hidden_layers: Number of layers L.
      num_attention_heads: Query heads N.
      num_key_value_heads: Key and value heads K; divides N.
      head_dim: Width H of one head, even.
      rope_theta: Base of the rotary wavelengths.
      rms_norm_eps: Added to the mean square in every norm.
      tie_word_embeddings: Whether the output head is the embedding.
      qk_norm: Whether queries and keys are RMS-normed a head, as in Qwen3.
      initializer_range: Standard deviation of initial weights.
      max_position_embeddings: Longest sequence the weights are meant for, in tokens.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    qk_norm: bool = True
    initializer_range: float = 0.02
    max_position_embeddings: int = 1024

    def __post_init__(self) -> None:
        require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"num_key_value_heads={self.num_key_value_heads} must divide "
            f"num_attention_heads={self.num_attention_heads}",
        )
        require(self.head_dim % 2 == 0, f"head_dim={self.head_dim} must be even: RoPE rotates pairs")

    def parameter_count(self) -> int:
        """Number of parameters, from the shapes alone."""
        width, heads = self.hidden_size, self.num_attention_heads + 2 * self.num_key_value_heads
        attention = width * heads * self.head_dim + self.num_attention_heads * self.head_dim * width
        layer = attention + 3 * width * self.intermediate_size + 2 * width
        layer += 2 * self.head_dim if self.qk_norm else 0
        embeddings = self.vocab_size * width * (1 if self.tie_word_embeddings else 2)
        return self.num_hidden_layers * layer + embeddings + width


_CONSTANTS = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_act": "silu",
    "attention_bias": False,
}


def to_hugging_face(config: ModelConfig) -> str:
    """The `config.json` with which transformers loads the same model (as Qwen3)."""
    require(config.qk_norm, "qk_norm=False has no Hugging Face architecture without biases to be saved as")
    fields = dataclasses.asdict(config)
    del fields["qk_norm"]
    return json.dumps(_CONSTANTS | fields, indent=2) + "\n"


def from_hugging_face(path: str | Path) -> ModelConfig:
    """Reads a `config.json`. Raises ConfigError for a model this decoder would compute wrongly."""
    values = json.loads(Path(path).read_text())
    rope = values.pop("rope_parameters", None) or {}  # where transformers 5 keeps what 4 had beside
    if rope.get("rope_type", "default") != "default":
        raise ConfigError(f"{path}: rope_parameters.rope_type={rope['rope_type']!r} is not supported")
    values |= {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    values.setdefault("tie_word_embeddings", False)  # the default of transformers, not ours
    for name, expected in _CONSTANTS.items():
        if values.get(name, expected) != expected:
            raise ConfigError(f"{path}: {name}={values[name]!r} is not supported, only {expected!r}")
    for name in ("rope_scaling", "sliding_window"):
        if values.get(name) is not None:
            raise ConfigError(f"{path}: {name}={values[name]!r} is not supported")
    known = {f.name for f in dataclasses.fields(ModelConfig)}
    return parse(ModelConfig, {name: values[name] for name in values if name in known}, str(path))
