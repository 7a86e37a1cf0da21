"""The shape of a decoder, and how it is computed."""

from dataclasses import dataclass, field
from typing import Literal

import jax.numpy as jnp

from sdistill.settings import require, require_positive

LayerType = Literal["full_attention", "sliding_attention"]


@dataclass(frozen=True)
class YarnConfig:
    """RoPE scaled for longer contexts (YaRN, arXiv 2309.00071), in Hugging Face's field names.

    Attributes:
      factor: Ratio of the longer context to the original one.
      original_max_position_embeddings: Context that the unscaled weights were trained with, in tokens.
      attention_factor: Multiplies sine and cosine, and so attention logits by its square; None means the
        paper's 0.1 ln(factor) + 1.
      beta_fast: Wavelengths that fit more often than this into the original context are not scaled.
      beta_slow: Wavelengths that fit less often are stretched by `factor`; between the two it is a ramp.
      sliding_layers: Whether layers with a sliding window are scaled, too; not in Olmo-3 (docs/models.md).
    """

    factor: float
    original_max_position_embeddings: int
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    sliding_layers: bool = True

    def __post_init__(self) -> None:
        require_positive(self, "original_max_position_embeddings", "beta_fast", "beta_slow")
        require(self.factor >= 1, f"factor={self.factor} must be 1 or more")


@dataclass(frozen=True)
class ComputeConfig:
    """How a decoder is computed. Changes speed, memory and rounding, but not the function.

    Attributes:
      dtype: Type of activations and matrix products; norms, RoPE and softmax are always float32.
      remat: What the backward pass recomputes: nothing (`none`), all of a layer but its input (`full`), or
        all but matrix products (`dots`).
      attention: `plain` materialises the attention weights; `splash` is the Pallas kernel for TPU and
        `cudnn` the one for GPU (bfloat16 only); `auto` selects by the default platform.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "full", "dots"] = "none"
    attention: Literal["auto", "plain", "splash", "cudnn"] = "auto"

    def __post_init__(self) -> None:
        require(
            self.attention != "cudnn" or self.dtype == "bfloat16",
            f"attention='cudnn' computes in bfloat16, not in dtype={self.dtype!r}",
        )


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder. Fields that are also in Hugging Face's `config.json` have the same meaning.

    Attributes:
      vocab_size: Rows of the embedding; at least the tokenizer's size.
      hidden_size: Width D of the residual stream.
      intermediate_size: Width F of the SwiGLU feed-forward layer.
      num_hidden_layers: Number of layers L.
      num_attention_heads: Query heads N.
      num_key_value_heads: Key and value heads K; divides N.
      head_dim: Width H of one head, even.
      rope_theta: Base of the rotary wavelengths.
      rope_scaling: Scaling of the wavelengths; None for none.
      rms_norm_eps: Added to the mean square in every norm.
      tie_word_embeddings: Whether the output head is the embedding.
      attention_bias: Whether queries, keys and values have biases (Qwen2).
      qk_norm: RMS norm of queries and keys over each `head` (Qwen3), over the whole `projection` (Olmo-3),
        or none (Qwen2).
      norm: Whether the `input` of a sub-layer is normed (pre-norm, Qwen) or its `output` (post-norm, Olmo-3).
      layer_types: Which layers see the whole sequence and which only a window; None means all whole.
      sliding_window: Tokens that a `sliding_attention` layer sees, the current one included.
      initializer_range: Standard deviation of initial weights.
      max_position_embeddings: Longest sequence the weights are meant for, in tokens.
      compute: How it is computed; not part of a `config.json`.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float = 10_000.0
    rope_scaling: YarnConfig | None = None
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    qk_norm: Literal["head", "projection"] | None = "head"
    norm: Literal["input", "output"] = "input"
    layer_types: tuple[LayerType, ...] | None = None
    sliding_window: int | None = None
    initializer_range: float = 0.02
    max_position_embeddings: int = 1024
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        sizes = "vocab_size", "hidden_size", "intermediate_size", "head_dim", "max_position_embeddings"
        counts = "num_hidden_layers", "num_attention_heads", "num_key_value_heads"
        require_positive(self, *sizes, *counts, "sliding_window")
        require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"num_key_value_heads={self.num_key_value_heads} must divide "
            f"num_attention_heads={self.num_attention_heads}",
        )
        require(self.head_dim % 2 == 0, f"head_dim={self.head_dim} must be even: RoPE rotates pairs")
        count = self.num_hidden_layers
        types = ("full_attention",) * count if self.layer_types is None else self.layer_types
        require(len(types) == count, f"layer_types has {len(types)} entries, num_hidden_layers={count}")
        require(
            ("sliding_attention" in types) == (self.sliding_window is not None),
            f"sliding_window={self.sliding_window} goes with 'sliding_attention' in layer_types and only "
            "with it",
        )

    @property
    def dtype(self) -> jnp.dtype:
        """Type of the activations."""
        return jnp.dtype(self.compute.dtype)

    def layer_type(self, index: int) -> LayerType:
        """Type of layer `index`."""
        return "full_attention" if self.layer_types is None else self.layer_types[index]

    def period(self) -> int:
        """Length of the shortest pattern of layer types that, repeated, is the whole decoder.

        In: sliding, sliding, full, sliding, sliding, full. Out: 3.
        """
        types = [self.layer_type(i) for i in range(self.num_hidden_layers)]
        count = len(types)
        return next(p for p in range(1, count + 1) if count % p == 0 and types == types[:p] * (count // p))

    def parameter_count(self) -> int:
        """Number of parameters, from the shapes alone."""
        width, heads = self.hidden_size, self.num_attention_heads + 2 * self.num_key_value_heads
        layer = width * heads * self.head_dim + self.num_attention_heads * self.head_dim * width
        layer += 3 * width * self.intermediate_size + 2 * width
        layer += heads * self.head_dim if self.attention_bias else 0
        if self.qk_norm == "head":
            layer += 2 * self.head_dim
        elif self.qk_norm == "projection":
            layer += (self.num_attention_heads + self.num_key_value_heads) * self.head_dim
        embeddings = self.vocab_size * width * (1 if self.tie_word_embeddings else 2)
        return self.num_hidden_layers * layer + embeddings + width
