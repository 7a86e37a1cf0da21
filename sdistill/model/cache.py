"""Cached keys and values.

Token i of a row is in column i. Keys are transposed: so both products of attention read memory contiguously,
and on a CPU the product with keys is several times as fast.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sdistill.model.config import ModelConfig


class LayerCache(NamedTuple):
    """One layer's cache, in the type of the activations."""

    keys: Float[Array, "B K H S"]
    values: Float[Array, "B K S H"]


Cache = tuple[LayerCache, ...]


COLUMN_AXES: Any = LayerCache(3, 2)  # type: ignore[arg-type]
"""The axis of keys and that of values along which their columns lie."""


def make_cache(keys_BSKH: Float[Array, "B S K H"], values_BSKH: Float[Array, "B S K H"]) -> LayerCache:
    """The cache of whole sequences."""
    return LayerCache(jnp.transpose(keys_BSKH, (0, 2, 3, 1)), jnp.transpose(values_BSKH, (0, 2, 1, 3)))


def empty_cache(config: ModelConfig, batch: int, length: int) -> Cache:
    """A cache with room for `length` tokens in each row."""
    zeros = jnp.zeros((batch, length, config.num_key_value_heads, config.head_dim), config.dtype)
    return tuple(make_cache(zeros, zeros) for _ in range(config.num_hidden_layers))


def append_token(
    cache: LayerCache,
    key_BKH: Float[Array, "B K H"],
    value_BKH: Float[Array, "B K H"],
    column_B: Int[Array, " B"],
) -> LayerCache:
    """The cache with one more token in each row, in the given column.

    It is vectorised over rows, so that rows stay on their devices.
    """

    def put(buffer: jax.Array, new: jax.Array, axis: int) -> jax.Array:
        put_row = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=axis - 1)
        return jax.vmap(put_row)(buffer, new, column_B)

    new = make_cache(key_BKH[:, None], value_BKH[:, None])
    return LayerCache(*map(put, cache, new, COLUMN_AXES))
