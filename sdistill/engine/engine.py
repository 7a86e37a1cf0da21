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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Int

from sdistill.distributed.mesh import device_memory
from sdistill.distributed.processes import all_gather_rows
from sdistill.engine.model import CachedDecoder
from sdistill.engine.programs import ROUND_STEPS, Decoded, RowState, programs_of
from sdistill.engine.sampling import SamplingArrays
from sdistill.engine.types import Completions, EngineStats, Finish, Request, StopFunction
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
      row_counts: Sizes of the pool: all slots, and a half and a quarter of them for draining, that is, when
        nothing is waiting and the last responses are being decoded.
      lengths: Of the cache, which is as long as its longest active row needs, so that no more is read.
      prompt_lengths: Columns of a prefill.
      prefill_rows: Prompts of a prefill.
      admit_rows: Responses started by one call of `admit`.
    """

    slots: int
    max_prompt_length: int
    row_counts: tuple[int, ...]
    lengths: tuple[int, ...]
    prompt_lengths: tuple[int, ...]
    prefill_rows: int
    admit_rows: int

    @classmethod
    def of(cls, slots: int, max_prompt_length: int, max_response_length: int, num_shards: int) -> "Plan":
        """Sizes for rows that are split into `num_shards`."""
        fewer = (slots // n // num_shards * num_shards for n in (2, 4))
        lengths = _eighths(max_prompt_length + max_response_length, (1, 2, 4, 6, 8))
        prefill_rows = max(1, min(PREFILL_TOKENS // max_prompt_length, slots))
        return cls(
            slots=slots,
            max_prompt_length=max_prompt_length,
            row_counts=(slots, *(rows for rows in fewer if rows >= MIN_POOL)),
            lengths=tuple(n for n in lengths if n >= min(max_prompt_length + ROUND_STEPS, lengths[-1])),
            prompt_lengths=_eighths(max_prompt_length, (1, 2, 4, 8)),
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
        model: CachedDecoder,
        *,
        mesh: Mesh,
        stop_ids: Sequence[int],
        slots: int,
        max_prompt_length: int,
        max_response_length: int,
    ):
        """An engine with `slots` rows.

        Args:
          mesh: Where its parameters live; rows are split over the data and fsdp axes.
          stop_ids: Tokens that end a response.

        Raises:
          ConfigError: if a row could outgrow the model's positions, slots do not divide over the mesh, or the
            cache cannot fit.
        """
        require(slots > 0, f"slots={slots} must be positive")
        require(
            max_prompt_length + max_response_length <= model.max_length,
            f"max_prompt_length={max_prompt_length} + max_response_length={max_response_length} exceeds the "
            f"model's max_position_embeddings={model.max_length}; lower one of them",
        )
        num_shards = mesh.shape["data"] * mesh.shape["fsdp"]
        require(
            slots % num_shards == 0,
            f"slots={slots} must be a multiple of data × fsdp = {num_shards}; the next one is "
            f"{-(-slots // num_shards) * num_shards}",
        )
        _require_ids("stop_ids", stop_ids, model.vocab_size)
        self.model, self.mesh = model, mesh
        self.max_prompt_length, self.max_response_length = max_prompt_length, max_response_length
        self.stop_ids = np.asarray(stop_ids, np.int32)
        self.programs = programs_of(model, mesh)
        self.plan = Plan.of(slots, max_prompt_length, max_response_length, num_shards)
        _check_memory(model, mesh, slots, max_prompt_length + max_response_length)

    def generate(
        self,
        params: Any,
        requests: Sequence[Request],
        *,
        seed: int,
        step: int,
        forbidden: Sequence[int] = (),
        stop: StopFunction | None = None,
        on_completion: Callable[[int, np.ndarray, Finish], None] | None = None,
        on_round: Callable[[EngineStats], None] | None = None,
    ) -> Completions:
        """Samples a completion of each request.

        Args:
          params: The model's parameters, in any layout.
          requests: What to sample; with several processes, each passes its own.
          seed, step: What all random streams depend on.
          forbidden: Tokens that are never drawn; the same on all processes.
          stop: Ends completions for reasons that single ids do not show, such as strings.
          on_completion: Called with (index of the request, tokens, why it ended) as each ends, in any order.
          on_round: Called after each round of decoding.

        Raises:
          ConfigError: for an empty or too long prompt, a token that the model does not have, a limit outside
            1..max_response_length, if no process has a request, or if every token is forbidden.
        """
        for request in requests:
            self._check(request)
        vocab_size = self.model.vocab_size
        _require_ids("forbidden", forbidden, vocab_size)
        require(len({*forbidden}) < vocab_size, "forbidden: every token is; nothing is left to draw")
        with jax.set_mesh(self.mesh):
            before = time.perf_counter()
            params = jax.block_until_ready(self.programs.reshard(params))  # to tell its time from the rest
            reshard_seconds = time.perf_counter() - before
            generation = Generation(self, params, requests, forbidden, seed, step)
            recorded: list[Recorded] = []
            while generation.waiting or np.any(generation.owner_B != FREE):
                generation.refill()
                decoded = generation.start_round()
                # While the round runs on the device, the host completes what the previous one ended.
                generation.complete(recorded, stop, on_completion)
                recorded = generation.record(jax.device_get(decoded))
                if on_round:
                    on_round(generation.stats(reshard_seconds))
            generation.complete(recorded, stop, on_completion)
            if on_round:
                on_round(generation.stats(reshard_seconds))
        own = generation.own
        return Completions(*(x[own.start : own.stop] for x in generation.completions))

    def warm_up(self, params: Any) -> None:
        """Compiles all that any generation may need; else every program is compiled when first needed."""
        plan = self.plan
        with jax.set_mesh(self.mesh):
            params = self.programs.reshard(params)
            for rows in plan.row_counts:
                generation = Generation(self, params, [Request([0], "")], (), 0, 0)
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

    def _check(self, request: Request) -> None:
        name = f"{request.problem!r}, sample {request.sample}"
        prompt, limit, vocab_size = request.prompt, request.limit, self.model.vocab_size
        require(
            0 < len(prompt) <= self.max_prompt_length,
            f"prompt of {name} has {len(prompt)} tokens; it must have 1 to "
            f"max_prompt_length={self.max_prompt_length}",
        )
        require(
            0 <= min(prompt) <= max(prompt) < vocab_size,
            f"prompt of {name} has token ids {min(prompt)} to {max(prompt)}; they must be 0 to "
            f"vocab_size={vocab_size} - 1",
        )
        require(
            limit is None or 0 < limit <= self.max_response_length,
            f"limit={limit} of {name} must be 1 to max_response_length={self.max_response_length}",
        )


class Recorded(NamedTuple):
    """What a round drew for a request: its tokens from `seen` on, and why the row ended, if it has."""

    request: int
    seen: int
    finish: Finish


class Generation:
    """The host's state during one call of `generate`. Requests are known by their index.

    Attributes:
      own: Indices of this process' requests, among those of all processes.
      prompts_NP: The prompts of all requests.
      prompts: The same without padding, as dictionary keys.
      rows_N: The rows of all requests as they start: the prompt but its last token is in the cache.
      completions: What has been drawn for each request; `finish` is `NONE` until it is complete.
      slots: The state on the device.
      owner_B: The request that each slot decodes, or `FREE`.
      waiting: Requests that have no slot yet.
    """

    def __init__(
        self,
        engine: SlotEngine,
        params: Any,
        requests: Sequence[Request],
        forbidden: Sequence[int],
        seed: int,
        step: int,
    ):
        self.plan, self.programs, self.params = engine.plan, engine.programs, params
        forbidden_V = np.isin(np.arange(engine.model.vocab_size), forbidden)
        self.drawing = np.asarray([seed, step], np.int32), engine.stop_ids, forbidden_V

        # Requests as arrays, of all processes, one process after the other.
        prompts_NP = np.zeros((len(requests), engine.max_prompt_length), np.int32)
        for row, request in zip(prompts_NP, requests, strict=True):
            row[: len(request.prompt)] = request.prompt
        rows_N = RowState(
            lengths=np.asarray([len(r.prompt) - 1 for r in requests], np.int32),
            last=np.asarray([r.prompt[-1] for r in requests], np.int32),
            drawn=np.zeros(len(requests), np.int32),
            limits=np.asarray([r.limit or engine.max_response_length for r in requests], np.int32),
            active=np.ones(len(requests), bool),
            problems=np.asarray([zlib.crc32(r.problem.encode()) for r in requests], np.uint32),
            samples=np.asarray([r.sample for r in requests], np.int32),
            sampling=SamplingArrays.of([r.sampling for r in requests]),
        )
        process_N = np.full(len(requests), jax.process_index(), np.int32)
        gathered = all_gather_rows((prompts_NP, rows_N, process_N), len(requests))
        self.prompts_NP, self.rows_N, process_N = gathered
        first = int(np.searchsorted(process_N, jax.process_index()))
        self.own = range(first, first + len(requests))
        lengths = self.rows_N.lengths + 1
        self.prompts = [p[:n].tobytes() for p, n in zip(self.prompts_NP, lengths, strict=True)]
        self.waiting = range(len(self.prompts))
        require(len(self.waiting) > 0, "no requests: nothing to sample from")

        self.started = time.perf_counter()
        self.completions = Completions.empty(len(self.prompts), engine.max_response_length)
        self.owner_B = np.full(self.plan.slots, FREE)
        self.cache_length = self.plan.lengths[0]
        self.slots = self.programs.empty_slots(self.plan.slots, self.cache_length)
        self.prefix: Any = None  # the cache of the prompts prefilled last
        self.prefix_rows: dict[bytes, int] = {}  # the row of each of them
        self.tokens = self.steps = 0
        self.waited_tokens = self.waited_steps = 0  # those drawn and made while requests were waiting

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
        self.prefix = self.programs.prefill(
            self.params, tokens_QP, lengths_Q, columns=self.plan.max_prompt_length
        )

    def admit(self, slots: Int[np.ndarray, " n"], indices: Sequence[int]) -> None:
        """Starts requests in their slots; the rest of R is filled with request 0 in no slot."""
        fillers = (0, self.plan.admit_rows - len(indices))
        slots_R = np.pad(slots.astype(np.int32), fillers, constant_values=len(self.owner_B))
        prefix = [self.prefix_rows[self.prompts[index]] for index in indices]
        prefix_R = np.pad(np.asarray(prefix, np.int32), fillers)
        index_R = np.pad(np.asarray(indices, int), fillers)
        new_R = jax.tree.map(lambda x: x[index_R], self.rows_N)
        self.slots = self.programs.admit(self.slots, self.prefix, new_R, slots_R, prefix_R)
        self.owner_B[slots] = indices

    def start_round(self) -> Decoded:
        """Starts decoding, with as few rows and columns as the active rows need. Does not wait for it."""
        active = self.owner_B != FREE
        requests = self.owner_B[active]
        longest = int((self.rows_N.lengths[requests] + self.completions.lengths[requests]).max())
        needed = min(longest + ROUND_STEPS, self.plan.lengths[-1])
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
            self.params, self.slots, self.owner_B == FREE, max_ended, *self.drawing
        )
        return decoded

    def keep_rows(self, rows: Int[np.ndarray, " R"]) -> None:
        """Shrinks the pool to these rows."""
        if len(rows) < len(self.owner_B):
            self.slots = self.programs.select_rows(self.slots, rows.astype(np.int32))
            self.owner_B = self.owner_B[rows]

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

    def record(self, decoded: Decoded) -> list[Recorded]:
        """Writes down what a round drew, and frees the slots that ended."""
        found = self.completions
        self.owner_B[found.finish[self.owner_B] != Finish.NONE] = FREE  # the host ended them during the round
        slots = np.flatnonzero(self.owner_B != FREE)
        recorded = []
        for slot, index in zip(slots, self.owner_B[slots].tolist(), strict=True):
            count, seen = int(decoded.counts_B[slot]), int(found.lengths[index])
            drawn = index, slice(seen, seen + count)
            found.ids[drawn] = decoded.ids_KB[:count, slot]
            found.log_probs[drawn] = decoded.log_probs_KB[:count, slot]
            found.full_log_probs[drawn] = decoded.full_log_probs_KB[:count, slot]
            found.lengths[index] += count
            recorded.append(Recorded(index, seen, Finish(int(decoded.finish_B[slot]))))
        tokens, steps = int(decoded.counts_B[slots].sum()), int(decoded.steps)
        self.tokens, self.steps = self.tokens + tokens, self.steps + steps
        if self.waiting:
            self.waited_tokens, self.waited_steps = self.waited_tokens + tokens, self.waited_steps + steps
        self.owner_B[decoded.finish_B != Finish.NONE] = FREE
        if np.any(decoded.finish_B == Finish.ERROR):
            self.slots = self.programs.clear_errors(self.slots)
        return recorded

    def complete(
        self,
        recorded: Sequence[Recorded],
        stop: StopFunction | None,
        on_completion: Callable[[int, np.ndarray, Finish], None] | None,
    ) -> None:
        """Completes those of the requests that have ended, by themselves or by `stop`."""
        found = self.completions
        for index, seen, finish in recorded:
            length = int(found.lengths[index])
            kept = stop(found.ids[index, :length].tolist(), seen) if stop else None
            if kept is not None:
                finish = Finish.STOP
                for x in (found.ids, found.log_probs, found.full_log_probs):
                    x[index, kept:length] = 0
                found.lengths[index] = length = kept
            found.finish[index] = finish
            if finish and on_completion and index in self.own:
                on_completion(index - self.own.start, found.ids[index, :length], finish)

    def stats(self, reshard_seconds: float) -> EngineStats:
        """What has been done so far."""
        return EngineStats(
            total=len(self.prompts_NP),
            completed=int(np.sum(self.completions.finish != Finish.NONE)),
            errors=int(np.sum(self.completions.finish == Finish.ERROR)),
            tokens=self.tokens,
            steps=self.steps,
            occupancy=self.waited_tokens / max(1, self.waited_steps * self.plan.slots),
            seconds=time.perf_counter() - self.started,
            reshard_seconds=reshard_seconds,
        )


def _require_ids(name: str, ids: Sequence[int], vocab_size: int) -> None:
    outside = [i for i in ids if not 0 <= i < vocab_size]
    require(not outside, f"{name}={outside} must be token ids, 0 to vocab_size={vocab_size} - 1")


def _check_memory(model: CachedDecoder, mesh: Mesh, slots: int, length: int) -> None:
    """Logs how large the cache may become on each device.

    Raises:
      ConfigError: if that is more than the device has.
    """
    limit = device_memory()
    sharding = NamedSharding(mesh, model.cache_spec())
    arrays = jax.tree.leaves(jax.eval_shape(lambda: model.empty_cache(slots, length)))
    needed = sum(math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in arrays)
    per_token = needed / (slots * length)
    size = (
        f"cache: slots={slots} × (max_prompt_length + max_response_length = {length}) tokens × "
        f"{per_token:.0f} bytes = {needed / 1e9:.2f} GB a device, which has {limit / 1e9:.2f} GB"
    )
    logger.info(size)
    most = f"slots={int(limit / per_token / length)} fit, or {int(limit / per_token / slots)} tokens"
    require(needed <= limit, f"{size}; at most {most} in as many slots")
