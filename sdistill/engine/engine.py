"""The sampling engine: a pool of slots that is refilled while the others go on decoding.

Each distinct prompt is prefilled once and copied to the slots of its responses. A round decodes a few
tokens for all slots in one program; then the host books what came, gives free slots to the next responses,
and starts the next round. The engine knows token ids only.

The random stream of a response is a function of (seed, step, problem, sample, position), never of which slot
it was decoded in, or with which others.

With several processes every one calls `generate` with requests of its own. All of them know all requests and
see all that is decoded, so they follow the same schedule without talking about it.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool

from sdistill.engine.jobs import jobs_of
from sdistill.engine.memory import check_memory
from sdistill.engine.model import SamplingModel
from sdistill.engine.schedule import Plan, Schedule, compiled
from sdistill.engine.types import Completion, Completions, EngineStats, Request, StopFunction
from sdistill.settings import ConfigError, require


class SlotEngine:
    """Samples responses with few compiled programs, whatever the prompts, lengths and settings are."""

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
          model: What is sampled from.
          mesh: Where its parameters live; rows are split over the data and fsdp axes.
          stop_ids: Tokens that end a response.
          slots: Responses decoded at a time.
          max_prompt: Longest prompt, in tokens.
          max_response: Tokens after which a response is cut, at most.
          memory_limit: Bytes of a device that the cache may take; what the device has if not told.

        Raises:
          ConfigError: if a row could outgrow the model's positions, slots do not divide over the mesh, or the
            cache cannot fit.
        """
        require(slots > 0, f"slots={slots} must be positive")
        if max_prompt + max_response > model.max_length:
            raise ConfigError(
                f"max_prompt={max_prompt} + max_response={max_response} exceeds the model's "
                f"max_position_embeddings={model.max_length}; lower one of them"
            )
        ways = mesh.shape["data"] * mesh.shape["fsdp"]
        if slots % ways:
            raise ConfigError(
                f"slots={slots} must be a multiple of data × fsdp = {ways}; the next one is "
                f"{-(-slots // ways) * ways}"
            )
        outside = [i for i in stop_ids if not 0 <= i < model.vocab_size]
        require(not outside, f"stop_ids={outside} must be 0 to vocab_size={model.vocab_size} - 1")
        self.model, self.mesh = model, mesh
        self.max_prompt, self.max_response = max_prompt, max_response
        self.stop_ids = np.asarray(stop_ids, np.int32)
        self.plan = Plan.of(slots, max_prompt, max_response, ways)
        check_memory(model, mesh, slots, self.plan.lengths[-1], memory_limit)

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
        """Samples a response to each request.

        Args:
          params: The model's parameters, in any layout; they are brought into that for sampling once.
          requests: What to sample; of this process, if there are several.
          seed: Seed of all random streams.
          step: Training step, which every random stream also depends on.
          forbidden: Tokens that are never drawn; the same on all processes.
          stop: Ends responses for reasons that ids alone do not show, such as strings.
          on_completion: Called with (index of the request, response) for each as it ends; in any order.
          progress: Called after each round.

        Raises:
          ValueError: for an empty or too long prompt, a token that the model does not have, a limit outside
            1..max_response, if no process has a request, or if every token is forbidden.
        """
        for request in requests:
            self._check(request)
        jobs, own = jobs_of(requests, self.max_prompt, self.max_response)
        if not len(jobs.limits):
            raise ValueError("no requests: nothing to sample from")
        mask = self._mask(forbidden)
        with jax.set_mesh(self.mesh):
            programs = compiled(self.model, self.mesh)
            began = time.perf_counter()
            params = jax.block_until_ready(programs.reshard(params))  # all that follows needs them at once
            run = Schedule(self.plan, programs, params, jobs, self.stop_ids, mask, (seed, step))

            def ended(index: int, response: Completion) -> None:
                if on_completion and own.start <= index < own.stop:
                    on_completion(index - own.start, response)

            run.reshard_seconds = run.began - began
            before: list[int] = []
            while run.goes_on():
                run.refill()
                decoded = run.start_round()
                run.finish(before, stop, ended)  # what the host has to do, while the device decodes
                before = run.book(jax.device_get(decoded))
                if progress:
                    progress(run.usage())
            run.finish(before, stop, ended)
            if progress:
                progress(run.usage())
        return Completions.of([run.responses[i] for i in range(own.start, own.stop)], self.max_response)

    def warm_up(self, params: Any) -> None:
        """Compiles all that any generation may need; else every program is compiled when first needed."""
        with jax.set_mesh(self.mesh):
            programs, plan = compiled(self.model, self.mesh), self.plan
            jobs, _ = jobs_of([Request([0], "nobody")], self.max_prompt, self.max_response)
            params = programs.reshard(params)
            for rows in plan.row_counts:
                schedule = Schedule(plan, programs, params, jobs, self.stop_ids, self._mask(()), (0, 0))
                for columns in plan.prompt_lengths:
                    schedule.prefill([], columns)
                schedule.keep_rows(np.arange(rows))
                for length in (*plan.lengths, *reversed(plan.lengths)):
                    schedule.resize(length)
                    if rows == plan.slots:  # nothing begins later
                        schedule.admit([], [])
                    schedule.decode()

    def _mask(self, forbidden: Sequence[int]) -> Bool[np.ndarray, " V"]:
        """Which tokens are not drawn."""
        outside = [i for i in forbidden if not 0 <= i < self.model.vocab_size]
        if outside:
            raise ValueError(
                f"forbidden={outside} must be token ids, 0 to vocab_size={self.model.vocab_size} - 1"
            )
        mask = np.zeros(self.model.vocab_size, bool)
        mask[list(forbidden)] = True
        if mask.all():
            raise ValueError("forbidden: every token is; nothing is left to draw")
        return mask

    def _check(self, request: Request) -> None:
        name = f"{request.problem!r}, sample {request.sample}"
        if not 0 < len(request.prompt) <= self.max_prompt:
            raise ValueError(
                f"prompt of {name} has {len(request.prompt)} tokens; it must have 1 to "
                f"max_prompt={self.max_prompt}"
            )
        if not 0 <= min(request.prompt) <= max(request.prompt) < self.model.vocab_size:
            raise ValueError(
                f"prompt of {name} has token ids {min(request.prompt)} to {max(request.prompt)}; they must "
                f"be 0 to vocab_size={self.model.vocab_size} - 1"
            )
        if request.limit is not None and not 0 < request.limit <= self.max_response:
            raise ValueError(f"limit={request.limit} of {name} must be 1 to max_response={self.max_response}")
