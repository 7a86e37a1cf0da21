"""The sampling engine: prompts are prefilled once, forked to their samples, and decoded together.

The engine knows token ids only. The random stream of a response is a function of (seed, step, problem,
sample, position), never of which rows it was decoded with.
"""

import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt32

from sdistill.config import ConfigError
from sdistill.models.attention import Places
from sdistill.models.config import ModelConfig
from sdistill.models.decoder import Cache, bind, empty_cache, unroll
from sdistill.parallel.rules import SAMPLING, parameter_shardings, place_batch
from sdistill.rollout.sampling import Sampling, SamplingArrays, draw


class Request(NamedTuple):
    """One prompt to sample from.

    Attributes:
      prompt: Token ids.
      problem: Name of the random stream, usually the problem's id.
      first_sample: Number of the first sample; a prompt that occurs twice in a batch goes on counting.
    """

    prompt: Sequence[int]
    problem: str
    first_sample: int = 0


class Rollouts(NamedTuple):
    """Responses, in the order of the requests, the samples of a request next to each other.

    Attributes:
      ids: Response tokens, the end token included; 0 after the end.
      lengths: Number of response tokens.
      finished: Whether the response ended by itself (else it was cut at the limit).
      log_probs: Log-probability of each token under the distribution it was drawn from; 0 after the end.
      full_log_probs: The same without top-k and top-p; 0 after the end.
    """

    ids: Int[np.ndarray, "N T"]
    lengths: Int[np.ndarray, " N"]
    finished: Bool[np.ndarray, " N"]
    log_probs: Float[np.ndarray, "N T"]
    full_log_probs: Float[np.ndarray, "N T"]


class _Decoding(NamedTuple):
    """The loop's carry."""

    step: Int[Array, ""]
    logits_BV: Float[Array, "B V"]
    cache: Cache
    live_B: Bool[Array, " B"]
    ids_BT: Int[Array, "B T"]
    log_probs_BT: Float[Array, "B T"]
    full_log_probs_BT: Float[Array, "B T"]
    lengths_B: Int[Array, " B"]


def decode(
    params: nnx.State,
    prompts_QP: Int[Array, "Q P"],
    prompt_lengths_Q: Int[Array, " Q"],
    streams_B: UInt32[Array, " B"],
    samples_B: Int[Array, " B"],
    live_B: Bool[Array, " B"],
    seed_and_step: tuple[Int[Array, ""], Int[Array, ""]],
    settings: SamplingArrays,
    *,
    config: ModelConfig,
    response_length: int,
    eos_id: int,
) -> tuple[Array, Array, Array, Array, Array]:
    """Samples B / Q responses to each of Q right-padded prompts, until all ended or T tokens.

    Prompt tokens stay in cache columns [0, P), response token t goes to column P + t of every row; the
    columns between a short prompt and P stay empty. Rows that are not live on entry are fillers.

    Returns: ids, lengths, finished, log-probabilities and full log-probabilities of `Rollouts`.
    """
    model = bind(config, params)
    head_DV = model.head()
    queries, prompt_columns = prompts_QP.shape
    batch = live_B.shape[0]

    positions_QP = jnp.broadcast_to(jnp.arange(prompt_columns), prompts_QP.shape)
    filled_QP = positions_QP < prompt_lengths_Q[:, None]
    places = Places(positions_QP, filled_QP.astype(jnp.int32))
    hidden_QPD, cache = model.extend(prompts_QP, places, empty_cache(config, queries, prompt_columns), 0)
    last_QD = jnp.take_along_axis(hidden_QPD, prompt_lengths_Q[:, None, None] - 1, axis=1)[:, 0]

    def fork(x: jax.Array) -> jax.Array:
        return jnp.repeat(x, batch // queries, axis=0)

    def with_room(buffer: jax.Array) -> jax.Array:
        return jnp.pad(fork(buffer), [(0, 0), (0, response_length)] + [(0, 0)] * (buffer.ndim - 2))

    lengths_B = fork(prompt_lengths_Q)
    seed, step = seed_and_step
    step_key = jax.random.fold_in(jax.random.key(seed), step)
    keys_B = jax.vmap(
        lambda problem, sample: jax.random.fold_in(jax.random.fold_in(step_key, problem), sample)
    )(streams_B, samples_B)

    def body(carry: _Decoding) -> _Decoding:
        t = carry.step
        drawn = draw(carry.logits_BV, jax.vmap(lambda key: jax.random.fold_in(key, t))(keys_B), settings)
        live_B = carry.live_B
        ids_B = jnp.where(live_B, drawn.ids_B, 0).astype(jnp.int32)
        place = Places((lengths_B + t)[:, None], jnp.ones_like(ids_B)[:, None])
        hidden_B1D, cache = model.extend(ids_B[:, None], place, carry.cache, prompt_columns + t)
        return _Decoding(
            t + 1,
            hidden_B1D[:, 0] @ head_DV,
            cache,
            live_B & (ids_B != eos_id),
            carry.ids_BT.at[:, t].set(ids_B),
            carry.log_probs_BT.at[:, t].set(jnp.where(live_B, drawn.log_prob_B, 0.0)),
            carry.full_log_probs_BT.at[:, t].set(jnp.where(live_B, drawn.full_log_prob_B, 0.0)),
            carry.lengths_B + live_B,
        )

    shape = (batch, response_length)
    start = _Decoding(
        jnp.zeros((), jnp.int32),
        fork(last_QD @ head_DV),
        jax.tree.map(with_room, cache),
        live_B,
        jnp.zeros(shape, jnp.int32),
        jnp.zeros(shape),
        jnp.zeros(shape),
        jnp.zeros(batch, jnp.int32),
    )
    end = jax.lax.while_loop(lambda c: (c.step < response_length) & jnp.any(c.live_B), body, start)
    return end.ids_BT, end.lengths_B, ~end.live_B, end.log_probs_BT, end.full_log_probs_BT


@functools.cache
def _compiled(config: ModelConfig, response_length: int, eos_id: int) -> Callable[..., tuple[Array, ...]]:
    return jax.jit(functools.partial(decode, config=config, response_length=response_length, eos_id=eos_id))


def _for_sampling(params: nnx.State, mesh: Mesh) -> nnx.State:
    """The parameters laid out for decoding: layers one by one, no axis that needs gathering a token."""
    shardings = parameter_shardings(jax.eval_shape(unroll, params), mesh, SAMPLING)
    return _compiled_unroll(tuple(jax.tree.leaves(shardings)), jax.tree.structure(shardings))(params)


@functools.cache
def _compiled_unroll(shardings: tuple[Any, ...], structure: Any) -> Callable[[nnx.State], nnx.State]:
    return jax.jit(unroll, out_shardings=jax.tree.unflatten(structure, shardings))


class Engine:
    """Samples responses with one compiled program, whatever the prompts and sampling settings are."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        mesh: Mesh,
        eos_id: int,
        slots: int,
        max_prompt: int,
        max_response: int,
    ):
        """An engine that decodes `slots` responses at a time.

        Args:
          config: The model whose parameters `generate` will be given.
          mesh: Where they live; rows are split over its data and fsdp axes.
          eos_id: Token that ends a response.
          slots: Rows decoded together.
          max_prompt: Longest prompt, in tokens.
          max_response: Tokens after which a response is cut.

        Raises:
          ConfigError: if a sequence could outgrow the model's positions.
        """
        if max_prompt + max_response > config.max_position_embeddings:
            raise ConfigError(
                f"max_prompt={max_prompt} + max_response={max_response} exceeds the model's "
                f"max_position_embeddings={config.max_position_embeddings}; lower one of them"
            )
        self.config, self.mesh, self.eos_id = config, mesh, eos_id
        self.slots, self.max_prompt, self.max_response = slots, max_prompt, max_response

    def generate(
        self,
        params: nnx.State,
        requests: Sequence[Request],
        *,
        samples: int,
        seed: int,
        step: int,
        sampling: Sampling,
        progress: Callable[[int], None] | None = None,
    ) -> Rollouts:
        """Samples `samples` responses to each request.

        Args:
          params: The model's parameters, in any layout; they are resharded for sampling once.
          requests: The prompts.
          samples: Responses a prompt; at most `slots`.
          seed: Seed of all random streams.
          step: Training step, which every random stream also depends on.
          sampling: How tokens are drawn.
          progress: Called with the number of responses after each batch of them.

        Raises:
          ValueError: for an empty or too long prompt, no prompt, `samples` outside 1..slots, or slots that do
            not divide over the mesh.
        """
        if not 0 < samples <= self.slots:
            raise ValueError(f"samples={samples} must be 1 to slots={self.slots}")
        if not requests:
            raise ValueError("no requests: nothing to sample from")
        for request in requests:
            if not 0 < len(request.prompt) <= self.max_prompt:
                raise ValueError(
                    f"prompt of {request.problem!r} has {len(request.prompt)} tokens; it must have 1 to "
                    f"max_prompt={self.max_prompt}"
                )
        params = _for_sampling(params, self.mesh)
        settings = sampling.arrays(self.config.vocab_size)
        ways = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        at_a_time = min(self.slots // samples, -(-len(requests) // ways) * ways)
        if at_a_time % ways:
            raise ValueError(
                f"slots={self.slots} hold {at_a_time} prompts of {samples} samples, which do not divide "
                f"over data × fsdp = {ways}; make slots a multiple of samples × {ways}"
            )
        batches = []
        for start in range(0, len(requests), at_a_time):
            batch = requests[start : start + at_a_time]
            outputs = self._decode(params, batch, at_a_time, samples, (seed, step), settings)
            batches.append([np.asarray(x)[: len(batch) * samples] for x in outputs])
            if progress:
                progress(len(batch) * samples)
        return Rollouts(*(np.concatenate(parts) for parts in zip(*batches, strict=True)))

    def _decode(
        self,
        params: nnx.State,
        requests: Sequence[Request],
        at_a_time: int,
        samples: int,
        seed_and_step: tuple[int, int],
        settings: SamplingArrays,
    ) -> tuple[Array, ...]:
        """Decodes up to `at_a_time` requests; absent ones are fillers that never live."""
        prompts = np.zeros((at_a_time, self.max_prompt), np.int32)
        lengths = np.ones(at_a_time, np.int32)
        streams = np.zeros((at_a_time, samples), np.uint32)
        numbers = np.zeros((at_a_time, samples), np.int32)
        for row, request in enumerate(requests):
            prompts[row, : len(request.prompt)] = request.prompt
            lengths[row] = len(request.prompt)
            streams[row] = zlib.crc32(request.problem.encode())
            numbers[row] = request.first_sample + np.arange(samples)
        live = np.repeat(np.arange(at_a_time) < len(requests), samples)
        rows = (prompts, lengths, streams.ravel(), numbers.ravel(), live)
        run = _compiled(self.config, self.max_response, self.eos_id)
        seed, step = (np.int32(x) for x in seed_and_step)
        return run(params, *place_batch(rows, self.mesh), (seed, step), settings)
