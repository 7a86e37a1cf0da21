"""The engine's programs on the device: pure functions of the slots' state, which tests may call directly.

A slot holds one row that is being decoded. The last token of its prompt, or the last one drawn, is not in
the cache yet: every step puts it there and draws the next one, so that the first token of a response needs
no program of its own, and prompts are prefilled without logits.
"""

import enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt32

from sdistill.engine.model import SamplingModel
from sdistill.engine.sampling import SamplingArrays, draw


class Finish(enum.IntEnum):
    """Why a response ended: by itself, at its limit, or because the model's logits were not numbers."""

    STOP = 1
    LENGTH = 2
    ERROR = 3


class Slots(NamedTuple):
    """The rows being decoded.

    Attributes:
      cache: The model's, with the first `lengths_B` tokens of every row.
      lengths_B: See `cache`.
      next_B: The token after those.
      drawn_B: How many tokens of the response there are, `next_B` included.
      limits_B: How many there may be.
      live_B: Whether the row goes on; others are computed along and mean nothing.
      keys_B: Random key of each response.
      settings: How its tokens are drawn.
    """

    cache: Any
    lengths_B: Int[Array, " B"]
    next_B: Int[Array, " B"]
    drawn_B: Int[Array, " B"]
    limits_B: Int[Array, " B"]
    live_B: Bool[Array, " B"]
    keys_B: UInt32[Array, "B 2"]
    settings: SamplingArrays


class Admission(NamedTuple):
    """Responses that begin.

    Attributes:
      slots_R: The slot of each; a number beyond the slots makes it a filler.
      source_R: The row of its prompt in the prefix.
      lengths_R: Tokens of the prompt but the last.
      last_R: The last token of the prompt.
      problems_R: Which problem, and which sample of it: the names of its random stream.
      samples_R: See `problems_R`.
      limits_R: Tokens after which it is cut.
      settings: How its tokens are drawn.
    """

    slots_R: Int[Array | np.ndarray, " R"]
    source_R: Int[Array | np.ndarray, " R"]
    lengths_R: Int[Array | np.ndarray, " R"]
    last_R: Int[Array | np.ndarray, " R"]
    problems_R: UInt32[Array | np.ndarray, " R"]
    samples_R: Int[Array | np.ndarray, " R"]
    limits_R: Int[Array | np.ndarray, " R"]
    settings: SamplingArrays


class Decoded(NamedTuple):
    """What a round of K steps drew.

    Attributes:
      ids_KB: Tokens, for the steps in which the row was live.
      log_probs_KB: Their log-probability under the distribution they were drawn from.
      full_log_probs_KB: The same without truncation.
      counts_B: Tokens of each row.
      ends_B: Why the row ended: a `Finish`, or 0 if it has not.
      steps: Steps made, at most K.
    """

    ids_KB: Int[Array, "K B"]
    log_probs_KB: Float[Array, "K B"]
    full_log_probs_KB: Float[Array, "K B"]
    counts_B: Int[Array, " B"]
    ends_B: Int[Array, " B"]
    steps: Int[Array, ""]


def empty_slots(model: SamplingModel, rows: int, length: int) -> Slots:
    """Slots in which nothing happens."""
    zeros = jnp.zeros(rows, jnp.int32)
    settings = SamplingArrays(
        *(jnp.zeros(rows, dtype) for dtype in ("float32", "int32", "float32", "float32"))
    )
    return Slots(
        model.empty_cache(rows, length),
        zeros,
        zeros,
        zeros,
        zeros,
        jnp.zeros(rows, bool),
        jnp.zeros((rows, 2), jnp.uint32),
        settings,
    )


def admit(
    slots: Slots, prefix: Any, new: Admission, seed_and_step: Int[Array, " 2"], *, model: SamplingModel
) -> Slots:
    """Slots in which responses have begun, from prefilled prompts."""
    seed, step = seed_and_step
    step_key = jax.random.fold_in(jax.random.key(seed), step)

    def key(problem: Any, sample: Any) -> jax.Array:
        return jax.random.key_data(jax.random.fold_in(jax.random.fold_in(step_key, problem), sample))

    def put(x: jax.Array, values: Any) -> jax.Array:
        return x.at[new.slots_R].set(values, mode="drop")

    def fork(x: jax.Array, of_prompts: jax.Array, axis: int) -> jax.Array:
        columns = slice(0, of_prompts.shape[axis])
        at = (new.slots_R, *[slice(None)] * (axis - 1), columns)
        return x.at[at].set(of_prompts[new.source_R].astype(x.dtype), mode="drop")

    return Slots(
        jax.tree.map(fork, slots.cache, prefix, model.column_axes(prefix)),
        put(slots.lengths_B, new.lengths_R),
        put(slots.next_B, new.last_R),
        put(slots.drawn_B, 0),
        put(slots.limits_B, new.limits_R),
        put(slots.live_B, True),
        put(slots.keys_B, jax.vmap(key)(new.problems_R, new.samples_R)),
        jax.tree.map(put, slots.settings, new.settings),
    )


def decode(
    params: Any,
    slots: Slots,
    stopped_B: Bool[Array, " B"],
    patience: Int[Array, ""],
    stop_ids_E: Int[Array, " E"],
    forbidden_V: Bool[Array, " V"],
    *,
    model: SamplingModel,
    steps: int,
) -> tuple[Slots, Decoded]:
    """Draws up to K = `steps` tokens for every row that is live.

    Args:
      params: As `SamplingModel.for_sampling` gives them.
      slots: The rows.
      stopped_B: Rows that the host has ended since.
      patience: The round is over when so many rows have ended in it: others wait for their slots.
      stop_ids_E: Tokens that end a response; they belong to it.
      forbidden_V: Tokens that are not drawn.
      model: What is decoded.
      steps: K.
    """
    slots = slots._replace(live_B=slots.live_B & ~stopped_B)
    rows = len(stopped_B)
    start = Decoded(
        jnp.zeros((steps, rows), jnp.int32),
        jnp.zeros((steps, rows)),
        jnp.zeros((steps, rows)),
        jnp.zeros(rows, jnp.int32),
        jnp.zeros(rows, jnp.int32),
        jnp.zeros((), jnp.int32),
    )

    def goes_on(carry: tuple[Slots, Decoded]) -> jax.Array:
        slots, decoded = carry
        ended = jnp.sum(decoded.ends_B > 0)
        return (decoded.steps < steps) & jnp.any(slots.live_B) & (ended < patience)

    def body(carry: tuple[Slots, Decoded]) -> tuple[Slots, Decoded]:
        slots, decoded = carry
        logits_BV, cache = model.decode(params, slots.next_B, slots.cache, slots.lengths_B)
        keys_B = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(slots.keys_B), slots.drawn_B)
        drawn = draw(logits_BV, keys_B, slots.settings, forbidden_V)
        is_token_B = slots.live_B & drawn.finite_B
        count_B = slots.drawn_B + is_token_B
        at_stop_B = jnp.any(drawn.ids_B[:, None] == stop_ids_E, axis=1)
        ends_B = jnp.where(at_stop_B, Finish.STOP, jnp.where(count_B >= slots.limits_B, Finish.LENGTH, 0))
        ends_B = jnp.where(slots.live_B, jnp.where(drawn.finite_B, ends_B, Finish.ERROR), 0)
        slots = slots._replace(
            cache=cache,
            lengths_B=slots.lengths_B + is_token_B,
            next_B=jnp.where(is_token_B, drawn.ids_B, slots.next_B),
            drawn_B=count_B,
            live_B=slots.live_B & (ends_B == 0),
        )
        t = decoded.steps
        return slots, Decoded(
            decoded.ids_KB.at[t].set(drawn.ids_B),
            decoded.log_probs_KB.at[t].set(drawn.log_prob_B),
            decoded.full_log_probs_KB.at[t].set(drawn.full_log_prob_B),
            decoded.counts_B + is_token_B,
            jnp.maximum(decoded.ends_B, ends_B),
            t + 1,
        )

    return jax.lax.while_loop(goes_on, body, (slots, start))


def with_columns(x: Shaped[Array, "..."], columns: int, axis: int) -> Shaped[Array, "..."]:
    """An array of a cache with more columns, or with fewer."""
    room = [(0, 0)] * x.ndim
    room[axis] = (0, max(0, columns - x.shape[axis]))
    return jax.lax.slice_in_dim(jnp.pad(x, room), 0, columns, axis=axis)


def without_errors(slots: Slots) -> Slots:
    """The slots with zeros for what is no number in the cache.

    A row does not see what its slot held before, but it multiplies it by a probability of zero.
    """
    return slots._replace(cache=jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, 0), slots.cache))
