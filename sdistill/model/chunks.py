"""From hidden states to whatever is read from their logits, without ever holding all of those.

`read_by_chunks` goes forward over chunks of positions, each with the whole vocabulary, of which a loss may
want the largest. Its backward pass goes over tiles of more positions and fewer ids: the product of a chunk
would be as large as the head's gradient, that of a tile is added to a part of it, in place.
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

MOST_TILES = 8
"""Of a vocabulary. More are no faster on a CPU; and each scatters all sparse gradients, slowly on a TPU."""

SMALLEST_TILE = 4096
"""Ids. Tiles do not get smaller than about this, because there is nothing to gain then."""

MOST_PARTS = 8
"""Of a vocabulary: as many devices may split it and all be busy in every tile. More would make odd widths."""

ADDENDS = 64
"""Numbers that a CPU adds up one by one before their sum is added to others; see `total`."""

SUBLANES = 8
"""Rows of a TPU's register. With 1,741 positions a device its compiler (libtpu 0.0.42.1) failed."""

LANES = 128
"""Of a TPU's registers: it copies a whole head to take columns that begin between multiples of this."""

PlacesOf = Callable[[Array], Array]
Read = Callable[[tuple[Array, ...], Any, Array], tuple[Any, Any]]
Gradient = Callable[[tuple[Array, ...], Any, Array, Any, Any, PlacesOf], Array]
Others = tuple[tuple[Array, Array], ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def read_by_chunks(
    read: Read,
    gradient: Gradient,
    chunk_size: int,
    hidden_BTD: Float[Array, "B T D"],
    head_DV: Float[Array, "D V"],
    others: Others,
    slices: Any,
    temperature: Float[Array, ""],
) -> Any:
    """Applies `read` to the logits of chunks of positions, so that no `[B, T, V]` array is ever made.

    A tile of the backward pass has as many logits as a chunk. Products accumulate in float32 whatever the
    inputs are, and so do both gradients. Only `hidden_BTD` and `head_DV` have gradients.

    Args:
      read: From float32 logits `[b, t, V]`, the model's and then those of `others`, the chunk's part of
        `slices`, and `temperature`, to a tree of results and a tree of what the backward pass wants to know,
        all `[b, t, …]`.
      gradient: The gradient of the model's logits in a tile, from all models' logits `[b, t, v]` there, the
        tile's part of `slices`, `temperature`, the same part of the two trees that `read` returned and of the
        gradient of the first, and a function from ids to their places in the tile: v for ids of other tiles.
      chunk_size: Largest number of positions in a chunk.
      hidden_BTD: Final hidden states.
      head_DV: From hidden states to logits.
      others: Hidden states `[B, T, E]` and heads `[E, V]` of other models.
      slices: Tree of `[B, T, …]`.
      temperature: For `read` and `gradient`.

    Returns:
      The results of `read`, as a tree of `[B, T, …]`.
    """
    return _forward(read, gradient, chunk_size, hidden_BTD, head_DV, others, slices, temperature)[0]


def _forward(
    read: Read,
    gradient: Gradient,
    chunk_size: int,
    hidden_BTD: Array,
    head_DV: Array,
    others: Others,
    slices: Any,
    temperature: Array,
) -> tuple[Any, Any]:
    models = ((hidden_BTD, head_DV), *others)
    residuals = models, slices, temperature
    models = _spread(models)
    walk = _Walk.over(hidden_BTD, chunk_size)
    inputs = walk.padded(([x for x, _ in models], slices))

    def step(_: None, index: Array) -> tuple[None, Any]:
        hidden, part = walk.chunk(inputs, index)
        logits = tuple(product(x, head) for x, (_, head) in zip(hidden, models, strict=True))
        return None, read(logits, part, temperature)

    _, found = jax.lax.scan(step, None, jnp.arange(walk.down * walk.along))
    found = walk.joined(found)
    return found[0], (*residuals, found)


def _backward(
    read: Read, gradient: Gradient, chunk_size: int, residuals: tuple[Any, ...], result_gradient: Any
) -> tuple[Array | None, ...]:
    models, slices, temperature, found = residuals
    models = _spread(models)
    hidden_BTD, head_DV = models[0]
    dtype = jnp.result_type(hidden_BTD, head_DV)
    result_gradient = jax.tree.map(lambda x: None if x.dtype == jax.dtypes.float0 else x, result_gradient)
    tiles = _Tiles.over(head_DV)
    walk = _Walk.over(hidden_BTD, tiles.number * chunk_size)
    inputs = walk.padded(([x for x, _ in models], slices, found, result_gradient))

    def block(totals: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], None]:
        hidden_gradient, head_gradient = totals
        hidden, part, kept, upstream = walk.chunk(inputs, index)

        def step(totals: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], None]:
            of_hidden, of_head = totals
            columns = [tiles.tile(head, index) for _, head in models]
            logits = tuple(map(product, hidden, columns))
            places_of = functools.partial(tiles.places, index)
            x = gradient(logits, part, temperature, kept, upstream, places_of)
            x = jnp.where(tiles.new(index), x, 0).astype(dtype)
            of_columns = jnp.einsum("btd,btv->dv", hidden[0], x, preferred_element_type=jnp.float32)
            of_head = tiles.placed(of_head, tiles.tile(of_head, index) + of_columns, index)
            of_hidden += jnp.einsum("btv,dv->btd", x, columns[0], preferred_element_type=jnp.float32)
            return (of_hidden, of_head), None

        start = jnp.zeros(hidden[0].shape, jnp.float32), head_gradient
        (of_hidden, head_gradient), _ = jax.lax.scan(step, start, jnp.arange(tiles.number))
        return (walk.placed(hidden_gradient, of_hidden, index), head_gradient), None

    head_gradient = constrain(jnp.zeros(head_DV.shape, jnp.float32), PartitionSpec("fsdp", IDS))
    start = jnp.zeros_like(inputs[0][0]), head_gradient
    (hidden_gradient, head_gradient), _ = jax.lax.scan(block, start, jnp.arange(walk.down * walk.along))
    hidden_gradient = hidden_gradient[:, : walk.length]
    return hidden_gradient, head_gradient.astype(head_DV.dtype), None, None, None


read_by_chunks.defvjp(_forward, _backward)


def _spread(models: Others) -> Others:
    """Rows split as in a batch, and heads by ids only, over the context axis, too.

    So heads are gathered once, not for every chunk, and over few devices; hidden states are smaller.
    """
    return tuple(
        (constrain(hidden, BATCH), constrain(head, PartitionSpec(None, IDS))) for hidden, head in models
    )


def product(x_BTD: Float[Array, "b t D"], matrix_DV: Float[Array, "D V"]) -> Float[Array, "b t V"]:
    """The matrix product, accumulated in float32."""
    return jnp.einsum("btd,dv->btv", x_BTD, matrix_DV, preferred_element_type=jnp.float32)


def total(x_BTV: Float[Array, "*rows V"]) -> Float[Array, "*rows"]:
    """The sum over ids, in float32, with its digits.

    XLA for CPUs adds the numbers of a row one after the other. With AVX2 that was wrong by 3e-5 of the loss
    for 40,961 ids. So there, sums of a few are added up, in stages.
    """

    def in_stages(x: Array) -> Array:
        x = x.reshape(*x.shape[:-1], _parts(x.shape[-1]), -1)  # each device adds up its own
        while (count := -(-x.shape[-1] // ADDENDS)) > 1:
            padding = [(0, 0)] * (x.ndim - 1) + [(0, count * ADDENDS - x.shape[-1])]
            x = jnp.pad(x, padding).reshape(*x.shape[:-1], count, ADDENDS).sum(axis=-1)
            x = jax.lax.optimization_barrier(x)  # or XLA makes one sum of two stages
        return x.sum(axis=(-2, -1))

    if x_BTV.shape[-1] <= ADDENDS:
        return x_BTV.sum(axis=-1)
    return jax.lax.platform_dependent(x_BTV, cpu=in_stages, default=lambda x: x.sum(axis=-1))


def _unit() -> int:
    """What the columns of a chunk are a multiple of: whole registers, on every device that has some."""
    mesh = jax.sharding.get_abstract_mesh()
    ways = 1 if mesh.empty else mesh.shape["context"]
    return SUBLANES * ways if ways > 1 else 1


def _parts(size: int) -> int:
    """Into how many equal parts so many ids are cut, of which every device has as many as any other."""
    mesh = jax.sharding.get_abstract_mesh()  # if there is none, nothing says how they are split
    ways = jax.device_count() if mesh.empty else math.prod(mesh.shape[axis] for axis in IDS)
    return math.gcd(size, ways, MOST_PARTS)


class _Walk(NamedTuple):
    """How B rows of T positions are cut into `down * along` chunks of `rows * columns` positions.

    A chunk takes positions at equal distances, from all of the row and all of the batch: where those are
    spread over devices, every device has its share of every chunk. Rows stay together if they can.
    """

    length: int
    rows: int
    down: int
    columns: int
    along: int

    @classmethod
    def over(cls, x_BT: Float[Array, "B T ..."], chunk_size: int) -> "_Walk":
        """As few chunks as there may be, of like size."""
        batch, length = x_BT.shape[:2]
        rows = max(n for n in range(1, min(batch, chunk_size) + 1) if batch % n == 0)
        unit, most = _unit(), max(1, chunk_size // rows)
        along = -(-length // max(unit, most // unit * unit))
        columns = -(-length // along // unit) * unit
        return cls(length, rows, batch // rows, columns, along)

    def padded(self, tree: Any) -> Any:
        """`[B, T, …]` with zeros up to a multiple of the columns."""
        padding = self.columns * self.along - self.length
        return jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2)), tree)

    def chunk(self, tree: Any, index: Array) -> Any:
        """The chunk `[rows, columns, …]` of what was padded."""

        def chunk(x: Array) -> Array:
            sizes = (self.rows, 1, self.columns, 1, *x.shape[2:])
            part = jax.lax.dynamic_slice(self._cut(x), self._place(x, index), sizes)
            return part.reshape(self.rows, self.columns, *x.shape[2:])

        return jax.tree.map(lambda x: _moved(chunk, index, x), tree)

    def placed(self, x: Array, chunk: Array, index: Array) -> Array:
        """What was padded, with a chunk replaced."""

        def placed(x: Array, chunk: Array) -> Array:
            chunk = jnp.expand_dims(chunk, (1, 3))
            return jax.lax.dynamic_update_slice(self._cut(x), chunk, self._place(x, index)).reshape(x.shape)

        return _moved(placed, index, x, chunk.astype(x.dtype))

    def joined(self, tree: Any) -> Any:
        """From all chunks in order, `[down * along, rows, columns, …]`, to `[B, T, …]`."""

        def joined(x: Array) -> Array:
            x = jnp.moveaxis(x.reshape(self.down, self.along, *x.shape[1:]), (0, 1), (1, 3))
            return x.reshape(self.rows * self.down, self.columns * self.along, *x.shape[4:])[:, : self.length]

        return jax.tree.map(joined, tree)

    def _cut(self, x: Array) -> Array:
        """To `[rows, down, columns, along, …]`."""
        return x.reshape(*self[1:], *x.shape[2:])

    def _place(self, x: Array, index: Array) -> tuple[Any, ...]:
        return 0, index // self.along, 0, index % self.along, *[0] * (x.ndim - 2)


class _Tiles(NamedTuple):
    """How V ids are cut into `number` tiles of `parts * width` ids.

    A tile takes `width` ids from each part of the vocabulary: where that is spread over devices, every device
    has its share of every tile. The last tile begins before the one ahead of it ends, if it would not fit.
    """

    parts: int
    length: int
    number: int
    width: int

    @classmethod
    def over(cls, head_DV: Float[Array, "D V"]) -> "_Tiles":
        """As many tiles as there may be; a single one for a small vocabulary."""
        size = head_DV.shape[1]
        parts = _parts(size)
        length = size // parts
        number = min(MOST_TILES, max(1, size // SMALLEST_TILE))
        unit = math.gcd(length, LANES)
        return cls(parts, length, number, -(-length // number // unit) * unit)

    def tile(self, x_DV: Float[Array, "D V"], index: Array) -> Float[Array, "D v"]:
        """The columns of a tile."""

        def tile(x_DV: Array) -> Array:
            part = jax.lax.dynamic_slice_in_dim(self._cut(x_DV), self._start(index), self.width, axis=2)
            return part.reshape(len(x_DV), -1)

        return _moved(tile, index, x_DV)

    def placed(
        self, x_DV: Float[Array, "D V"], tile: Float[Array, "D v"], index: Array
    ) -> Float[Array, "D V"]:
        """`x_DV` with the columns of a tile replaced."""
        tile = tile.reshape(len(tile), self.parts, self.width)
        x = jax.lax.dynamic_update_slice_in_dim(self._cut(x_DV), tile, self._start(index), axis=2)
        return x.reshape(x_DV.shape)

    def places(self, index: Array, ids: Int[Array, "*shape"]) -> Int[Array, "*shape"]:
        """Where a tile has the ids; for those that it has not, the place after the last."""
        part, place = jnp.divmod(ids, self.length)
        place -= self._start(index)
        inside = (place >= 0) & (place < self.width)
        return jnp.where(inside, part * self.width + place, self.parts * self.width)

    def new(self, index: Array) -> Bool[Array, " v"]:
        """Which columns of a tile are in no tile before it."""
        return jnp.tile(self._start(index) + jnp.arange(self.width) >= index * self.width, self.parts)

    def _start(self, index: Array) -> Array:
        """Of a tile in each part, as a product from which compilers see what it is a multiple of."""
        unit = math.gcd(self.length, self.width)
        return jnp.minimum(index * (self.width // unit), (self.length - self.width) // unit) * unit

    def _cut(self, x_DV: Float[Array, "D V"]) -> Float[Array, "D parts length"]:
        return x_DV.reshape(len(x_DV), self.parts, self.length)


def _moved(move: Callable[..., Array], index: Array, *arrays: Array) -> Array:
    """`move(*arrays)`, in a loop's step of that index; `move` takes or puts a slice and computes nothing.

    For that, XLA would copy a whole array of bfloat16 to float32 on a CPU. Hence the bits. Those would be a
    copy too, ahead of the loop, if the barrier did not tie them to its step.
    """

    def by_bits(index: Array, *arrays: Array) -> Array:
        arrays, _ = jax.lax.optimization_barrier((arrays, index))
        return jax.lax.bitcast_convert_type(
            move(*(jax.lax.bitcast_convert_type(x, jnp.uint16) for x in arrays)), jnp.bfloat16
        )

    def as_is(_: Array, *arrays: Array) -> Array:
        return move(*arrays)

    if arrays[0].dtype != jnp.bfloat16:
        return move(*arrays)
    return jax.lax.platform_dependent(index, *arrays, cpu=by_bits, default=as_is)
