"""From hidden states to what losses need of the vocabulary, a chunk of positions at a time.

Logits exist for one chunk only, in both directions: `read_by_chunks` is the walk, with its own backward, and
`summarise` is what most losses read from the logits.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

NOTHING = -1e30
"""Stands for the logarithm of zero: unlike infinity, it has finite products with zero."""


class TokenScores(NamedTuple):
    """What a model says at each position about one given id.

    Attributes:
      log_prob_BT: Log-probability of the id, in nats.
      entropy_BT: Entropy of the whole next-token distribution, in nats. Has no gradient.
    """

    log_prob_BT: Float[Array, "B T"]
    entropy_BT: Float[Array, "B T"]


class Summary(NamedTuple):
    """A next-token distribution as far as a loss looks at it: K ids one by one, the others as one.

    Logarithms are in nats and relative to the largest logit of the position, which counts as a constant.
    That is right in whatever takes differences of them, as log-probabilities do.

    Attributes:
      top_BTK: Logits of the K ids.
      rest_BT: Log-sum-exp of all other logits; `NOTHING` where there are none.
      chosen_BT: Logit of the given id.
      entropy_BT: Entropy of the whole distribution. Has no gradient.
      ids_BTK: The K ids.
    """

    top_BTK: Float[Array, "B T K"]
    rest_BT: Float[Array, "B T"]
    chosen_BT: Float[Array, "B T"]
    entropy_BT: Float[Array, "B T"]
    ids_BTK: Int[Array, "B T K"]

    def log_probs(self) -> Float[Array, "B T K+1"]:
        """Log-probabilities of the K ids and of all others together."""
        return jax.nn.log_softmax(self._logits(), axis=-1)

    def scores(self) -> TokenScores:
        """Of the given id; differentiable in its log-probability."""
        log_prob_BT = self.chosen_BT - jax.nn.logsumexp(self._logits(), axis=-1)
        return TokenScores(log_prob_BT, jax.lax.stop_gradient(self.entropy_BT))

    def _logits(self) -> Float[Array, "B T K+1"]:
        return jnp.concatenate([self.top_BTK, self.rest_BT[..., None]], axis=-1)


def score_tokens(
    hidden_BTD: Float[Array, "B T D"],
    head_DV: Float[Array, "D V"],
    ids_BT: Int[Array, "B T"],
    *,
    chunk: int,
    temperature: float | Float[Array, ""] = 1.0,
) -> TokenScores:
    """Scores of ids under a model's hidden states, `chunk` positions of every row at a time.

    The log-probability is differentiable in `hidden_BTD` and `head_DV`; the entropy is not.
    """
    return summarise(
        hidden_BTD, head_DV, ids_BT, chunk_size=chunk * len(hidden_BTD), temperature=temperature
    ).scores()


def summarise(
    hidden_BTD: Float[Array, "B T D"],
    head_DV: Float[Array, "D V"],
    ids_BT: Int[Array, "B T"],
    *,
    chunk_size: int,
    temperature: float | Float[Array, ""] = 1.0,
    top_k: int = 0,
    top_ids_BTK: Int[Array, "B T K"] | None = None,
) -> Summary:
    """What a model says about the given ids, about K more, and about all others together.

    Differentiable in `hidden_BTD` and `head_DV`. The backward pass needs the logits once more, and of the
    forward pass only numbers per position.

    Args:
      hidden_BTD: Final hidden states.
      head_DV: From hidden states to logits.
      ids_BT: The given ids.
      chunk_size: Largest number of positions whose logits exist at the same time.
      temperature: Divides the logits. Has no gradient.
      top_k: Takes the model's own K likeliest ids, of equals the lowest.
      top_ids_BTK: Takes these K ids; instead of `top_k`.
    """
    return read_by_chunks(
        functools.partial(summary_of_logits, top_k),
        _summary_gradient,
        chunk_size,
        hidden_BTD,
        head_DV,
        (ids_BT, top_ids_BTK),
        jnp.float32(temperature),
    )


def summary_of_logits(
    top_k: int,
    logits: Float[Array, "b t V"],
    slices: tuple[Array, Array | None],
    temperature: Float[Array, ""],
) -> tuple[Summary, tuple[Array, ...]]:
    """What `summarise` reads from logits, and for its backward pass the peak, the rest and the K ids."""
    chosen_ids, top_ids = slices
    if top_ids is None:
        top_ids = top_ids_of(logits, top_k) if top_k else jnp.zeros((*chosen_ids.shape, 0), jnp.int32)
    peak = jnp.max(logits, axis=-1)
    top = (take(logits, top_ids) - peak[..., None]) / temperature
    chosen = (take(logits, chosen_ids[..., None])[..., 0] - peak) / temperature
    logits = put(logits, top_ids, NOTHING)
    rest_peak = jnp.max(logits, axis=-1, keepdims=True)
    log_share = (logits - rest_peak) / temperature
    total, moment = sums(jnp.exp(log_share), log_share * jnp.exp(log_share))
    rest_peak = (rest_peak[..., 0] - peak) / temperature
    rest = rest_peak + jnp.log(total)

    normaliser = jax.nn.logsumexp(jnp.concatenate([top, rest[..., None]], axis=-1), axis=-1)
    log_top = top - normaliser[..., None]
    rest_mean = moment / total + rest_peak - normaliser
    entropy = -jnp.sum(jnp.exp(log_top) * log_top, axis=-1) - jnp.exp(rest - normaliser) * rest_mean
    return Summary(top, rest, chosen, entropy, top_ids), (peak, rest, top_ids)


def _summary_gradient(
    logits: Float[Array, "b t V"],
    slices: tuple[Array, Array | None],
    temperature: Float[Array, ""],
    saved: tuple[Array, ...],
    gradient: Summary,
) -> Float[Array, "b t V"]:
    """The gradient of `rest` is spread over the other ids as their probabilities among themselves."""
    peak, rest, top_ids = saved
    top, of_rest, chosen = (x / temperature for x in (gradient.top_BTK, gradient.rest_BT, gradient.chosen_BT))
    log_share = (logits - peak[..., None]) / temperature - rest[..., None]
    share = jnp.exp(jnp.minimum(log_share, 0.0))  # meaningless at the K ids, where it is overwritten
    logits_gradient = put(of_rest[..., None] * share, top_ids, top)
    return add(logits_gradient, slices[0][..., None], chosen[..., None])


def sums(
    x: Float[Array, "b t V"], y: Float[Array, "b t V"]
) -> tuple[Float[Array, "b t"], Float[Array, "b t"]]:
    """Σx and Σy over V, in one pass: the exponentials in both cost the most on a CPU."""
    zero = jnp.zeros((), x.dtype)
    return jax.lax.reduce(
        (x, y), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), dimensions=(x.ndim - 1,)
    )


def take(x: Float[Array, "b t V"], ids: Int[Array, "b t K"]) -> Float[Array, "b t K"]:
    """The values at the ids of each position."""
    return jnp.take_along_axis(x, ids, axis=-1)


def put(
    x: Float[Array, "b t V"], ids: Int[Array, "b t K"], values: float | Float[Array, "b t K"]
) -> Float[Array, "b t V"]:
    """`x` with the values at the ids of each position replaced."""
    return jax.vmap(jax.vmap(lambda x, i, y: x.at[i].set(y)))(x, ids, jnp.broadcast_to(values, ids.shape))


def add(
    x: Float[Array, "b t V"], ids: Int[Array, "b t K"], values: Float[Array, "b t K"]
) -> Float[Array, "b t V"]:
    """`x` with the values added at the ids of each position."""
    return jax.vmap(jax.vmap(lambda x, i, y: x.at[i].add(y)))(x, ids, values)


@functools.partial(custom_partitioning, static_argnums=(1,))
def top_ids_of(logits: Float[Array, "b t V"], top_k: int) -> Int[Array, "b t K"]:
    """Ids of the K largest logits, largest first, of equals the lowest id first.

    XLA would gather sharded logits on every device to sort them. Here each device takes the largest of its
    own part of the vocabulary, and those are merged.
    """
    return _top(logits, top_k)[1]


def _top(x: Float[Array, "b t V"], k: int) -> tuple[Float[Array, "b t K"], Int[Array, "b t K"]]:
    """`jax.lax.top_k`, several times as fast for a large V, in two rounds.

    The K largest lie in the K blocks with the largest maxima: any other block has K elements before it.
    Kept in order of their ids, the blocks leave equals in that order too.
    """
    size = x.shape[-1]
    width = max(n for n in range(1, 33) if size % n == 0)
    count = size // width
    if width == 1 or k >= count:
        values, ids = jax.lax.top_k(x, k)
        return values, ids
    blocks = x.reshape(*x.shape[:-1], count, width)
    _, chosen = jax.lax.top_k(jnp.max(blocks, axis=-1), k)
    chosen = jnp.sort(chosen, axis=-1)
    candidates = jnp.take_along_axis(blocks, chosen[..., None], axis=-2)
    values, places = jax.lax.top_k(candidates.reshape(*x.shape[:-1], k * width), k)
    return values, jnp.take_along_axis(chosen, places // width, axis=-1) * width + places % width


def _partition_top(top_k: int, mesh: Any, arguments: Any, result: Any) -> Any:
    """How `top_ids_of` computes on the logits' parts; see `jax.experimental.custom_partitioning`."""
    logits = arguments[0]
    *rows, vocabulary = [*logits.sharding.spec, *[None] * len(logits.shape)][: len(logits.shape)]

    def local(logits: Array) -> Array:
        values, ids = _top(logits, min(top_k, logits.shape[-1]))
        if vocabulary is None:
            return ids
        ids += jax.lax.axis_index(vocabulary) * logits.shape[-1]
        values, ids = (jax.lax.all_gather(x, vocabulary, axis=x.ndim - 1, tiled=True) for x in (values, ids))
        _, places = jax.lax.top_k(values, top_k)
        return jnp.take_along_axis(ids, places, axis=-1)

    whole, parts = PartitionSpec(*rows, None), PartitionSpec(*rows, vocabulary)
    return mesh, local, NamedSharding(mesh, whole), (NamedSharding(mesh, parts),)


top_ids_of.def_partition(partition=_partition_top, sharding_rule="... v -> ... k")


Read = Callable[[Array, Any, Any], tuple[Any, Any]]
Gradient = Callable[[Array, Any, Any, Any, Any], Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def read_by_chunks(
    read: Read,
    gradient: Gradient,
    chunk_size: int,
    hidden_BTD: Float[Array, "B T D"],
    head_DV: Float[Array, "D V"],
    slices: Any,
    constants: Any,
) -> Any:
    """Applies `read` to the logits of chunks of positions, so that no `[B, T, V]` array is ever made.

    Products accumulate in float32 whatever the inputs are, and so does the gradient of the head over chunks.
    Only `hidden_BTD` and `head_DV` have gradients.

    Args:
      read: From float32 logits `[b, t, V]`, the chunk's part of `slices`, and `constants`, to a tree of
        results and a tree of what the backward pass wants to know, all `[b, t, …]`.
      gradient: The logits' gradient, from the logits, the chunk's part of `slices`, `constants`, what `read`
        saved, and the gradient of its results.
      chunk_size: Largest number of positions in a chunk.
      hidden_BTD: Final hidden states.
      head_DV: From hidden states to logits.
      slices: Tree of `[B, T, …]`.
      constants: Tree of anything.

    Returns:
      The results of `read`, as a tree of `[B, T, …]`.
    """
    return _forward(read, gradient, chunk_size, hidden_BTD, head_DV, slices, constants)[0]


def _forward(
    read: Read,
    gradient: Gradient,
    chunk_size: int,
    hidden_BTD: Array,
    head_DV: Array,
    slices: Any,
    constants: Any,
) -> tuple[Any, Any]:
    walk = _Walk.over(hidden_BTD, chunk_size)
    inputs = walk.cut((hidden_BTD, slices))

    def step(_: None, index: Array) -> tuple[None, Any]:
        hidden, part = walk.chunk(inputs, index)
        return None, read(product(hidden, head_DV), part, constants)

    _, (results, saved) = jax.lax.scan(step, None, jnp.arange(walk.down * walk.along))
    return walk.joined(results), (hidden_BTD, head_DV, slices, constants, saved)


def _backward(
    read: Read, gradient: Gradient, chunk_size: int, residuals: tuple[Any, ...], result_gradient: Any
) -> tuple[Array, Array, None, None]:
    hidden_BTD, head_DV, slices, constants, saved = residuals
    walk = _Walk.over(hidden_BTD, chunk_size)
    dtype = jnp.result_type(hidden_BTD, head_DV)
    result_gradient = jax.tree.map(lambda x: None if x.dtype == jax.dtypes.float0 else x, result_gradient)
    inputs = walk.cut((hidden_BTD, slices, result_gradient))

    def step(totals: tuple[Array, Array], turn: tuple[Array, Any]) -> tuple[tuple[Array, Array], None]:
        hidden_gradient, head_gradient = totals
        index, kept = turn
        hidden, part, upstream = walk.chunk(inputs, index)
        x = gradient(product(hidden, head_DV), part, constants, kept, upstream).astype(dtype)
        of_head = jnp.einsum("btd,btv->dv", hidden, x, preferred_element_type=jnp.float32)
        of_hidden = jnp.einsum("btv,dv->btd", x, head_DV, preferred_element_type=jnp.float32)
        return (walk.placed(hidden_gradient, of_hidden, index), head_gradient + of_head), None

    start = jnp.zeros_like(inputs[0]), jnp.zeros(head_DV.shape, jnp.float32)
    turns = jnp.arange(walk.down * walk.along), saved
    (hidden_gradient, head_gradient), _ = jax.lax.scan(step, start, turns)
    return walk.whole(hidden_gradient), head_gradient.astype(head_DV.dtype), None, None


read_by_chunks.defvjp(_forward, _backward)


def product(x_BTD: Float[Array, "b t D"], matrix_DV: Float[Array, "D V"]) -> Float[Array, "b t V"]:
    """The matrix product, accumulated in float32."""
    return jnp.einsum("btd,dv->btv", x_BTD, matrix_DV, preferred_element_type=jnp.float32)


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
        along = -(-length // max(1, chunk_size // rows))
        return cls(length, rows, batch // rows, -(-length // along), along)

    def cut(self, tree: Any) -> Any:
        """From `[B, T, …]` to `[rows, down, columns, along, …]`, with T padded by zeros."""
        padding = self.columns * self.along - self.length

        def cut(x: Array) -> Array:
            x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
            return x.reshape(*self[1:], *x.shape[2:])

        return jax.tree.map(cut, tree)

    def chunk(self, tree: Any, index: Array) -> Any:
        """The chunk `[rows, columns, …]` of what was cut."""

        def chunk(x: Array) -> Array:
            sizes = (self.rows, 1, self.columns, 1, *x.shape[4:])
            part = jax.lax.dynamic_slice(_bits(x), self._place(x, index), sizes)
            return _from_bits(part.reshape(self.rows, self.columns, *x.shape[4:]), x.dtype)

        return jax.tree.map(chunk, tree)

    def placed(self, x: Array, chunk: Array, index: Array) -> Array:
        """What was cut, with a chunk replaced."""
        chunk = jnp.expand_dims(chunk.astype(x.dtype), (1, 3))
        return _from_bits(
            jax.lax.dynamic_update_slice(_bits(x), _bits(chunk), self._place(x, index)), x.dtype
        )

    def whole(self, x: Array) -> Array:
        """From what was cut back to `[B, T, …]`."""
        x = x.reshape(self.rows * self.down, self.columns * self.along, *x.shape[4:])
        return x[:, : self.length]

    def joined(self, tree: Any) -> Any:
        """From all chunks in order, `[down * along, rows, columns, …]`, to `[B, T, …]`."""

        def joined(x: Array) -> Array:
            x = x.reshape(self.down, self.along, *x.shape[1:])
            return self.whole(jnp.moveaxis(x, (0, 1), (1, 3)))

        return jax.tree.map(joined, tree)

    def _place(self, x: Array, index: Array) -> tuple[Any, ...]:
        return 0, index // self.along, 0, index % self.along, *[0] * (x.ndim - 4)


def _bits(x: Array) -> Array:
    """Bits in the place of bfloat16, of which XLA makes a float32 copy on a CPU to take or put a slice."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def _from_bits(x: Array, dtype: Any) -> Array:
    return x if x.dtype == dtype else jax.lax.bitcast_convert_type(x, dtype)
