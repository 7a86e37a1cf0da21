"""What the engine asks of a model, and the decoder as such a model."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from sdistill.distributed.rules import (
    BATCH,
    RESHARDING,
    SAMPLING,
    constrain,
    parameter_shardings,
    spec_of,
)
from sdistill.model.cache import Cache, CacheType, column_axes, empty_cache
from sdistill.model.config import ModelConfig
from sdistill.model.decoder import Decoder, bind, is_matrix, unroll


class SamplingModel(Hashable, Protocol):
    """A model that continues rows of tokens. Hashable: programs are compiled once for equal ones.

    A cache is a tree of arrays whose first axis is rows, and one of whose other axes is columns: token i of a
    row is in its column i.
    """

    @property
    def vocab_size(self) -> int:
        """Number of logits."""

    @property
    def max_length(self) -> int:
        """Tokens of a row, at most."""

    def for_sampling(self, params: Any) -> Any:
        """The parameters as the other methods want them; traced once a generation."""

    def shardings(self, params: Any, mesh: Mesh) -> Any:
        """How those parameters lie on the mesh: a tree of `NamedSharding`."""

    def cache_spec(self) -> PartitionSpec:
        """How each array of a cache does."""

    def empty_cache(self, rows: int, length: int) -> Any:
        """A cache with so many columns."""

    def column_axes(self, cache: Any) -> Any:
        """Which axis of each array of a cache are its columns: a tree of numbers."""

    def prefill(self, params: Any, tokens_QP: Int[Array, "Q P"], lengths_Q: Int[Array, " Q"]) -> Any:
        """The cache, of P columns, of prompts that are padded on the right."""

    def decode(
        self, params: Any, tokens_B: Int[Array, " B"], cache: Any, lengths_B: Int[Array, " B"]
    ) -> tuple[Float[Array, "B V"], Any]:
        """Logits after one more token a row, and the cache with it, from the lengths before."""


@dataclass(frozen=True)
class CachedDecoder:
    """`Decoder`, with its matrices in the activations' type, layer by layer.

    Attributes:
      config: The model's.
      cache: What keys and values are kept in. `int8` has one scale a head and token; half of the memory of
        bfloat16, and of the time where reading the cache takes most of it.
      weights: What matrices are kept in. `int8` has a scale for each of their columns along the residual
        stream, and they are converted whenever they are used.
    """

    config: ModelConfig
    cache: CacheType = "activations"
    weights: Literal["activations", "int8"] = "activations"

    @property
    def vocab_size(self) -> int:
        """See `SamplingModel`."""
        return self.config.vocab_size

    @property
    def max_length(self) -> int:
        """See `SamplingModel`."""
        return self.config.max_position_embeddings

    def for_sampling(self, params: nnx.State) -> nnx.State:
        """Layers on their own, and no conversion left to do for every token."""

        def cast(variable: nnx.Variable) -> nnx.Variable:
            if not is_matrix(variable):
                return variable
            if self.weights == "int8":
                axis = variable.get_metadata()["axes"].index("embed")
                return variable.replace(Rounded.of(variable[...], axis))
            value = variable[...].astype(self.config.dtype)
            return variable.replace(constrain(value, spec_of(variable, RESHARDING)))

        return _each_variable(cast, unroll(params))

    def shardings(self, params: nnx.State, mesh: Mesh) -> nnx.State:
        """Split along heads, feed-forward and vocabulary: no axis that would be gathered for every token."""
        return parameter_shardings(params, mesh, SAMPLING)

    def cache_spec(self) -> PartitionSpec:
        """Rows like a batch, key heads like those of the parameters."""
        return PartitionSpec(*BATCH, SAMPLING["kv_heads"])

    def empty_cache(self, rows: int, length: int) -> Cache:
        """See `SamplingModel`."""
        return empty_cache(self.config, rows, length, self.cache)

    def column_axes(self, cache: Cache) -> Any:
        """See `SamplingModel`."""
        return tuple(column_axes(layer) for layer in cache)

    def prefill(self, params: nnx.State, tokens_QP: Int[Array, "Q P"], lengths_Q: Int[Array, " Q"]) -> Cache:
        """See `SamplingModel`."""
        columns_QP = jnp.broadcast_to(jnp.arange(tokens_QP.shape[1]), tokens_QP.shape)
        filled_QP = columns_QP < lengths_Q[:, None]
        segment_ids_QP = filled_QP.astype(jnp.int32)
        return self._bound(params, tokens_QP).prefill(tokens_QP, columns_QP, segment_ids_QP, self.cache)[1]

    def decode(
        self, params: nnx.State, tokens_B: Int[Array, " B"], cache: Cache, lengths_B: Int[Array, " B"]
    ) -> tuple[Float[Array, "B V"], Cache]:
        """See `SamplingModel`."""
        decoder = self._bound(params, tokens_B)
        hidden_BD, cache = decoder.decode(tokens_B, cache, lengths_B)
        logits_BV = jnp.einsum("bd,dv->bv", hidden_BD, decoder.head(), preferred_element_type=jnp.float32)
        return logits_BV, cache

    def _bound(self, params: nnx.State, tokens: Int[Array, "..."]) -> Decoder:
        """The decoder with these parameters, converted if they are rounded.

        The barrier ties the conversion to the tokens: ahead of the decoding loop, it would make a copy.
        """
        if self.weights == "int8":
            params, _ = jax.lax.optimization_barrier((params, tokens))

        def whole(variable: nnx.Variable) -> nnx.Variable:
            value = variable.get_value()
            is_rounded = isinstance(value, Rounded)
            return variable.replace(value.numbers(self.config.dtype)) if is_rounded else variable

        return bind(self.config, _each_variable(whole, params))


class Rounded(NamedTuple):
    """A matrix in whole numbers up to ±127, with scales that broadcast against it."""

    whole: Int[Array, "..."]
    scales: Float[Array, "..."]

    @classmethod
    def of(cls, matrix: Float[Array, "..."], axis: int) -> "Rounded":
        """With a scale for each column along the axis."""
        scales = jnp.max(jnp.abs(matrix.astype(jnp.float32)), axis=axis, keepdims=True) / 127
        whole = jnp.round(matrix / jnp.maximum(scales, jnp.finfo(jnp.float32).tiny))
        return cls(whole.astype(jnp.int8), scales)

    def numbers(self, dtype: jnp.dtype) -> Float[Array, "..."]:
        """The matrix, nearly."""
        return (self.whole * self.scales).astype(dtype)


def _each_variable(function: Callable[[nnx.Variable], nnx.Variable], params: nnx.State) -> nnx.State:
    """The function of every parameter."""
    return jax.tree.map(function, params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
