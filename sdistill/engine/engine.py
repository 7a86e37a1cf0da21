"""The sampling engine: a pool of slots that is refilled while the others go on decoding.

Each distinct prompt is prefilled once and copied to the slots of its responses. A round decodes a few
tokens for all slots in one program; then the host records them, gives free slots to the next requests,
and starts the next round. The engine knows token ids only.

The random stream of a response is a function of (seed, step, problem, sample, position): neither of the slot
it was decoded in, nor of the other responses.

With several processes every one calls `generate` with requests of its own. All of them know all requests and
all decoded tokens, so they follow the same schedule without communicating about it.
"""

import itertools
import logging
import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Bool, Int

from sdistill.distributed.mesh import device_memory
from sdistill.distributed.processes import all_gather_rows, first_row
from sdistill.engine.model import SamplingModel
from sdistill.engine.programs import ROUND_STEPS, Decoded, RowState, programs_of
from sdistill.engine.sampling import SamplingArrays
from sdistill.engine.types import Completion, Completions, EngineStats, Finish, Request, StopFunction
from sdistill.settings import require

logger = logging.getLogger(__name__)

REFILL_SHARE = 16  # while requests wait, a round ends early once 1/16 of the slots have ended
PREFILL_TOKENS = 1024  # of one prefill: enough to be bound by arithmetic, few enough for a short pause
MIN_POOL = 4  # minimum pool size while draining

FREE = -1


@dataclass(frozen=True)
class Plan:
    """The few sizes that programs are compiled for.

    Attributes:
      slots: Responses decoded at a time.
      max_prompt: Maximum number of tokens of a prompt.
      row_counts: Sizes of the pool: all slots, and a half and a quarter of them for draining, that is, when
        nothing is waiting and the last responses are being decoded.
      lengths: Of the cache, which is as long as its longest active row needs, so that no more is read.
      prompt_lengths: Columns of a prefill.
      prefill_rows: Prompts of a prefill.
      admit_rows: Responses started by one call of `admit`.
    """

    slots: int
    max_prompt: int
    row_counts: tuple[int, ...]
    lengths: tuple[int, ...]
    prompt_lengths: tuple[int, ...]
    prefill_rows: int
    admit_rows: int

    @classmethod
    def of(cls, slots: int, max_prompt: int, max_response: int, num_shards: int) -> "Plan":
        """Sizes for rows that are split into `num_shards`."""
        fewer = (slots // n // num_shards * num_shards for n in (2, 4))
        lengths = _eighths(max_prompt + max_response, (1, 2, 4, 6, 8))
        prefill_rows = max(1, min(PREFILL_TOKENS // max_prompt, slots))
        return cls(
            slots=slots,
            max_prompt=max_prompt,
            row_counts=(slots, *(rows for rows in fewer if rows >= MIN_POOL)),
            lengths=tuple(n for n in lengths if n >= min(max_prompt + ROUND_STEPS, lengths[-1])),
            prompt_lengths=_eighths(max_prompt, (1, 2, 4, 8)),
            prefill_rows=-(-prefill_rows // num_shards) * num_shards,
            admit_rows=max(1, slots // 8),
        )


def _eighths(whole: int, numerators: Sequence[int]) -> tuple[int, ...]:
    """These eighths of the whole, rounded up to multiples of 64 (vector registers), at most the whole."""
    return tuple(sorted({min(whole, -(-whole * n // (8 * 64)) * 64) for n in numerators}))


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
        self.programs = programs_of(model, mesh)
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
        for request in requests:
            self._check(request)
        forbidden_V = self._forbidden(forbidden)
        with jax.set_mesh(self.mesh):
            before = time.perf_counter()
            params = jax.block_until_ready(self.programs.reshard(params))  # to tell its time from the rest
            reshard_seconds = time.perf_counter() - before
            generation = Generation(self, params, requests, forbidden_V, seed, step)

            def hand_out(indices: Sequence[int]) -> None:
                for index, completion in generation.complete(indices, stop):
                    if on_completion and index in generation.own:
                        on_completion(index - generation.own.start, completion)

            # While a round runs on the device, the host completes what the previous one ended.
            recorded: list[int] = []
            while generation.has_work():
                generation.refill()
                decoded = generation.start_round()
                hand_out(recorded)
                recorded = generation.record(jax.device_get(decoded))
                if progress:
                    progress(generation.stats(reshard_seconds))
            hand_out(recorded)
            if progress:
                progress(generation.stats(reshard_seconds))
        return Completions.of([generation.completions[i] for i in generation.own], self.max_response)

    def warm_up(self, params: Any) -> None:
        """Compiles all that any generation may need; else every program is compiled when first needed."""
        plan = self.plan
        with jax.set_mesh(self.mesh):
            params = self.programs.reshard(params)
            for rows in plan.row_counts:
                generation = Generation(self, params, [Request([0], "")], self._forbidden(()), 0, 0)
                for columns in plan.prompt_lengths:
                    generation.prefill([], columns)
                generation.keep_rows(np.arange(rows))
                for length in (*plan.lengths, *reversed(plan.lengths)):
                    generation.resize(length)
                    if rows == plan.slots:  # a smaller pool is draining: nothing starts in it
                        generation.admit(np.arange(0), [])
                    for fewer in (n for n in plan.row_counts if n < rows):
                        self.programs.select_rows(generation.slots, np.arange(fewer, dtype=np.int32))
                    generation.decode()

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


class Generation:
    """The host's state during one call of `generate`. Requests are known by their index.

    Attributes:
      own: Indices of this process' requests, among those of all processes.
      prompts_NP: The prompts of all requests.
      prompts: The same without padding, as dictionary keys.
      rows_N: The rows of all requests as they start: the prompt but its last token is in the cache.
      slots: The state on the device.
      owner_B: The request that each slot decodes, or `FREE`.
      length_B: Number of tokens in each slot's cache.
      stopped_B: Whether the host has ended the row, of which the device does not know yet.
      waiting: Requests that have no slot yet.
      parts: For each request being decoded, what each round drew.
      completions: Of the requests that have ended.
    """

    def __init__(
        self,
        engine: SlotEngine,
        params: Any,
        requests: Sequence[Request],
        forbidden_V: Bool[np.ndarray, " V"],
        seed: int,
        step: int,
    ):
        self.plan, self.programs, self.params = engine.plan, engine.programs, params
        self.drawing = np.asarray([seed, step], np.int32), engine.stop_ids, forbidden_V

        # Requests as arrays, of all processes, one process after the other.
        prompts_NP = np.zeros((len(requests), engine.max_prompt), np.int32)
        for row, request in zip(prompts_NP, requests, strict=True):
            row[: len(request.prompt)] = request.prompt
        rows_N = RowState(
            lengths=np.asarray([len(r.prompt) - 1 for r in requests], np.int32),
            last=np.asarray([r.prompt[-1] for r in requests], np.int32),
            drawn=np.zeros(len(requests), np.int32),
            limits=np.asarray([r.limit or engine.max_response for r in requests], np.int32),
            active=np.ones(len(requests), bool),
            problems=np.asarray([zlib.crc32(r.problem.encode()) for r in requests], np.uint32),
            samples=np.asarray([r.sample for r in requests], np.int32),
            sampling=SamplingArrays.of([r.sampling for r in requests]),
        )
        first = first_row(len(requests))
        self.own = range(first, first + len(requests))
        self.prompts_NP, self.rows_N = all_gather_rows((prompts_NP, rows_N), len(requests))
        lengths = self.rows_N.lengths + 1
        self.prompts = [p[:n].tobytes() for p, n in zip(self.prompts_NP, lengths, strict=True)]
        self.waiting = range(len(self.prompts))
        require(len(self.waiting) > 0, "no requests: nothing to sample from")

        self.started = time.perf_counter()
        self.parts: dict[int, list[Completion]] = {}
        self.completions: dict[int, Completion] = {}
        self.owner_B = np.full(self.plan.slots, FREE)
        self.length_B = np.zeros(self.plan.slots, int)
        self.stopped_B = np.zeros(self.plan.slots, bool)
        self.cache_length = self.plan.lengths[0]
        self.slots = self.programs.empty_slots(self.plan.slots, self.cache_length)
        self.prefix: Any = None  # the cache of the prompts prefilled last
        self.prefix_rows: dict[bytes, int] = {}  # the row of each of them
        self.tokens = self.steps = self.errors = 0
        self.waited_tokens = self.waited_steps = 0  # those drawn and made while requests were waiting

    def has_work(self) -> bool:
        """Whether any request is waiting or being decoded."""
        return bool(self.waiting) or bool((self.owner_B != FREE).any())

    def refill(self) -> None:
        """Starts the next requests in the free slots, as many at a time as are prefilled."""
        free = np.flatnonzero(self.owner_B == FREE)
        while self.waiting and len(free):
            if self.prompts[self.waiting[0]] not in self.prefix_rows:
                self._prefill_next()
            candidates = self.waiting[: min(len(free), self.plan.admit_rows)]
            indices = list(itertools.takewhile(lambda i: self.prompts[i] in self.prefix_rows, candidates))
            self.admit(free[: len(indices)], indices)
            free, self.waiting = free[len(indices) :], self.waiting[len(indices) :]

    def _prefill_next(self) -> None:
        """Prefills the next distinct prompts of the waiting requests."""
        first: dict[bytes, int] = {}  # the first request of each prompt
        for index in self.waiting:
            if len(first) == self.plan.prefill_rows:
                break
            first.setdefault(self.prompts[index], index)
        indices = list(first.values())
        longest = 1 + int(self.rows_N.lengths[indices].max())
        self.prefill(indices, next(n for n in self.plan.prompt_lengths if n >= longest))
        self.prefix_rows = {prompt: row for row, prompt in enumerate(first)}

    def prefill(self, indices: Sequence[int], columns: int) -> None:
        """Prefills the prompts of these requests, all but their last tokens, padded to `columns`."""
        fillers = (0, self.plan.prefill_rows - len(indices))
        tokens_QP = np.pad(self.prompts_NP[indices, :columns], (fillers, (0, 0)))
        lengths_Q = np.pad(self.rows_N.lengths[indices], fillers)
        self.prefix = None  # frees the previous one
        self.prefix = self.programs.prefill(self.params, tokens_QP, lengths_Q, columns=self.plan.max_prompt)

    def admit(self, slots: Int[np.ndarray, " n"], indices: Sequence[int]) -> None:
        """Starts requests in their slots; the rest of R is filled with request 0 in no slot."""
        fillers = (0, self.plan.admit_rows - len(indices))
        slots_R = np.pad(slots.astype(np.int32), fillers, constant_values=len(self.owner_B))
        prefix = [self.prefix_rows[self.prompts[index]] for index in indices]
        prefix_R = np.pad(np.asarray(prefix, np.int32), fillers)
        index_R = np.pad(np.asarray(indices, int), fillers)
        new_R = jax.tree.map(lambda x: x[index_R], self.rows_N)
        self.slots = self.programs.admit(self.slots, self.prefix, new_R, slots_R, prefix_R)
        self.owner_B[slots], self.stopped_B[slots] = indices, False
        self.length_B[slots] = self.rows_N.lengths[indices]
        self.parts |= {index: [] for index in indices}

    def start_round(self) -> Decoded:
        """Starts decoding, with as few rows and columns as the active rows need. Does not wait for it."""
        active = self.owner_B != FREE
        needed = min(int(self.length_B[active].max()) + ROUND_STEPS, self.plan.lengths[-1])
        if not self.waiting:
            rows = min(n for n in self.plan.row_counts if n >= active.sum())
            self.keep_rows(np.argsort(~active, kind="stable")[:rows])
        self.resize(next(n for n in self.plan.lengths if n >= needed))
        return self.decode()

    def decode(self) -> Decoded:
        """Starts a round."""
        rows = len(self.owner_B)
        max_ended = np.int32(max(1, rows // REFILL_SHARE) if self.waiting else rows)
        self.slots, decoded = self.programs.decode(
            self.params, self.slots, self.stopped_B, max_ended, *self.drawing
        )
        return decoded

    def keep_rows(self, rows: Int[np.ndarray, " R"]) -> None:
        """Shrinks the pool to these rows."""
        if len(rows) < len(self.owner_B):
            self.slots = self.programs.select_rows(self.slots, rows.astype(np.int32))
            self.owner_B, self.length_B = self.owner_B[rows], self.length_B[rows]
            self.stopped_B = self.stopped_B[rows]

    def resize(self, length: int) -> None:
        """Gives the cache another length, one array at a time because two caches would not fit.

        It goes through all lengths in between, so that few such programs are compiled.
        """
        lengths = self.plan.lengths
        while self.cache_length != length:
            step = 1 if length > self.cache_length else -1
            self.cache_length = lengths[lengths.index(self.cache_length) + step]
            axes = jax.tree.leaves(self.programs.column_axes(self.slots.cache))
            arrays, tree = jax.tree.flatten(self.slots.cache)
            self.slots = self.slots._replace(cache=None)  # `arrays` holds the only references
            for i, axis in enumerate(axes):
                arrays[i] = self.programs.resize_columns(arrays[i], self.cache_length, axis)
            self.slots = self.slots._replace(cache=jax.tree.unflatten(tree, arrays))

    def record(self, decoded: Decoded) -> list[int]:
        """Books what a round drew, and frees the slots that ended; returns the requests concerned."""
        indices = []
        waiting = bool(self.waiting)
        for slot in np.flatnonzero(self.owner_B != FREE):
            index, count = int(self.owner_B[slot]), int(decoded.counts_B[slot])
            if index in self.completions:  # the host ended it while this round ran
                self.owner_B[slot], self.stopped_B[slot] = FREE, True
                continue
            part = Completion(
                ids=np.array(decoded.ids_KB[:count, slot]),
                log_probs=np.array(decoded.log_probs_KB[:count, slot]),
                full_log_probs=np.array(decoded.full_log_probs_KB[:count, slot]),
                finish=Finish(int(decoded.finish_B[slot])),
            )
            self.parts[index].append(part)
            indices.append(index)
            self.length_B[slot] += count
            self.tokens += count
            self.waited_tokens += count * waiting
            if part.finish:
                self.owner_B[slot] = FREE
        self.steps += int(decoded.steps)
        self.waited_steps += int(decoded.steps) * waiting
        if (decoded.finish_B == Finish.ERROR).any():
            self.slots = self.programs.clear_errors(self.slots)
        return indices

    def complete(self, indices: Sequence[int], stop: StopFunction | None) -> Iterator[tuple[int, Completion]]:
        """Completes those of the requests that have ended, by themselves or by `stop`, and yields them."""
        for index in indices:
            parts = self.parts[index]
            finish, kept = parts[-1].finish, None
            if stop is not None:
                ids = np.concatenate([part.ids for part in parts]).tolist()
                kept = stop(ids, len(ids) - len(parts[-1].ids))
                finish = finish if kept is None else Finish.STOP
            if finish:
                self.completions[index] = Completion(
                    ids=np.concatenate([part.ids for part in parts])[:kept],
                    log_probs=np.concatenate([part.log_probs for part in parts])[:kept],
                    full_log_probs=np.concatenate([part.full_log_probs for part in parts])[:kept],
                    finish=finish,
                )
                self.errors += finish == Finish.ERROR
                del self.parts[index]
                yield index, self.completions[index]

    def stats(self, reshard_seconds: float) -> EngineStats:
        """What has been done so far."""
        return EngineStats(
            total=len(self.prompts_NP),
            completed=len(self.completions),
            errors=self.errors,
            tokens=self.tokens,
            steps=self.steps,
            occupancy=self.waited_tokens / max(1, self.waited_steps * self.plan.slots),
            seconds=time.perf_counter() - self.started,
            reshard_seconds=reshard_seconds,
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
    size = (
        f"cache: slots={slots} × (max_prompt + max_response = {length}) tokens × {per_token:.0f} bytes "
        f"= {needed / 1e9:.2f} GB a device, which has {limit / 1e9:.2f} GB"
    )
    logger.info(size)
    most = f"slots={int(limit / per_token / length)} fit, or {int(limit / per_token / slots)} tokens"
    require(needed <= limit, f"{size}; at most {most} in as many slots")
