"""Log-probabilities, entropies and the likeliest ids, from hidden states: what losses need of logits."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float, Int

from sdistill.distributed.rules import BATCH, IDS
from sdistill.model.chunked_vocab import ColumnsOf, reduce_logits, sum_ids

LOG_ZERO = -1e30
"""Stands for log 0. Unlike infinity, its product with zero is finite."""


class TokenScores(NamedTuple):
    """A model's distribution at each position, at one given id.

    Attributes:
      log_prob_BT: Log-probability of the id, in nats.
      entropy_BT: Entropy of the whole next-token distribution, in nats. Has no gradient.
    """

    log_prob_BT: Float[Array, "B T"]
    entropy_BT: Float[Array, "B T"]


class Summary(NamedTuple):
    """A next-token distribution as losses need it: K ids one by one, all others pooled.

    Logits are divided by the temperature and relative to the largest logit of the position, which has no
    gradient. Log-probabilities are differences of logits, so their gradients are right.

    Attributes:
      top_BTK: Logits of the K ids.
      rest_BT: Log-sum-exp of all other logits; about `LOG_ZERO` if there are none.
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
        """Log-probabilities of the K ids, and of all others together."""
        return jax.nn.log_softmax(self._logits(), axis=-1)

    def scores(self) -> TokenScores:
        """Scores of the given id. Its log-probability is differentiable."""
        log_prob_BT = self.chosen_BT - jax.nn.logsumexp(self._logits(), axis=-1)
        return TokenScores(log_prob_BT, jax.lax.stop_gradient(self.entropy_BT))

    def _logits(self) -> Float[Array, "B T K+1"]:
        return jnp.concatenate([self.top_BTK, self.rest_BT[..., None]], axis=-1)


def summarize(
    hidden_BTD: Float[Array, "B T D"],
    head_DV: Float[Array, "D V"],
    ids_BT: Int[Array, "B T"],
    *,
    logits_chunk_size: int,
    temperature: float | Float[Array, ""] = 1.0,
    top_k: int = 0,
    top_ids_BTK: Int[Array, "B T K"] | None = None,
) -> Summary:
    """A summary of the distributions: the given ids, K more, and all others pooled.

    Differentiable in `hidden_BTD` and `head_DV`. The backward pass computes the logits again; the forward
    pass keeps only a few numbers per position.

    Args:
      ids_BT: The given ids.
      logits_chunk_size: Largest number of positions of each row whose logits exist at the same time.
      temperature: Divides the logits. Has no gradient.
      top_k: Selects the model's own K likeliest ids; of equal ones the lowest.
      top_ids_BTK: The K ids, instead of `top_k`.
    """

    def summarize_chunk(logits: tuple[Array], inputs: Any, temperature: Array) -> tuple[Summary, Array]:
        return summary_of_logits(logits[0], inputs[0], inputs[1], temperature, top_k)

    return reduce_logits(
        summarize_chunk,
        _summary_gradient,
        logits_chunk_size,
        ((hidden_BTD, head_DV),),
        (ids_BT, top_ids_BTK),
        jnp.float32(temperature),
    )


def summary_of_logits(
    logits: Float[Array, "b t V"],
    chosen_ids: Int[Array, "b t"],
    top_ids: Int[Array, "b t K"] | None,
    temperature: Float[Array, ""],
    top_k: int = 0,
) -> tuple[Summary, Float[Array, "b t"]]:
    """The summary of a chunk of logits, and as residual for the backward pass the largest of them."""
    if top_ids is None:
        top_ids = top_ids_of(logits, top_k) if top_k else jnp.zeros((*chosen_ids.shape, 0), jnp.int32)
    peak = jnp.max(logits, axis=-1)
    top = (take(logits, top_ids) - peak[..., None]) / temperature
    chosen = (take(logits, chosen_ids[..., None])[..., 0] - peak) / temperature
    logits = put(logits, top_ids, LOG_ZERO)
    rest_peak = jnp.max(logits, axis=-1, keepdims=True)
    log_share = (logits - rest_peak) / temperature
    share = jnp.exp(log_share)
    sum_of_shares, moment = sum_ids(share), sum_ids(log_share * share)
    rest_peak = (rest_peak[..., 0] - peak) / temperature
    rest = rest_peak + jnp.log(sum_of_shares)

    normaliser = jax.nn.logsumexp(jnp.concatenate([top, rest[..., None]], axis=-1), axis=-1)
    log_top = top - normaliser[..., None]
    rest_mean = moment / sum_of_shares + rest_peak - normaliser
    entropy = -sum_ids(jnp.exp(log_top) * log_top) - jnp.exp(rest - normaliser) * rest_mean
    return Summary(top, rest, chosen, entropy, top_ids), peak


def _summary_gradient(
    logits: tuple[Float[Array, "b t v"]],
    inputs: tuple[Array, Array | None],
    temperature: Float[Array, ""],
    found: tuple[Summary, Float[Array, "b t"]],
    gradient: Summary,
    columns_of: ColumnsOf,
) -> Float[Array, "b t v"]:
    """Spreads the gradient of `rest` over the other ids, in proportion to their probabilities."""
    summary, peak = found
    top, of_rest, chosen = (x / temperature for x in (gradient.top_BTK, gradient.rest_BT, gradient.chosen_BT))
    log_share = (logits[0] - peak[..., None]) / temperature - summary.rest_BT[..., None]
    share = jnp.exp(jnp.minimum(log_share, 0.0))  # the K ids are overwritten
    logits_gradient = put(of_rest[..., None] * share, columns_of(summary.ids_BTK), top)
    return add(logits_gradient, columns_of(inputs[0])[..., None], chosen[..., None])


def take(x: Float[Array, "b t V"], ids: Int[Array, "b t K"]) -> Float[Array, "b t K"]:
    """The values at the ids of each position."""
    return jnp.take_along_axis(x, ids, axis=-1)


def put(
    x: Float[Array, "b t V"], ids: Int[Array, "b t K"], values: float | Float[Array, "b t K"]
) -> Float[Array, "b t V"]:
    """`x` with the values at the ids of each position replaced; ids of V and above are ignored."""
    values = jnp.broadcast_to(values, ids.shape)
    return jax.vmap(jax.vmap(lambda x, i, y: x.at[i].set(y, mode="drop")))(x, ids, values)


def add(
    x: Float[Array, "b t V"], ids: Int[Array, "b t K"], values: Float[Array, "b t K"]
) -> Float[Array, "b t V"]:
    """`x` with the values added at the ids of each position; ids of V and above are ignored."""
    return jax.vmap(jax.vmap(lambda x, i, y: x.at[i].add(y, mode="drop")))(x, ids, values)


def top_ids_of(logits: Float[Array, "b t V"], top_k: int) -> Int[Array, "b t K"]:
    """Ids of the K largest logits, largest first, of equals the lowest id first.

    To sort sharded logits, XLA would gather them on every device. So under a mesh each device takes the
    largest of its own part of the vocabulary, and those are merged.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _top(logits, top_k)[1]
    rows, ids = _axes_or_none(mesh, BATCH[0], len(logits)), _axes_or_none(mesh, IDS, logits.shape[-1])

    def merged(logits: Float[Array, "b t v"]) -> Int[Array, "b t K"]:
        values, local_ids = _top(logits, min(top_k, logits.shape[-1]))
        if ids is None:
            return local_ids
        local_ids += jax.lax.axis_index(ids) * logits.shape[-1]
        values, all_ids = (jax.lax.all_gather(x, ids, axis=2, tiled=True) for x in (values, local_ids))
        return jnp.take_along_axis(all_ids, jax.lax.top_k(values, top_k)[1], axis=-1)

    whole, parts = PartitionSpec(rows, None, None), PartitionSpec(rows, None, ids)
    return jax.shard_map(merged, in_specs=parts, out_specs=whole, check_vma=False)(logits)


def _axes_or_none(mesh: AbstractMesh, axes: tuple[str, ...], size: int) -> tuple[str, ...] | None:
    """The axes, if the mesh splits `size` elements into several equal parts along them; else None."""
    parts = math.prod(mesh.shape[axis] for axis in axes)
    return axes if parts > 1 and size % parts == 0 else None


def _top(x: Float[Array, "b t V"], k: int) -> tuple[Float[Array, "b t K"], Int[Array, "b t K"]]:
    """`jax.lax.top_k` in two rounds, which is several times as fast for a large V.

    The K largest lie in the K blocks with the largest maxima: K elements come before any other block's.
    The blocks stay in order of their ids, and so do equal elements.
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
    values, columns = jax.lax.top_k(candidates.reshape(*x.shape[:-1], k * width), k)
    return values, jnp.take_along_axis(chosen, columns // width, axis=-1) * width + columns % width
