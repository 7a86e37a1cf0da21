"""Keys and values of the tokens that rows have seen, so that decoding a token computes that token only.

Token i of a row is in column i. Keys lie transposed: so both products of attention read memory in the order
in which it lies, and on a CPU the product with keys is several times as fast.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from sdistill.model.config import ModelConfig

CacheType = Literal["activations", "bfloat16", "int8"]


class LayerCache(NamedTuple):
    """One layer's part. Scales are there for int8 only: a number of the cache times its scale is the value.

    Attributes:
      keys: [B, K, H, S].
      values: [B, K, S, H].
      key_scales: [B, K, S], or None.
      value_scales: Likewise.
    """

    keys: Num[Array, "B K H S"]
    values: Num[Array, "B K S H"]
    key_scales: Float[Array, "B K S"] | None = None
    value_scales: Float[Array, "B K S"] | None = None


Cache = tuple[LayerCache, ...]


def cache_of(
    keys_BSKH: Float[Array, "B S K H"], values_BSKH: Float[Array, "B S K H"], kind: CacheType
) -> LayerCache:
    """The cache of whole sequences."""
    keys_BKHS, values_BKSH = jnp.transpose(keys_BSKH, (0, 2, 3, 1)), jnp.transpose(values_BSKH, (0, 2, 1, 3))
    if kind == "int8":
        keys, key_scales = _rounded(keys_BKHS, axis=2)
        values, value_scales = _rounded(values_BKSH, axis=3)
        return LayerCache(keys, values, key_scales, value_scales)
    dtype = keys_BSKH.dtype if kind == "activations" else jnp.dtype(kind)
    return LayerCache(keys_BKHS.astype(dtype), values_BKSH.astype(dtype))


def empty_cache(config: ModelConfig, batch: int, length: int, kind: CacheType = "activations") -> Cache:
    """A cache with room for `length` tokens a row."""
    none = jnp.zeros((batch, length, config.num_key_value_heads, config.head_dim), config.dtype)
    return tuple(cache_of(none, none, kind) for _ in range(config.num_hidden_layers))


def column_axes(cache: LayerCache) -> LayerCache:
    """Which axis of each array are its columns; a tree like the cache."""
    axes: list[Any] = [None if x is None else axis for x, axis in zip(cache, (3, 2, 2, 2), strict=True)]
    return LayerCache(*axes)


def with_token(
    cache: LayerCache,
    key_BKH: Float[Array, "B K H"],
    value_BKH: Float[Array, "B K H"],
    column_B: Int[Array, " B"],
) -> LayerCache:
    """The cache with one more token in each row, in the column given.

    Row by row, so that rows that are spread over devices stay there.
    """
    kind: CacheType = "activations" if cache.key_scales is None else "int8"
    new = cache_of(key_BKH[:, None], value_BKH[:, None], kind)

    def put(buffer: jax.Array, new: jax.Array, axis: int) -> jax.Array:
        def put_row(row: jax.Array, new: jax.Array, column: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(row, new.astype(row.dtype), column, axis - 1)

        return jax.vmap(put_row)(buffer, new, column_B)

    joined: LayerCache = jax.tree.map(put, cache, new, column_axes(cache))
    return joined


def _rounded(x: Float[Array, "..."], axis: int) -> tuple[Int[Array, "..."], Float[Array, "..."]]:
    """Whole numbers up to ±127, and what to multiply them by: one number a head and token."""
    scale = jnp.max(jnp.abs(x.astype(jnp.float32)), axis=axis, keepdims=True) / 127
    rounded = jnp.round(x / jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)).astype(jnp.int8)
    return rounded, jnp.squeeze(scale, axis)
