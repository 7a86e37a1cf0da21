"""The sampling engine: a pool of slots that is refilled while the others go on decoding.

Each distinct prompt is prefilled once and copied to the slots of its responses. A round decodes a few
tokens for all slots in one program; then the host records them, gives free slots to the next requests,
and starts the next round. The engine knows token ids only.

The random stream of a response is a function of (seed, step, problem, sample, position): neither of the slot
it was decoded in, nor of the other responses.

With several processes every one calls `generate` with requests of its own. All of them know all requests and
all decoded tokens, so they follow the same schedule without communicating about it.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Bool

from sdistill.distributed.mesh import device_memory
from sdistill.engine.model import SamplingModel
from sdistill.engine.programs import programs_of
from sdistill.engine.schedule import Plan, RequestArrays, Schedule
from sdistill.engine.types import Completion, Completions, EngineStats, Request, StopFunction
from sdistill.settings import require

logger = logging.getLogger(__name__)


class SlotEngine:
    """Samples completions with few compiled programs, whatever the prompts, lengths and settings are."""

    def __init__(
        self,
        model: SamplingModel,
        *,
        mesh: Mesh,
        stop_ids: Sequence[int],
        slots: int,
        max_prompt: int,
        max_response: int,
        memory_limit: int | None = None,
    ):
        """An engine with `slots` rows.

        Args:
          model: The model to sample from.
          mesh: Where its parameters live; rows are split over the data and fsdp axes.
          stop_ids: Tokens that end a response.
          slots: Responses decoded at a time.
          max_prompt: Maximum number of tokens of a prompt.
          max_response: Maximum number of tokens of a response.
          memory_limit: Bytes of a device that the cache may take; None for all that the device has.

        Raises:
          ConfigError: if a row could outgrow the model's positions, slots do not divide over the mesh, or the
            cache cannot fit.
        """
        require(slots > 0, f"slots={slots} must be positive")
        require(
            max_prompt + max_response <= model.max_length,
            f"max_prompt={max_prompt} + max_response={max_response} exceeds the model's "
            f"max_position_embeddings={model.max_length}; lower one of them",
        )
        num_shards = mesh.shape["data"] * mesh.shape["fsdp"]
        require(
            slots % num_shards == 0,
            f"slots={slots} must be a multiple of data × fsdp = {num_shards}; the next one is "
            f"{-(-slots // num_shards) * num_shards}",
        )
        outside = [i for i in stop_ids if not 0 <= i < model.vocab_size]
        require(not outside, f"stop_ids={outside} must be 0 to vocab_size={model.vocab_size} - 1")
        self.model, self.mesh = model, mesh
        self.max_prompt, self.max_response = max_prompt, max_response
        self.stop_ids = np.asarray(stop_ids, np.int32)
        self.plan = Plan.of(slots, max_prompt, max_response, num_shards)
        _check_memory(model, mesh, slots, max_prompt + max_response, memory_limit or device_memory())

    def generate(
        self,
        params: Any,
        requests: Sequence[Request],
        *,
        seed: int,
        step: int,
        forbidden: Sequence[int] = (),
        stop: StopFunction | None = None,
        on_completion: Callable[[int, Completion], None] | None = None,
        progress: Callable[[EngineStats], None] | None = None,
    ) -> Completions:
        """See `Engine.generate`. The parameters are brought into the layout for sampling once."""
        # Check the requests, and gather those of all processes.
        for request in requests:
            self._check(request)
        everyones, own = RequestArrays.gather(requests, self.max_prompt, self.max_response)
        require(len(everyones.prompts_NP) > 0, "no requests: nothing to sample from")
        masks = self.stop_ids, self._forbidden(forbidden)

        with jax.set_mesh(self.mesh):
            # Bring the parameters into the layout for sampling.
            programs = programs_of(self.model, self.mesh)
            before = time.perf_counter()
            params = jax.block_until_ready(programs.reshard(params))  # all that follows needs them at once
            reshard_seconds = time.perf_counter() - before

            schedule = Schedule(self.plan, programs, params, everyones, *masks, (seed, step))

            def hand_out(indices: Sequence[int]) -> None:
                for index, completion in schedule.complete(indices, stop):
                    if on_completion and index in own:
                        on_completion(index - own.start, completion)

            # Decode in rounds. While one runs on the device, the host completes what the last one ended.
            recorded: list[int] = []
            while schedule.has_work():
                schedule.refill()
                decoded = schedule.start_round()
                hand_out(recorded)
                recorded = schedule.record(jax.device_get(decoded))
                if progress:
                    progress(schedule.stats(reshard_seconds))
            hand_out(recorded)
            if progress:
                progress(schedule.stats(reshard_seconds))
        return Completions.of([schedule.completions[i] for i in own], self.max_response)

    def warm_up(self, params: Any) -> None:
        """Compiles all that any generation may need; else every program is compiled when first needed."""
        with jax.set_mesh(self.mesh):
            programs, plan = programs_of(self.model, self.mesh), self.plan
            requests, _ = RequestArrays.gather([Request([0], "")], self.max_prompt, self.max_response)
            params, masks = programs.reshard(params), (self.stop_ids, self._forbidden(()))
            for rows in plan.row_counts:
                schedule = Schedule(plan, programs, params, requests, *masks, (0, 0))
                for columns in plan.prompt_lengths:
                    schedule.prefill([], columns)
                schedule.keep_rows(np.arange(rows))
                for length in (*plan.lengths, *reversed(plan.lengths)):
                    schedule.resize(length)
                    if rows == plan.slots:  # a smaller pool is draining: nothing starts in it
                        schedule.admit(np.arange(0), [])
                    schedule.decode()

    def _forbidden(self, ids: Sequence[int]) -> Bool[np.ndarray, " V"]:
        """The mask of tokens that are never drawn."""
        vocab_size = self.model.vocab_size
        outside = [i for i in ids if not 0 <= i < vocab_size]
        require(not outside, f"forbidden={outside} must be token ids, 0 to vocab_size={vocab_size} - 1")
        mask_V = np.isin(np.arange(vocab_size), ids)
        require(not mask_V.all(), "forbidden: every token is; nothing is left to draw")
        return mask_V

    def _check(self, request: Request) -> None:
        name = f"{request.problem!r}, sample {request.sample}"
        prompt, limit, vocab_size = request.prompt, request.limit, self.model.vocab_size
        require(
            0 < len(prompt) <= self.max_prompt,
            f"prompt of {name} has {len(prompt)} tokens; it must have 1 to max_prompt={self.max_prompt}",
        )
        require(
            0 <= min(prompt) <= max(prompt) < vocab_size,
            f"prompt of {name} has token ids {min(prompt)} to {max(prompt)}; they must be 0 to "
            f"vocab_size={vocab_size} - 1",
        )
        require(
            limit is None or 0 < limit <= self.max_response,
            f"limit={limit} of {name} must be 1 to max_response={self.max_response}",
        )


def _check_memory(model: SamplingModel, mesh: Mesh, slots: int, length: int, limit: int) -> None:
    """Logs how large the cache may become on each device.

    Raises:
      ConfigError: if that is more than the limit.
    """
    sharding = NamedSharding(mesh, model.cache_spec())
    arrays = jax.tree.leaves(jax.eval_shape(lambda: model.empty_cache(slots, length)))
    needed = sum(math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in arrays)
    per_token = needed / (slots * length)
    logger.info(
        f"cache: {slots} slots × {length} tokens × {per_token:.0f} bytes a device = "
        f"{needed / 1e9:.2f} GB of {limit / 1e9:.2f} GB"
    )
    require(
        needed <= limit,
        f"cache: slots={slots} × (max_prompt + max_response = {length}) tokens × {per_token:.0f} bytes "
        f"= {needed / 1e9:.2f} GB a device, which has {limit / 1e9:.2f} GB; at most "
        f"slots={int(limit / per_token / length)} fit, or {int(limit / per_token / slots)} tokens in as "
        "many slots",
    )
