"""Cached keys and values.

Token i of a row is in column i. Keys are transposed: so both products of attention read memory contiguously,
and on a CPU the product with keys is several times as fast.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from sdistill.model.config import ModelConfig

CacheType = Literal["activations", "bfloat16", "int8"]


class LayerCache(NamedTuple):
    """One layer's cache. Only int8 has scales: a value is the cached number times its scale."""

    keys: Num[Array, "B K H S"]
    values: Num[Array, "B K S H"]
    key_scales: Float[Array, "B K S"] | None = None
    value_scales: Float[Array, "B K S"] | None = None


Cache = tuple[LayerCache, ...]


def make_cache(
    keys_BSKH: Float[Array, "B S K H"], values_BSKH: Float[Array, "B S K H"], cache_type: CacheType
) -> LayerCache:
    """The cache of whole sequences."""
    keys_BKHS, values_BKSH = jnp.transpose(keys_BSKH, (0, 2, 3, 1)), jnp.transpose(values_BSKH, (0, 2, 1, 3))
    if cache_type == "int8":
        keys, key_scales = quantize(keys_BKHS, axis=2)
        values, value_scales = quantize(values_BKSH, axis=3)
        return LayerCache(keys, values, key_scales.squeeze(2), value_scales.squeeze(3))
    dtype = keys_BSKH.dtype if cache_type == "activations" else jnp.dtype(cache_type)
    return LayerCache(keys_BKHS.astype(dtype), values_BKSH.astype(dtype))


def empty_cache(config: ModelConfig, batch: int, length: int, cache_type: CacheType = "activations") -> Cache:
    """A cache with room for `length` tokens in each row."""
    zeros = jnp.zeros((batch, length, config.num_key_value_heads, config.head_dim), config.dtype)
    return tuple(make_cache(zeros, zeros, cache_type) for _ in range(config.num_hidden_layers))


def column_axes(cache: LayerCache) -> LayerCache:
    """The axis of each array along which its columns lie; a tree like the cache."""
    axes: list[Any] = [None if x is None else axis for x, axis in zip(cache, (3, 2, 2, 2), strict=True)]
    return LayerCache(*axes)


def append_token(
    cache: LayerCache,
    key_BKH: Float[Array, "B K H"],
    value_BKH: Float[Array, "B K H"],
    column_B: Int[Array, " B"],
) -> LayerCache:
    """The cache with one more token in each row, in the given column.

    It is vectorised over rows, so that rows stay on their devices.
    """
    cache_type: CacheType = "activations" if cache.key_scales is None else "int8"
    new = make_cache(key_BKH[:, None], value_BKH[:, None], cache_type)

    def put(buffer: jax.Array, new: jax.Array, axis: int) -> jax.Array:
        put_row = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=axis - 1)
        return jax.vmap(put_row)(buffer, new.astype(buffer.dtype), column_B)

    updated: LayerCache = jax.tree.map(put, cache, new, column_axes(cache))
    return updated


def quantize(x: Float[Array, "..."], axis: int) -> tuple[Int[Array, "..."], Float[Array, "..."]]:
    """Integers up to ±127, and the scales along `axis` that they are multiplied by."""
    scales = jnp.max(jnp.abs(x.astype(jnp.float32)), axis=axis, keepdims=True) / 127
    rounded = jnp.round(x / jnp.maximum(scales, jnp.finfo(jnp.float32).tiny))
    return rounded.astype(jnp.int8), scales
