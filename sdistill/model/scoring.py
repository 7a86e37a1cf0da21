"""What losses need of the vocabulary, from hidden states: log-probabilities, entropies, the likeliest ids."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from sdistill.distributed.rules import BATCH, IDS
from sdistill.model.chunks import PlacesOf, read_by_chunks, total

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
        functools.partial(_read_summary, top_k),
        _summary_gradient,
        chunk_size,
        hidden_BTD,
        head_DV,
        (),
        (ids_BT, top_ids_BTK),
        jnp.float32(temperature),
    )


def summary_of_logits(
    top_k: int,
    logits: Float[Array, "b t V"],
    slices: tuple[Array, Array | None],
    temperature: Float[Array, ""],
) -> tuple[Summary, Float[Array, "b t"]]:
    """What `summarise` reads from logits, and for its backward pass the largest of them."""
    chosen_ids, top_ids = slices
    if top_ids is None:
        top_ids = top_ids_of(logits, top_k) if top_k else jnp.zeros((*chosen_ids.shape, 0), jnp.int32)
    peak = jnp.max(logits, axis=-1)
    top = (take(logits, top_ids) - peak[..., None]) / temperature
    chosen = (take(logits, chosen_ids[..., None])[..., 0] - peak) / temperature
    logits = put(logits, top_ids, NOTHING)
    rest_peak = jnp.max(logits, axis=-1, keepdims=True)
    log_share = (logits - rest_peak) / temperature
    share = jnp.exp(log_share)
    sum_of_shares, moment = total(share), total(log_share * share)
    rest_peak = (rest_peak[..., 0] - peak) / temperature
    rest = rest_peak + jnp.log(sum_of_shares)

    normaliser = jax.nn.logsumexp(jnp.concatenate([top, rest[..., None]], axis=-1), axis=-1)
    log_top = top - normaliser[..., None]
    rest_mean = moment / sum_of_shares + rest_peak - normaliser
    entropy = -total(jnp.exp(log_top) * log_top) - jnp.exp(rest - normaliser) * rest_mean
    return Summary(top, rest, chosen, entropy, top_ids), peak


def _read_summary(
    top_k: int,
    logits: tuple[Float[Array, "b t V"]],
    slices: tuple[Array, Array | None],
    temperature: Float[Array, ""],
) -> tuple[Summary, Float[Array, "b t"]]:
    return summary_of_logits(top_k, *logits, slices, temperature)


def _summary_gradient(
    logits: tuple[Float[Array, "b t v"]],
    slices: tuple[Array, Array | None],
    temperature: Float[Array, ""],
    found: tuple[Summary, Float[Array, "b t"]],
    gradient: Summary,
    places_of: PlacesOf,
) -> Float[Array, "b t v"]:
    """The gradient of `rest` is spread over the other ids as their probabilities among themselves."""
    summary, peak = found
    top, of_rest, chosen = (x / temperature for x in (gradient.top_BTK, gradient.rest_BT, gradient.chosen_BT))
    log_share = (logits[0] - peak[..., None]) / temperature - summary.rest_BT[..., None]
    share = jnp.exp(jnp.minimum(log_share, 0.0))  # meaningless at the K ids, where it is overwritten
    logits_gradient = put(of_rest[..., None] * share, places_of(summary.ids_BTK), top)
    return add(logits_gradient, places_of(slices[0])[..., None], chosen[..., None])


def take(x: Float[Array, "b t V"], ids: Int[Array, "b t K"]) -> Float[Array, "b t K"]:
    """The values at the ids of each position."""
    return jnp.take_along_axis(x, ids, axis=-1)


def put(
    x: Float[Array, "b t V"], ids: Int[Array, "b t K"], values: float | Float[Array, "b t K"]
) -> Float[Array, "b t V"]:
    """`x` with the values at the ids of each position replaced; ids of V and above count for nothing."""
    values = jnp.broadcast_to(values, ids.shape)
    return jax.vmap(jax.vmap(lambda x, i, y: x.at[i].set(y, mode="drop")))(x, ids, values)


def add(
    x: Float[Array, "b t V"], ids: Int[Array, "b t K"], values: Float[Array, "b t K"]
) -> Float[Array, "b t V"]:
    """`x` with the values added at the ids of each position; ids of V and above count for nothing."""
    return jax.vmap(jax.vmap(lambda x, i, y: x.at[i].add(y, mode="drop")))(x, ids, values)


def top_ids_of(logits: Float[Array, "b t V"], top_k: int) -> Int[Array, "b t K"]:
    """Ids of the K largest logits, largest first, of equals the lowest id first.

    XLA would gather sharded logits on every device to sort them. Here each device takes the largest of its
    own part of the vocabulary, and those are merged. Where no mesh is set, XLA has to say what the parts are,
    which the compiler for TPU cannot do.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _top_ids_as_laid_out(logits, top_k)
    rows, ids = (_that_divide(mesh, *pair) for pair in ((BATCH[0], len(logits)), (IDS, logits.shape[-1])))
    own = functools.partial(_merged_top_ids, top_k, ids)
    whole, parts = PartitionSpec(rows, None, None), PartitionSpec(rows, None, ids)
    return jax.shard_map(own, in_specs=parts, out_specs=whole, check_vma=False)(logits)


def _that_divide(mesh: AbstractMesh, axes: tuple[str, ...], size: int) -> tuple[str, ...] | None:
    """The axes of the mesh, if they can split so many; None if not."""
    return None if size % math.prod(mesh.shape[axis] for axis in axes) else axes


def _merged_top_ids(top_k: int, axes: Any, logits: Float[Array, "b t v"]) -> Int[Array, "b t K"]:
    """The ids of all devices along the axes, from the logits of each."""
    values, ids = _top(logits, min(top_k, logits.shape[-1]))
    if axes is None:
        return ids
    ids += jax.lax.axis_index(axes) * logits.shape[-1]
    values, ids = (jax.lax.all_gather(x, axes, axis=x.ndim - 1, tiled=True) for x in (values, ids))
    return jnp.take_along_axis(ids, jax.lax.top_k(values, top_k)[1], axis=-1)


@functools.partial(custom_partitioning, static_argnums=(1,))
def _top_ids_as_laid_out(logits: Float[Array, "b t V"], top_k: int) -> Int[Array, "b t K"]:
    """The ids, on the parts that XLA finds the logits in."""
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
    """How the ids are found on parts; see `jax.experimental.custom_partitioning`."""
    logits = arguments[0]
    *rows, vocabulary = [*logits.sharding.spec, *[None] * len(logits.shape)][: len(logits.shape)]
    local = functools.partial(_merged_top_ids, top_k, vocabulary)
    whole, parts = PartitionSpec(*rows, None), PartitionSpec(*rows, vocabulary)
    return mesh, local, NamedSharding(mesh, whole), (NamedSharding(mesh, parts),)


_top_ids_as_laid_out.def_partition(partition=_partition_top, sharding_rule="... v -> ... k")
