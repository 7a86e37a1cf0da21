"""The decoder as the engine sees it."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from sdistill.distributed.rules import BATCH, RESHARDING, SAMPLING, constrain, parameter_shardings, spec_of
from sdistill.model.cache import COLUMN_AXES, Cache, empty_cache
from sdistill.model.config import ModelConfig
from sdistill.model.decoder import bind, is_matrix, unroll


@dataclass(frozen=True)
class CachedDecoder:
    """`Decoder` with its matrices in the type of the activations, layer by layer.

    Another model needs the same methods and properties, and a hash: equal models share compiled programs. A
    cache is a tree of arrays. Their first axis is rows, and one of the others is columns: token i of a row is
    in its column i.
    """

    config: ModelConfig

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
            value = variable[...].astype(self.config.dtype)
            return variable.replace(constrain(value, spec_of(variable, RESHARDING)))

        params = unroll(params)
        return jax.tree.map(converted, params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))

    def shardings(self, params: nnx.State, mesh: Mesh) -> nnx.State:
        """Layout of those: no axis is split that would be gathered for every token."""
        return parameter_shardings(params, mesh, SAMPLING)

    def cache_spec(self) -> PartitionSpec:
        """Layout of each array of a cache: rows like a batch, key heads like those of the parameters."""
        return PartitionSpec(*BATCH, SAMPLING["kv_heads"])

    def empty_cache(self, rows: int, length: int) -> Cache:
        """A cache with `length` columns."""
        return empty_cache(self.config, rows, length)

    def column_axes(self, cache: Cache) -> Any:
        """The axis of columns of each array: a tree of numbers."""
        return (COLUMN_AXES,) * len(cache)

    def prefill(self, params: nnx.State, tokens_QP: Int[Array, "Q P"], lengths_Q: Int[Array, " Q"]) -> Cache:
        """The cache of prompts that are padded on the right, with P columns."""
        return bind(self.config, params).prefill(tokens_QP, lengths_Q)[1]

    def decode(
        self, params: nnx.State, tokens_B: Int[Array, " B"], cache: Cache, lengths_B: Int[Array, " B"]
    ) -> tuple[Float[Array, "B V"], Cache]:
        """Logits after one more token per row, and the cache with it; `lengths_B` tokens are before it."""
        decoder = bind(self.config, params)
        hidden_BD, cache = decoder.decode(tokens_B, cache, lengths_B)
        logits_BV = jnp.einsum("bd,dv->bv", hidden_BD, decoder.head(), preferred_element_type=jnp.float32)
        return logits_BV, cache
