"""The decoder: pre-norm transformer with grouped-query attention, RoPE, SwiGLU and q/k norm.

Every parameter carries the logical names of its axes (`axes=`); `parallel.rules` says on which mesh
axis each of them lives. Shape letters: B sequences, T query positions, S key positions, D width, F
feed-forward width, N query heads, K key/value heads, H head width, V vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from sdistill.models.config import ModelConfig


class Cache(NamedTuple):
    """Keys and values of the positions seen so far, one buffer a layer, [B, S, K, H] each."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]


def empty_cache(config: ModelConfig, batch: int, length: int, dtype: jnp.dtype) -> Cache:
    """A zeroed cache for `batch` sequences of up to `length` positions."""
    shape = (batch, length, config.num_key_value_heads, config.head_dim)
    buffers = tuple(jnp.zeros(shape, dtype) for _ in range(config.num_hidden_layers))
    return Cache(buffers, tuple(jnp.zeros(shape, dtype) for _ in range(config.num_hidden_layers)))


def rms_norm(x: Float[Array, "... D"], scale: Float[Array, " D"], eps: float) -> Float[Array, "... D"]:
    """Divides by the root mean square, in float32, and scales."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (y * scale).astype(x.dtype)


def rope(
    x_BTNH: Float[Array, "B T N H"], positions_BT: Int[Array, "B T"], theta: float
) -> Float[Array, "B T N H"]:
    """Rotates the two halves of each head by position over wavelength (Su et al. 2021).

    Angles are float32: in bfloat16, position 257 would round to 256.
    """
    half = x_BTNH.shape[-1] // 2
    frequency_H = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BTH = positions_BT[..., None].astype(jnp.float32) * frequency_H
    cos, sin = jnp.cos(angle_BTH)[:, :, None], jnp.sin(angle_BTH)[:, :, None]
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTNH.dtype)


def causal_mask(segments_BS: Int[Array, "B S"]) -> Bool[Array, "B S S"]:
    """Which keys a query may see: earlier or equal positions of its own, non-zero segment.

    In: [1 1 2 0]. Out: rows `1000 1100 0010 0000`: sequences packed in one row do not see each other,
    and padding (segment 0) sees and is seen by nothing.
    """
    same = segments_BS[:, :, None] == segments_BS[:, None, :]
    length = segments_BS.shape[1]
    return same & (segments_BS[:, :, None] > 0) & jnp.tri(length, dtype=bool)[None]


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        width, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        head = config.head_dim
        normal = jax.nn.initializers.normal(config.initializer_range)
        self.q_DNH = nnx.Param(normal(rngs.params(), (width, heads, head)), axes=("embed", "heads", None))
        self.k_DKH = nnx.Param(
            normal(rngs.params(), (width, kv_heads, head)), axes=("embed", "kv_heads", None)
        )
        self.v_DKH = nnx.Param(
            normal(rngs.params(), (width, kv_heads, head)), axes=("embed", "kv_heads", None)
        )
        # Layers add to the residual stream, so their outputs start smaller the more of them there are.
        small = jax.nn.initializers.normal(config.initializer_range / (2 * config.num_hidden_layers) ** 0.5)
        self.o_NHD = nnx.Param(small(rngs.params(), (heads, head, width)), axes=("heads", None, "embed"))
        if config.qk_norm:
            self.q_norm_H = nnx.Param(jnp.ones(head), axes=(None,))
            self.k_norm_H = nnx.Param(jnp.ones(head), axes=(None,))

    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        positions_BT: Int[Array, "B T"],
        mask_BTS: Bool[Array, "B T S"],
        cache: tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]] | None,
        cache_index: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "B T D"], tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]]:
        """Attends; with a cache, first writes the new keys and values at `cache_index`."""
        eps, theta = self.config.rms_norm_eps, self.config.rope_theta
        q_BTNH = jnp.einsum("btd,dnh->btnh", x_BTD, self.q_DNH[...])
        k_BTKH = jnp.einsum("btd,dkh->btkh", x_BTD, self.k_DKH[...])
        v_BTKH = jnp.einsum("btd,dkh->btkh", x_BTD, self.v_DKH[...])
        if self.config.qk_norm:
            q_BTNH = rms_norm(q_BTNH, self.q_norm_H[...], eps)
            k_BTKH = rms_norm(k_BTKH, self.k_norm_H[...], eps)
        q_BTNH, k_BTKH = rope(q_BTNH, positions_BT, theta), rope(k_BTKH, positions_BT, theta)
        if cache is not None:
            start = (0, cache_index, 0, 0)
            k_BTKH = jax.lax.dynamic_update_slice(cache[0], k_BTKH.astype(cache[0].dtype), start)
            v_BTKH = jax.lax.dynamic_update_slice(cache[1], v_BTKH.astype(cache[1].dtype), start)
        y_BTNH = jax.nn.dot_product_attention(
            q_BTNH, k_BTKH.astype(q_BTNH.dtype), v_BTKH.astype(q_BTNH.dtype), mask=mask_BTS[:, None]
        )
        return jnp.einsum("btnh,nhd->btd", y_BTNH, self.o_NHD[...]), (k_BTKH, v_BTKH)


class FeedForward(nnx.Module):
    """SwiGLU: down(silu(gate(x)) · up(x))."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        width, inner = config.hidden_size, config.intermediate_size
        normal = jax.nn.initializers.normal(config.initializer_range)
        small = jax.nn.initializers.normal(config.initializer_range / (2 * config.num_hidden_layers) ** 0.5)
        self.gate_DF = nnx.Param(normal(rngs.params(), (width, inner)), axes=("embed", "mlp"))
        self.up_DF = nnx.Param(normal(rngs.params(), (width, inner)), axes=("embed", "mlp"))
        self.down_FD = nnx.Param(small(rngs.params(), (inner, width)), axes=("mlp", "embed"))

    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Applies the layer."""
        gate_BTF = jax.nn.silu(x_BTD @ self.gate_DF[...])
        return (gate_BTF * (x_BTD @ self.up_DF[...])) @ self.down_FD[...]


class Layer(nnx.Module):
    """Attention and feed-forward, each behind a norm and around a residual."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.eps = config.rms_norm_eps
        self.attention_norm_D = nnx.Param(jnp.ones(config.hidden_size), axes=(None,))
        self.attention = Attention(config, rngs)
        self.feed_forward_norm_D = nnx.Param(jnp.ones(config.hidden_size), axes=(None,))
        self.feed_forward = FeedForward(config, rngs)

    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        positions_BT: Int[Array, "B T"],
        mask_BTS: Bool[Array, "B T S"],
        cache: tuple[jax.Array, jax.Array] | None,
        cache_index: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "B T D"], tuple[jax.Array, jax.Array]]:
        """Returns the new residual stream and this layer's keys and values."""
        normed = rms_norm(x_BTD, self.attention_norm_D[...], self.eps)
        attended, cache = self.attention(normed, positions_BT, mask_BTS, cache, cache_index)
        x_BTD = x_BTD + attended
        return x_BTD + self.feed_forward(rms_norm(x_BTD, self.feed_forward_norm_D[...], self.eps)), cache


class Decoder(nnx.Module):
    """Token ids to hidden states. The output head is applied by those who need logits, and only there.

    Because `[B, T, V]` does not fit at real vocabularies, the model never makes it: `head()` is handed
    to the losses and to the sampler, which decide how many positions to look at at a time.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        normal = jax.nn.initializers.normal(config.initializer_range)
        shape = (config.vocab_size, config.hidden_size)
        self.embedding_VD = nnx.Param(normal(rngs.params(), shape), axes=("vocab", "embed"))
        self.layers = nnx.List([Layer(config, rngs) for _ in range(config.num_hidden_layers)])
        self.norm_D = nnx.Param(jnp.ones(config.hidden_size), axes=(None,))
        if not config.tie_word_embeddings:
            self.head_DV = nnx.Param(normal(rngs.params(), shape[::-1]), axes=("embed", "vocab"))

    def __call__(
        self,
        tokens_BT: Int[Array, "B T"],
        positions_BT: Int[Array, "B T"],
        mask_BTS: Bool[Array, "B T S"],
        cache: Cache | None = None,
        cache_index: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Final hidden states, and the cache with the new positions in it.

        Without a cache S = T and the returned cache holds just these positions. With one, the T new
        positions are written at column `cache_index` and the mask is over all its S columns.
        """
        x_BTD = self.embedding_VD[...][tokens_BT]
        keys, values = [], []
        for index, layer in enumerate(self.layers):
            layer_cache = None if cache is None else (cache.keys[index], cache.values[index])
            x_BTD, (k, v) = layer(x_BTD, positions_BT, mask_BTS, layer_cache, cache_index)
            keys.append(k)
            values.append(v)
        x_BTD = rms_norm(x_BTD, self.norm_D[...], self.config.rms_norm_eps)
        return x_BTD, Cache(tuple(keys), tuple(values))

    def head(self) -> Float[Array, "D V"]:
        """The matrix that turns hidden states into logits."""
        return self.embedding_VD[...].T if self.config.tie_word_embeddings else self.head_DV[...]


@functools.cache
def _graph(config: ModelConfig) -> nnx.GraphDef[Decoder]:
    return nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(params=0))), nnx.Param)[0]


def bind(config: ModelConfig, params: nnx.State) -> Decoder:
    """The decoder that computes with these parameters. Made for the inside of jitted functions."""
    return nnx.merge(_graph(config), params)
