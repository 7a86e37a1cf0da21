"""The engine's device programs: pure functions of the slots' state.

A slot holds one row that is being decoded. The row's latest token (at first the last token of its prompt) is
not in the cache yet: every step puts it there and draws the next one. So the first token of a response needs
no program of its own, and prompts are prefilled without logits.
"""

import functools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt32

from sdistill.distributed.rules import BATCH
from sdistill.engine.model import CachedDecoder
from sdistill.engine.sampling import SamplingArrays, draw
from sdistill.engine.types import Finish

ROUND_STEPS = 16  # enough to make the host's part small, few enough that ended rows do not wait long


class RowState(NamedTuple):
    """Everything about B rows but their caches.

    Attributes:
      lengths: Number of tokens in the cache.
      last: The token after those: the latest one, and the input of the next step.
      drawn: Number of response tokens drawn so far.
      limits: Maximum of `drawn`.
      active: Whether the row is being decoded; inactive rows are computed but ignored.
      problems: Hash of the problem's name, for the random stream.
      samples: Index of the sample, likewise.
      sampling: How tokens are drawn.
    """

    lengths: Int[Array | np.ndarray, " B"]
    last: Int[Array | np.ndarray, " B"]
    drawn: Int[Array | np.ndarray, " B"]
    limits: Int[Array | np.ndarray, " B"]
    active: Bool[Array | np.ndarray, " B"]
    problems: UInt32[Array | np.ndarray, " B"]
    samples: Int[Array | np.ndarray, " B"]
    sampling: SamplingArrays


class Slots(NamedTuple):
    """The rows being decoded, on the device. The cache holds the first `rows.lengths` tokens of each."""

    cache: Any
    rows: RowState


class Decoded(NamedTuple):
    """Tokens that a round of at most K steps drew.

    Attributes:
      ids_KB: Tokens; this and the log-probabilities are as in `Completions`.
      counts_B: Number of tokens of each row; what comes after them has no meaning.
      finish_B: Why the row ended: a `Finish`.
    """

    ids_KB: Int[Array, "K B"]
    log_probs_KB: Float[Array, "K B"]
    full_log_probs_KB: Float[Array, "K B"]
    counts_B: Int[Array, " B"]
    finish_B: Int[Array, " B"]
    steps: Int[Array, ""]


def empty_slots(model: CachedDecoder, count: int, columns: int) -> Slots:
    """Inactive slots."""
    ints, floats = jnp.zeros(count, jnp.int32), jnp.zeros(count)
    sampling = SamplingArrays(floats, ints, floats, floats)
    rows = RowState(ints, ints, ints, ints, ints.astype(bool), ints.astype(jnp.uint32), ints, sampling)
    return Slots(model.empty_cache(count, columns), rows)


def admit(
    slots: Slots,
    prefix: Any,
    new_R: RowState,
    slots_R: Int[Array, " R"],
    prefix_R: Int[Array, " R"],
    *,
    model: CachedDecoder,
) -> Slots:
    """Starts R responses.

    Args:
      prefix: The cache of prefilled prompts, with P columns.
      new_R: The responses.
      slots_R: The slot of each. An index beyond the last slot marks a filler, which is dropped.
      prefix_R: The row of its prompt in `prefix`.
    """

    def copy_prompts(x: jax.Array, prompts: jax.Array, axis: int) -> jax.Array:
        """Writes rows of `prompts` over the first P columns, which are on this axis."""
        at = (slots_R, *[slice(None)] * (axis - 1), slice(0, prompts.shape[axis]))
        return x.at[at].set(prompts[prefix_R].astype(x.dtype), mode="drop")

    return Slots(
        jax.tree.map(copy_prompts, slots.cache, prefix, model.column_axes(prefix)),
        jax.tree.map(lambda x, new: x.at[slots_R].set(new, mode="drop"), slots.rows, new_R),
    )


def decode(
    params: Any,
    slots: Slots,
    free_B: Bool[Array, " B"],
    max_ended: Int[Array, ""],
    seed_and_step: Int[Array, " 2"],
    stop_ids_E: Int[Array, " E"],
    forbidden_V: Bool[Array, " V"],
    *,
    model: CachedDecoder,
    steps: int,
) -> tuple[Slots, Decoded]:
    """Draws up to K = `steps` tokens for every active row.

    Args:
      params: As `CachedDecoder.for_sampling` returns them.
      free_B: Slots that no response is in; the host may have ended what was.
      max_ended: The round is over once this many rows have ended in it, so that others can have their slots.
      seed_and_step: What all random streams depend on.
      stop_ids_E: Tokens that end a response; they belong to it.
      forbidden_V: Tokens that are never drawn.
      steps: K.
    """
    # Each response has a random key of its own, whatever its slot.
    seed, step = seed_and_step
    fold = jax.random.fold_in
    step_key = fold(jax.random.key(seed), step)
    key_of = jax.vmap(lambda problem, sample: fold(fold(step_key, problem), sample))
    response_keys_B = key_of(slots.rows.problems, slots.rows.samples)

    count = len(free_B)
    rows = slots.rows._replace(active=slots.rows.active & ~free_B)
    nothing = Decoded(
        ids_KB=jnp.zeros((steps, count), jnp.int32),
        log_probs_KB=jnp.zeros((steps, count)),
        full_log_probs_KB=jnp.zeros((steps, count)),
        counts_B=jnp.zeros(count, jnp.int32),
        finish_B=jnp.zeros(count, jnp.int32),
        steps=jnp.zeros((), jnp.int32),
    )

    def round_goes_on(carry: Any) -> jax.Array:
        slots, decoded = carry
        ended = jnp.sum(decoded.finish_B > 0)
        return (decoded.steps < steps) & jnp.any(slots.rows.active) & (ended < max_ended)

    def one_step(carry: Any) -> tuple[Slots, Decoded]:
        (cache, rows), decoded = carry

        # The latest tokens join the cache, and a key for each row and position draws the next ones.
        logits_BV, cache = model.decode(params, rows.last, cache, rows.lengths)
        keys_B = jax.vmap(fold)(response_keys_B, rows.drawn)
        drawn = draw(logits_BV, keys_B, rows.sampling, forbidden_V)

        # Which rows have drawn a token, and which have ended.
        is_token_B = rows.active & drawn.finite_B
        drawn_B = rows.drawn + is_token_B
        at_stop_B = jnp.any(drawn.ids_B[:, None] == stop_ids_E, axis=1)
        at_limit_B = drawn_B >= rows.limits
        finish_B = jnp.select(
            [~rows.active, ~drawn.finite_B, at_stop_B, at_limit_B],
            [Finish.NONE, Finish.ERROR, Finish.STOP, Finish.LENGTH],
            Finish.NONE,
        )

        rows = rows._replace(
            lengths=rows.lengths + is_token_B,
            last=jnp.where(is_token_B, drawn.ids_B, rows.last),
            drawn=drawn_B,
            active=rows.active & (finish_B == Finish.NONE),
        )
        k = decoded.steps
        return Slots(cache, rows), Decoded(
            ids_KB=decoded.ids_KB.at[k].set(drawn.ids_B),
            log_probs_KB=decoded.log_probs_KB.at[k].set(drawn.log_prob_B),
            full_log_probs_KB=decoded.full_log_probs_KB.at[k].set(drawn.full_log_prob_B),
            counts_B=decoded.counts_B + is_token_B,
            finish_B=jnp.maximum(decoded.finish_B, finish_B),
            steps=k + 1,
        )

    return jax.lax.while_loop(round_goes_on, one_step, (Slots(slots.cache, rows), nothing))


def resize_columns(x: Shaped[Array, "..."], columns: int, axis: int) -> Shaped[Array, "..."]:
    """Pads or cuts one array of a cache to this number of columns."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, max(0, columns - x.shape[axis]))
    return jax.lax.slice_in_dim(jnp.pad(x, padding), 0, columns, axis=axis)


def clear_errors(slots: Slots) -> Slots:
    """Sets what is not finite in the cache to 0.

    A row does not attend to what its slot held before, but multiplies it by a probability of 0.
    """
    return slots._replace(cache=jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, 0), slots.cache))


class Programs:
    """The jitted programs for one model on one mesh.

    They compile once for each of the few sizes in a `engine.Plan`; everything else is an array input.
    """

    def __init__(self, model: CachedDecoder, mesh: Mesh):
        cache_spec = model.cache_spec()
        rows, replicated = NamedSharding(mesh, BATCH), NamedSharding(mesh, PartitionSpec())
        prefix = NamedSharding(mesh, PartitionSpec(None, *cache_spec[1:]))  # any slot may need any prompt
        cache = NamedSharding(mesh, cache_spec)
        slots = Slots(cache, rows)  # type: ignore[arg-type]

        def reshard(params: Any) -> Any:
            """Parameters as the other programs take them, in the layout for sampling."""
            params = model.for_sampling(params)
            return jax.lax.with_sharding_constraint(params, model.shardings(params, mesh))

        def prefill(params: Any, tokens_QP: jax.Array, lengths_Q: jax.Array, columns: int) -> Any:
            """The cache of Q prompts, with this number of columns."""
            tokens_QP, lengths_Q = jax.lax.with_sharding_constraint((tokens_QP, lengths_Q), rows)
            cache = model.prefill(params, tokens_QP, lengths_Q)
            axes = model.column_axes(cache)
            return jax.tree.map(lambda x, axis: resize_columns(x, columns, axis), cache, axes)

        def select_rows(slots: Slots, rows_R: jax.Array) -> Slots:
            return jax.tree.map(lambda x: x[rows_R], slots)

        self.reshard = jax.jit(reshard)
        self.prefill = jax.jit(prefill, static_argnames="columns", out_shardings=prefix)
        # The slots are donated: there is no memory for two caches.
        self.admit = jax.jit(partial(admit, model=model), donate_argnums=0, out_shardings=slots)
        one_round = partial(decode, model=model, steps=ROUND_STEPS)
        self.decode = jax.jit(one_round, donate_argnums=1, out_shardings=(slots, replicated))
        self.clear_errors = jax.jit(clear_errors, donate_argnums=0, out_shardings=slots)
        self.empty_slots = jax.jit(partial(empty_slots, model), static_argnums=(0, 1), out_shardings=slots)
        self.resize_columns = jax.jit(resize_columns, static_argnums=(1, 2), out_shardings=cache)
        self.select_rows = jax.jit(select_rows, out_shardings=slots)
        self.column_axes = model.column_axes


programs_of = functools.cache(Programs)
"""Equal arguments reuse the compiled functions."""
