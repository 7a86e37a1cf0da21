"""Chunked vocabulary reductions that never materialise `[B, T, V]` logits.

    forward: chunks of positions          backward: tiles of positions × ids

         V = 12 ids                            v = 4    4    4
        ┌────────────┐                        ┌────┬────┬────┐
        │  chunk 0   │ 2 positions            │    │    │    │
        ├────────────┤                        │tile│tile│tile│ block 0:
        │  chunk 1   │                        │  0 │  1 │  2 │ 6 positions
    T   ├────────────┤                        │    │    │    │
        │     …      │                        ├────┼────┼────┤
        ├────────────┤                        │    │    │    │ block 1
        │  chunk 5   │                        │    │    │    │
        └────────────┘                        └────┴────┴────┘

Worked shape: B = 3 rows, T = 12 positions, V = 12 ids, `logits_chunk_size` = 2, three tiles. Forward, logits
[3, 2, 12] of 6 chunks exist one after the other: a loss may need the largest of a position's logits.
Backward, logits [3, 6, 4] of 2 blocks × 3 tiles do, as many elements. A chunk's part of the head's gradient
would be as large as the head, [D, 12]; a tile's is [D, 4] and is added in place.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from sdistill.distributed.rules import BATCH, IDS, constrain

MAX_TILES = 8
"""Of a vocabulary. More are no faster on a CPU; and each scatters all sparse gradients, slowly on a TPU."""

MIN_TILE = 4096
"""Ids. There is nothing to gain from smaller tiles."""

MAX_SHARDS = 8
"""Largest number of devices that each hold a part of every tile. More would make odd widths."""

ADDENDS = 64
"""Numbers that a CPU adds one by one before their sum is added to others; see `sum_ids`."""

SUBLANES = 8
"""Rows of a TPU's register. With 1,741 positions a device its compiler (libtpu 0.0.42.1) failed."""

LANES = 128
"""Of a TPU's registers: it copies a whole head to take columns that begin between multiples of this."""

ColumnsOf = Callable[[Array], Array]
Reduce = Callable[[tuple[Array, ...], Any, Array], tuple[Any, Any]]
LogitsGradient = Callable[[tuple[Array, ...], Any, Array, Any, Any, ColumnsOf], Array]
Models = tuple[tuple[Array, Array], ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def reduce_logits(
    reduce: Reduce,
    logits_gradient: LogitsGradient,
    logits_chunk_size: int,
    models: Models,
    inputs: Any,
    temperature: Float[Array, ""],
) -> Any:
    """Applies `reduce` to chunks of the logits `hidden @ head`.

    Products accumulate in float32 whatever the inputs are, and so do both gradients. Only the first model has
    gradients.

    Args:
      reduce: From float32 logits `[B, t, V]` of each model, the chunk's part of `inputs`, and `temperature`,
        to a tree of results and a tree of residuals for the backward pass, all `[B, t, …]`.
      logits_gradient: The gradient with respect to the first model's logits of a tile, from all models'
        logits `[B, t, v]` there, the tile's part of `inputs`, `temperature`, the same part of the results
        and residuals and of the results' gradient, and a function from ids to columns of the tile: v for
        ids of other tiles.
      logits_chunk_size: Largest number of positions of each row in a chunk.
      models: Final hidden states `[B, T, D]` and head `[D, V]` of each; D may differ.
      inputs: Tree of `[B, T, …]`.
      temperature: For `reduce` and `logits_gradient`.

    Returns:
      The results, as a tree of `[B, T, …]`.
    """
    return _forward(reduce, logits_gradient, logits_chunk_size, models, inputs, temperature)[0]


def _forward(
    reduce: Reduce,
    _gradient: LogitsGradient,
    logits_chunk_size: int,
    models: Models,
    inputs: Any,
    temperature: Array,
) -> tuple[Any, Any]:
    sharded = _shard_heads_by_ids(models)
    chunks = _Chunks.of_size(models[0][0], logits_chunk_size)
    padded = chunks.pad(([hidden for hidden, _ in sharded], inputs))

    def step(_: None, index: Array) -> tuple[None, Any]:
        hidden, chunk_inputs = chunks.take(padded, index)
        logits = tuple(product(x, head) for x, (_, head) in zip(hidden, sharded, strict=True))
        return None, reduce(logits, chunk_inputs, temperature)

    _, stacked = jax.lax.scan(step, None, jnp.arange(chunks.number))
    found = chunks.merge(stacked)  # results and residuals
    return found[0], (models, inputs, temperature, found)


def _backward(
    _reduce: Reduce, logits_gradient: LogitsGradient, logits_chunk_size: int, saved: Any, result_gradient: Any
) -> tuple[Any, None, None]:
    models, inputs, temperature, found = saved
    (hidden_BTD, head_DV), *others = models
    sharded = _shard_heads_by_ids(models)
    heads = [head for _, head in sharded]
    dtype = jnp.result_type(hidden_BTD, head_DV)
    result_gradient = jax.tree.map(lambda x: None if x.dtype == jax.dtypes.float0 else x, result_gradient)
    tiles = _Tiles.of(head_DV)
    blocks = _Chunks.of_size(hidden_BTD, tiles.number * logits_chunk_size)
    padded = blocks.pad(([hidden for hidden, _ in sharded], inputs, found, result_gradient))

    def block_step(gradients: tuple[Array, Array], block: Array) -> tuple[tuple[Array, Array], None]:
        hidden_gradient, head_gradient = gradients
        hidden, block_inputs, block_found, upstream = blocks.take(padded, block)

        def tile_step(gradients: tuple[Array, Array], tile: Array) -> tuple[tuple[Array, Array], None]:
            block_gradient, head_gradient = gradients
            columns = [tiles.take(head, tile) for head in heads]
            logits = tuple(map(product, hidden, columns))
            columns_of = functools.partial(tiles.columns_of, tile)
            x_BTV = logits_gradient(logits, block_inputs, temperature, block_found, upstream, columns_of)
            x_BTV = jnp.where(tiles.is_new(tile), x_BTV, 0).astype(dtype)
            tile_gradient = jnp.einsum("btd,btv->dv", hidden[0], x_BTV, preferred_element_type=jnp.float32)
            head_gradient = tiles.put(head_gradient, tiles.take(head_gradient, tile) + tile_gradient, tile)
            block_gradient += jnp.einsum("btv,dv->btd", x_BTV, columns[0], preferred_element_type=jnp.float32)
            return (block_gradient, head_gradient), None

        start = jnp.zeros(hidden[0].shape, jnp.float32), head_gradient
        (block_gradient, head_gradient), _ = jax.lax.scan(tile_step, start, jnp.arange(tiles.number))
        return (blocks.put(hidden_gradient, block_gradient, block), head_gradient), None

    head_gradient = constrain(jnp.zeros(head_DV.shape, jnp.float32), PartitionSpec("fsdp", IDS))
    start = jnp.zeros_like(padded[0][0]), head_gradient
    (hidden_gradient, head_gradient), _ = jax.lax.scan(block_step, start, jnp.arange(blocks.number))
    of_model = hidden_gradient[:, : blocks.length], head_gradient.astype(head_DV.dtype)
    return (of_model, *[None for _ in others]), None, None


reduce_logits.defvjp(_forward, _backward)


def _shard_heads_by_ids(models: Models) -> Models:
    """Hidden states split as in a batch; heads split by ids only, over the context axis, too.

    So heads are gathered once instead of for every chunk, and over few devices; hidden states are smaller.
    """
    return tuple(
        (constrain(hidden, BATCH), constrain(head, PartitionSpec(None, IDS))) for hidden, head in models
    )


def product(x_BTD: Float[Array, "B t D"], matrix_DV: Float[Array, "D V"]) -> Float[Array, "B t V"]:
    """The matrix product, accumulated in float32."""
    return jnp.einsum("btd,dv->btv", x_BTD, matrix_DV, preferred_element_type=jnp.float32)


def sum_ids(x_BTV: Float[Array, "*rows V"]) -> Float[Array, "*rows"]:
    """The float32 sum over ids, without loss of digits on a CPU.

    XLA for CPUs adds the numbers of a row one after the other. With AVX2 the loss was wrong by 3e-5 of its
    value at 40,961 ids. So there, sums of `ADDENDS` numbers are added in stages.
    """

    def in_stages(x: Array) -> Array:
        x = x.reshape(*x.shape[:-1], _num_shards(x.shape[-1]), -1)  # each device adds its own ids
        while (count := -(-x.shape[-1] // ADDENDS)) > 1:
            padding = [(0, 0)] * (x.ndim - 1) + [(0, count * ADDENDS - x.shape[-1])]
            x = jnp.pad(x, padding).reshape(*x.shape[:-1], count, ADDENDS).sum(axis=-1)
            x = jax.lax.optimization_barrier(x)  # or XLA makes one sum of two stages
        return x.sum(axis=(-2, -1))

    if x_BTV.shape[-1] <= ADDENDS:
        return x_BTV.sum(axis=-1)
    return jax.lax.platform_dependent(x_BTV, cpu=in_stages, default=lambda x: x.sum(axis=-1))


def _num_shards(size: int) -> int:
    """Number of equal parts of `size` ids, such that every device holds as many of them as any other."""
    mesh = jax.sharding.get_abstract_mesh()  # without one, nothing says how the ids are split
    devices = jax.device_count() if mesh.empty else math.prod(mesh.shape[axis] for axis in IDS)
    return math.gcd(size, devices, MAX_SHARDS)


class _Chunks(NamedTuple):
    """T positions of each row, padded at the end, cut into `number` chunks of `size`.

    Chunk i holds positions i, i + number, i + 2·number, …: where positions are spread over devices, every
    device has its share of every chunk. In: T = 12, size = 2. Out: six chunks, the first holds positions 0,
    6.
    """

    length: int
    number: int
    size: int

    @classmethod
    def of_size(cls, x_BT: Float[Array, "B T ..."], max_size: int) -> "_Chunks":
        """As few chunks as possible, of like size: whole registers on every device of a context axis."""
        mesh = jax.sharding.get_abstract_mesh()
        num_shards = 1 if mesh.empty else mesh.shape["context"]
        unit = SUBLANES * num_shards if num_shards > 1 else 1
        length = x_BT.shape[1]
        number = -(-length // max(unit, max_size // unit * unit))
        return cls(length, number, -(-length // number // unit) * unit)

    def pad(self, tree: Any) -> Any:
        """From `[B, T, …]` to `[B, size * number, …]`, with zeros."""
        padding = self.size * self.number - self.length
        return jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2)), tree)

    def take(self, tree: Any, index: Array) -> Any:
        """A chunk `[B, size, …]` of padded arrays."""

        def take(x: Array) -> Array:
            return jax.lax.dynamic_index_in_dim(self._split(x), index, axis=2, keepdims=False)

        return jax.tree.map(lambda x: _move_bits(take, index, x), tree)

    def put(self, x: Array, chunk: Array, index: Array) -> Array:
        """A padded array with a chunk replaced."""

        def put(x: Array, chunk: Array) -> Array:
            return jax.lax.dynamic_update_index_in_dim(self._split(x), chunk, index, axis=2).reshape(x.shape)

        return _move_bits(put, index, x, chunk.astype(x.dtype))

    def merge(self, tree: Any) -> Any:
        """From all chunks in order, `[number, B, size, …]`, to `[B, T, …]`."""

        def merge(x: Array) -> Array:
            x = jnp.moveaxis(x, 0, 2)
            return x.reshape(len(x), self.size * self.number, *x.shape[3:])[:, : self.length]

        return jax.tree.map(merge, tree)

    def _split(self, x: Array) -> Array:
        """From `[B, size * number, …]` to `[B, size, number, …]`."""
        return x.reshape(len(x), self.size, self.number, *x.shape[2:])


class _Tiles(NamedTuple):
    """V ids, in `shards` parts of `length`, cut into `number` tiles of `shards * width` ids.

    A tile takes `width` ids from each part: where the vocabulary is spread over devices, every device has
    its share of every tile. The last tile overlaps the one before if the width does not divide the length.
    In: V = 20, two shards, width 4. Out: three tiles, of ids 0-3 and 10-13, 4-7 and 14-17, 6-9 and 16-19.
    """

    shards: int
    length: int
    number: int
    width: int

    @classmethod
    def of(cls, head_DV: Float[Array, "D V"]) -> "_Tiles":
        """As many tiles as allowed; a single one for a small vocabulary."""
        size = head_DV.shape[1]
        shards = _num_shards(size)
        length = size // shards
        number = min(MAX_TILES, max(1, size // MIN_TILE))
        unit = math.gcd(length, LANES)
        return cls(shards, length, number, -(-length // number // unit) * unit)

    def take(self, x_DV: Float[Array, "D V"], index: Array) -> Float[Array, "D v"]:
        """The columns of a tile."""

        def take(x_DV: Array) -> Array:
            x = jax.lax.dynamic_slice_in_dim(self._split(x_DV), self._start(index), self.width, axis=2)
            return x.reshape(len(x_DV), -1)

        return _move_bits(take, index, x_DV)

    def put(self, x_DV: Float[Array, "D V"], tile: Float[Array, "D v"], index: Array) -> Float[Array, "D V"]:
        """`x_DV` with the columns of a tile replaced."""
        tile = tile.reshape(len(tile), self.shards, self.width)
        x = jax.lax.dynamic_update_slice_in_dim(self._split(x_DV), tile, self._start(index), axis=2)
        return x.reshape(x_DV.shape)

    def columns_of(self, index: Array, ids: Int[Array, "*shape"]) -> Int[Array, "*shape"]:
        """The tile's columns of the ids; the column after the last for ids of other tiles."""
        shard, column = jnp.divmod(ids, self.length)
        column -= self._start(index)
        inside = (column >= 0) & (column < self.width)
        return jnp.where(inside, shard * self.width + column, self.shards * self.width)

    def is_new(self, index: Array) -> Bool[Array, " v"]:
        """Which columns of a tile are in no tile before it."""
        return jnp.tile(self._start(index) + jnp.arange(self.width) >= index * self.width, self.shards)

    def _start(self, index: Array) -> Array:
        """Where a tile starts in each part, as a product that shows compilers what it is a multiple of."""
        unit = math.gcd(self.length, self.width)
        return jnp.minimum(index * (self.width // unit), (self.length - self.width) // unit) * unit

    def _split(self, x_DV: Float[Array, "D V"]) -> Float[Array, "D shards length"]:
        return x_DV.reshape(len(x_DV), self.shards, self.length)


def _move_bits(move: Callable[..., Array], index: Array, *arrays: Array) -> Array:
    """`move(*arrays)` in step `index` of a loop; `move` takes or puts a slice and computes nothing.

    On a CPU, XLA would convert a whole bfloat16 array to float32 for a slice of it. So its bits are moved
    there. The barrier ties their conversion to the step: ahead of the loop, it would copy the array, too.
    """

    def by_bits(index: Array, *arrays: Array) -> Array:
        arrays, _ = jax.lax.optimization_barrier((arrays, index))
        return jax.lax.bitcast_convert_type(
            move(*(jax.lax.bitcast_convert_type(x, jnp.uint16) for x in arrays)), jnp.bfloat16
        )

    if arrays[0].dtype != jnp.bfloat16:
        return move(*arrays)
    return jax.lax.platform_dependent(index, *arrays, cpu=by_bits, default=lambda _, *arrays: move(*arrays))
