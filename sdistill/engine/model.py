"""The decoder as the engine sees it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from sdistill.distributed.rules import BATCH, RESHARDING, SAMPLING, constrain, parameter_shardings, spec_of
from sdistill.model.cache import Cache, CacheType, column_axes, empty_cache, quantize
from sdistill.model.config import ModelConfig
from sdistill.model.decoder import Decoder, bind, is_matrix, unroll


@dataclass(frozen=True)
class CachedDecoder:
    """`Decoder` with its matrices in the type of the activations, layer by layer.

    Another model needs the same methods and properties, and a hash: equal models share compiled programs. A
    cache is a tree of arrays. Their first axis is rows, and one of the others is columns: token i of a row is
    in its column i.

    Attributes:
      config: The model's.
      cache: Type of cached keys and values. `int8` has one scale for each head and token; it takes half of
        the memory of bfloat16, and half of the time where reading the cache takes most of it.
      weights: Type of the matrices. `int8` has a scale for each of their columns along the residual stream;
        they are converted whenever they are used.
    """

    config: ModelConfig
    cache: CacheType = "activations"
    weights: Literal["activations", "int8"] = "activations"

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return self.config.vocab_size

    @property
    def max_length(self) -> int:
        """Maximum number of tokens of a row."""
        return self.config.max_position_embeddings

    def for_sampling(self, params: nnx.State) -> nnx.State:
        """Parameters as the other methods take them: no conversion is left to do for every token."""

        def converted(variable: nnx.Variable) -> nnx.Variable:
            if not is_matrix(variable):
                return variable
            if self.weights == "int8":
                axis = variable.get_metadata()["axes"].index("embed")
                return variable.replace(Int8Matrix.of(variable[...], axis))
            value = variable[...].astype(self.config.dtype)
            return variable.replace(constrain(value, spec_of(variable, RESHARDING)))

        return _map_variables(converted, unroll(params))

    def shardings(self, params: nnx.State, mesh: Mesh) -> nnx.State:
        """Layout of those: no axis is split that would be gathered for every token."""
        return parameter_shardings(params, mesh, SAMPLING)

    def cache_spec(self) -> PartitionSpec:
        """Layout of each array of a cache: rows like a batch, key heads like those of the parameters."""
        return PartitionSpec(*BATCH, SAMPLING["kv_heads"])

    def empty_cache(self, rows: int, length: int) -> Cache:
        """A cache with `length` columns."""
        return empty_cache(self.config, rows, length, self.cache)

    def column_axes(self, cache: Cache) -> Any:
        """The axis of columns of each array: a tree of numbers."""
        return tuple(column_axes(layer) for layer in cache)

    def prefill(self, params: nnx.State, tokens_QP: Int[Array, "Q P"], lengths_Q: Int[Array, " Q"]) -> Cache:
        """The cache of prompts that are padded on the right, with P columns."""
        return self._bound(params, tokens_QP).prefill(tokens_QP, lengths_Q, self.cache)[1]

    def decode(
        self, params: nnx.State, tokens_B: Int[Array, " B"], cache: Cache, lengths_B: Int[Array, " B"]
    ) -> tuple[Float[Array, "B V"], Cache]:
        """Logits after one more token a row, and the cache with it. Before, rows have `lengths_B` tokens."""
        decoder = self._bound(params, tokens_B)
        hidden_BD, cache = decoder.decode(tokens_B, cache, lengths_B)
        logits_BV = jnp.einsum("bd,dv->bv", hidden_BD, decoder.head(), preferred_element_type=jnp.float32)
        return logits_BV, cache

    def _bound(self, params: nnx.State, tokens: Int[Array, "..."]) -> Decoder:
        """The decoder with these parameters, converted from int8 if need be.

        The barrier ties the conversion to the tokens: ahead of the decoding loop, it would make a copy.
        """
        if self.weights == "activations":
            return bind(self.config, params)
        params, _ = jax.lax.optimization_barrier((params, tokens))

        def converted(variable: nnx.Variable) -> nnx.Variable:
            value = variable.get_value()
            is_int8 = isinstance(value, Int8Matrix)
            return variable.replace(value.to(self.config.dtype)) if is_int8 else variable

        return bind(self.config, _map_variables(converted, params))


class Int8Matrix(NamedTuple):
    """A matrix as whole numbers up to ±127, times scales that broadcast against them."""

    values: Int[Array, "..."]
    scales: Float[Array, "..."]

    @classmethod
    def of(cls, matrix: Float[Array, "..."], axis: int) -> "Int8Matrix":
        """Rounds a matrix, with a scale for each column along the axis."""
        return cls(*quantize(matrix, axis))

    def to(self, dtype: jnp.dtype) -> Float[Array, "..."]:
        """The matrix, but for rounding."""
        return (self.values * self.scales).astype(dtype)


def _map_variables(function: Callable[[nnx.Variable], nnx.Variable], params: nnx.State) -> nnx.State:
    return jax.tree.map(function, params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
