"""The host's side of a generation: which response is decoded in which slot, and when."""

import itertools
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int

from sdistill.distributed.processes import all_gather_rows, first_row
from sdistill.engine.programs import ROUND_STEPS, Decoded, Programs, RowState
from sdistill.engine.sampling import SamplingArrays
from sdistill.engine.types import Completion, EngineStats, Finish, Request, StopFunction

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


class RequestArrays(NamedTuple):
    """Requests as arrays. Their rows are as they start: the prompt but its last token is in the cache."""

    prompts_NP: Int[np.ndarray, "N P"]
    rows_N: RowState

    @classmethod
    def gather(
        cls, requests: Sequence[Request], max_prompt: int, max_response: int
    ) -> tuple["RequestArrays", range]:
        """Requests of all processes, one process after the other; and the indices of this process' own."""
        count = len(requests)
        prompts_NP = np.zeros((count, max_prompt), np.int32)
        for row, request in zip(prompts_NP, requests, strict=True):
            row[: len(request.prompt)] = request.prompt
        rows_N = RowState(
            lengths=np.asarray([len(r.prompt) - 1 for r in requests], np.int32),
            last=np.asarray([r.prompt[-1] for r in requests], np.int32),
            drawn=np.zeros(count, np.int32),
            limits=np.asarray([r.limit or max_response for r in requests], np.int32),
            active=np.ones(count, bool),
            problems=np.asarray([zlib.crc32(r.problem.encode()) for r in requests], np.uint32),
            samples=np.asarray([r.sample for r in requests], np.int32),
            sampling=SamplingArrays.of([r.sampling for r in requests]),
        )
        first = first_row(count)
        return all_gather_rows(cls(prompts_NP, rows_N), count), range(first, first + count)

    def prompt(self, index: int) -> bytes:
        """A request's prompt, as a key that equal prompts share."""
        return self.prompts_NP[index, : self.rows_N.lengths[index] + 1].tobytes()


class Schedule:
    """The host's state during one generation. Requests are known by their index.

    Attributes:
      slots: The device's state.
      owner: For each slot the request it decodes, or `FREE`.
      length: For each slot the number of tokens in the cache.
      stopped: For each slot whether the host has ended it.
      waiting: Requests that have no slot yet.
      parts: For each request being decoded what each round drew.
      completions: Of the requests that have ended.
    """

    def __init__(
        self,
        plan: Plan,
        programs: Programs,
        params: Any,
        requests: RequestArrays,
        stop_ids: Int[np.ndarray, " E"],
        forbidden: Bool[np.ndarray, " V"],
        seed_and_step: tuple[int, int],
    ):
        self.plan, self.programs, self.params, self.requests = plan, programs, params, requests
        self.stop_ids, self.forbidden = stop_ids, forbidden
        self.seed_and_step = np.asarray(seed_and_step, np.int32)
        self.started = time.perf_counter()
        self.waiting = range(len(requests.prompts_NP))
        self.parts: dict[int, list[Completion]] = {}
        self.completions: dict[int, Completion] = {}
        self.owner = np.full(plan.slots, FREE)
        self.length = np.zeros(plan.slots, int)
        self.stopped = np.zeros(plan.slots, bool)
        self.cache_length = plan.lengths[0]
        self.slots = programs.empty_slots(plan.slots, self.cache_length)
        self.prefix: Any = None  # the cache of the prompts prefilled last
        self.prefix_rows: dict[bytes, int] = {}  # the row of each of them
        self.tokens = self.steps = self.errors = 0
        self.waited_tokens = self.waited_steps = 0  # those drawn and made while requests were waiting

    def has_work(self) -> bool:
        """Whether any request is waiting or being decoded."""
        return bool(self.waiting) or bool((self.owner != FREE).any())

    def refill(self) -> None:
        """Starts the next requests in the free slots, as many at a time as are prefilled."""
        free = np.flatnonzero(self.owner == FREE)
        while self.waiting and len(free):
            if not self._is_prefilled(self.waiting[0]):
                self._prefill_next()
            next_ones = self.waiting[: min(len(free), self.plan.admit_rows)]
            indices = list(itertools.takewhile(self._is_prefilled, next_ones))
            self.admit(free[: len(indices)], indices)
            free, self.waiting = free[len(indices) :], self.waiting[len(indices) :]

    def _is_prefilled(self, index: int) -> bool:
        return self.requests.prompt(index) in self.prefix_rows

    def _prefill_next(self) -> None:
        """Prefills the next distinct prompts of the waiting requests."""
        first: dict[bytes, int] = {}  # the first request of each prompt
        for index in self.waiting:
            if len(first) == self.plan.prefill_rows:
                break
            first.setdefault(self.requests.prompt(index), index)
        indices = list(first.values())
        longest = 1 + int(self.requests.rows_N.lengths[indices].max())
        self.prefill(indices, next(n for n in self.plan.prompt_lengths if n >= longest))
        self.prefix_rows = {prompt: row for row, prompt in enumerate(first)}

    def prefill(self, indices: Sequence[int], columns: int) -> None:
        """Prefills the prompts of these requests, all but their last tokens, padded to `columns`."""
        fillers = (0, self.plan.prefill_rows - len(indices))
        tokens_QP = np.pad(self.requests.prompts_NP[indices, :columns], (fillers, (0, 0)))
        lengths_Q = np.pad(self.requests.rows_N.lengths[indices], fillers)
        self.prefix = None  # frees the previous one
        self.prefix = self.programs.prefill(self.params, tokens_QP, lengths_Q, columns=self.plan.max_prompt)

    def admit(self, slots: Int[np.ndarray, " n"], indices: Sequence[int]) -> None:
        """Starts requests in their slots; the rest of R is filled with request 0 in no slot."""
        fillers = (0, self.plan.admit_rows - len(indices))
        slots_R = np.pad(slots.astype(np.int32), fillers, constant_values=len(self.owner))
        prefix = [self.prefix_rows[self.requests.prompt(index)] for index in indices]
        prefix_R = np.pad(np.asarray(prefix, np.int32), fillers)
        index_R = np.pad(np.asarray(indices, int), fillers)
        new_R = jax.tree.map(lambda x: x[index_R], self.requests.rows_N)
        self.slots = self.programs.admit(self.slots, self.prefix, new_R, slots_R, prefix_R)
        self.owner[slots], self.stopped[slots] = indices, False
        self.length[slots] = self.requests.rows_N.lengths[indices]
        self.parts |= {index: [] for index in indices}

    def start_round(self) -> Decoded:
        """Starts decoding, with as few rows and columns as the active rows need. Does not wait for it."""
        active = self.owner != FREE
        needed = min(int(self.length[active].max()) + ROUND_STEPS, self.plan.lengths[-1])
        if not self.waiting:
            rows = min(n for n in self.plan.row_counts if n >= active.sum())
            self.keep_rows(np.argsort(~active, kind="stable")[:rows])
        self.resize(next(n for n in self.plan.lengths if n >= needed))
        return self.decode()

    def decode(self) -> Decoded:
        """Starts a round."""
        rows = len(self.owner)
        max_ended = np.int32(max(1, rows // REFILL_SHARE) if self.waiting else rows)
        inputs = self.stopped, max_ended, self.seed_and_step, self.stop_ids, self.forbidden
        self.slots, decoded = self.programs.decode(self.params, self.slots, *inputs)
        return decoded

    def keep_rows(self, rows: Int[np.ndarray, " R"]) -> None:
        """Shrinks the pool to these rows."""
        if len(rows) < len(self.owner):
            self.slots = self.programs.select_rows(self.slots, rows.astype(np.int32))
            self.owner, self.length, self.stopped = self.owner[rows], self.length[rows], self.stopped[rows]

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
        for slot in np.flatnonzero(self.owner != FREE):
            index, count = int(self.owner[slot]), int(decoded.counts_B[slot])
            if index in self.completions:  # the host ended it while this round ran
                self.owner[slot], self.stopped[slot] = FREE, True
                continue
            part = Completion(
                ids=np.array(decoded.ids_KB[:count, slot]),
                log_probs=np.array(decoded.log_probs_KB[:count, slot]),
                full_log_probs=np.array(decoded.full_log_probs_KB[:count, slot]),
                finish=Finish(int(decoded.finish_B[slot])),
            )
            self.parts[index].append(part)
            indices.append(index)
            self.length[slot] += count
            self.tokens += count
            self.waited_tokens += count * waiting
            if part.finish:
                self.owner[slot] = FREE
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
            total=len(self.requests.prompts_NP),
            completed=len(self.completions),
            errors=self.errors,
            tokens=self.tokens,
            steps=self.steps,
            occupancy=self.waited_tokens / max(1, self.waited_steps * self.plan.slots),
            seconds=time.perf_counter() - self.started,
            reshard_seconds=reshard_seconds,
        )
