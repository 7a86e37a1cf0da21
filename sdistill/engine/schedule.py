"""The host's side of a generation: which response is decoded in which slot, and when."""

import functools
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Int

from sdistill.distributed.rules import BATCH
from sdistill.engine.jobs import Jobs
from sdistill.engine.model import SamplingModel
from sdistill.engine.programs import (
    Admission,
    Decoded,
    Finish,
    Slots,
    admit,
    decode,
    empty_slots,
    with_columns,
    without_errors,
)
from sdistill.engine.types import Completion, EngineStats, StopFunction

STEPS = 16  # of a round: enough that the host's part is small, few enough that ended rows wait little
PATIENCE = 16  # a round ends when one slot in so many waits for its next response
PREFILL_TOKENS = 1024  # at a time: enough to be bound by arithmetic, few enough to stop decoding only shortly
FEWEST = 4  # slots that the last responses go on in, at least


@dataclass(frozen=True)
class Plan:
    """Sizes that programs are compiled for.

    Attributes:
      slots: Responses decoded at a time.
      max_prompt: Tokens of a prompt, at most.
      row_counts: The slots, and a half and a quarter of them, in which the last responses go on.
      lengths: Of the cache: it is as long as its longest live row needs, so that no more is read.
      prompt_lengths: Columns that prompts are prefilled in.
      prefill_rows: Prompts prefilled at a time.
    """

    slots: int
    max_prompt: int
    row_counts: tuple[int, ...]
    lengths: tuple[int, ...]
    prompt_lengths: tuple[int, ...]
    prefill_rows: int

    @classmethod
    def of(cls, slots: int, max_prompt: int, max_response: int, ways: int) -> "Plan":
        """For rows that are split so many ways."""
        fewer = (slots // n // ways * ways for n in (2, 4))
        lengths = _fractions(max_prompt + max_response, (1, 2, 4, 6, 8))
        prefill_rows = max(1, min(PREFILL_TOKENS // max_prompt, slots))
        return cls(
            slots,
            max_prompt,
            (slots, *(rows for rows in fewer if rows >= FEWEST)),
            tuple(length for length in lengths if length >= min(max_prompt + STEPS, lengths[-1])),
            _fractions(max_prompt, (1, 2, 4, 8)),
            -(-prefill_rows // ways) * ways,
        )


def _fractions(whole: int, eighths: Sequence[int]) -> tuple[int, ...]:
    """So many eighths of the whole, in units that registers like."""
    unit = 64
    return tuple(sorted({min(whole, -(-whole * n // (8 * unit)) * unit) for n in eighths}))


class Programs(NamedTuple):
    """The engine's programs, jitted; each is compiled for the few lengths of the cache."""

    reshard: Callable[[Any], Any]
    prefill: Callable[..., Any]
    admit: Callable[..., Slots]
    decode: Callable[..., tuple[Slots, Decoded]]
    empty: Callable[[int, int], Slots]
    with_columns: Callable[[Any, int, int], Any]
    rows: Callable[[Slots, np.ndarray], Slots]
    column_axes: Callable[[Any], Any]
    without_errors: Callable[[Slots], Slots]


@functools.cache
def compiled(model: SamplingModel, mesh: Mesh) -> Programs:
    """Equal engines share their programs."""
    rows, everywhere = NamedSharding(mesh, BATCH), NamedSharding(mesh, PartitionSpec())
    cache_spec = model.cache_spec()
    prefix = NamedSharding(mesh, PartitionSpec(None, *cache_spec[1:]))  # any slot may need any prompt
    parts: list[Any] = [NamedSharding(mesh, cache_spec), *[rows] * (len(Slots._fields) - 1)]
    slots = Slots(*parts)

    def reshard(params: Any) -> Any:
        params = model.for_sampling(params)
        return jax.lax.with_sharding_constraint(params, model.shardings(params, mesh))

    def prefill(params: Any, tokens_QP: jax.Array, lengths_Q: jax.Array, length: int) -> Any:
        tokens_QP, lengths_Q = jax.lax.with_sharding_constraint((tokens_QP, lengths_Q), rows)
        cache = model.prefill(params, tokens_QP, lengths_Q)
        return jax.tree.map(lambda x, axis: with_columns(x, length, axis), cache, model.column_axes(cache))

    return Programs(
        jax.jit(reshard),
        jax.jit(prefill, static_argnames="length", out_shardings=prefix),
        jax.jit(functools.partial(admit, model=model), donate_argnums=0, out_shardings=slots),
        jax.jit(
            functools.partial(decode, model=model, steps=STEPS),
            donate_argnums=1,
            out_shardings=(slots, everywhere),
        ),
        jax.jit(functools.partial(empty_slots, model), static_argnums=(0, 1), out_shardings=slots),
        jax.jit(with_columns, static_argnums=(1, 2), out_shardings=slots.cache),
        jax.jit(lambda slots, rows: jax.tree.map(lambda x: x[rows], slots), out_shardings=slots),
        model.column_axes,
        jax.jit(without_errors, donate_argnums=0, out_shardings=slots),
    )


NOBODY = -1


class Schedule:
    """The host's side of one generation."""

    def __init__(
        self,
        plan: Plan,
        programs: Programs,
        params: Any,
        jobs: Jobs,
        stop_ids: Int[np.ndarray, " E"],
        forbidden: Bool[np.ndarray, " V"],
        seed_and_step: tuple[int, int],
    ):
        self.plan, self.programs, self.params, self.jobs = plan, programs, params, jobs
        self.stop_ids, self.forbidden = stop_ids, forbidden
        self.seed_and_step = np.asarray(seed_and_step, np.int32)
        self.began, self.reshard_seconds = time.perf_counter(), 0.0
        count = len(jobs.limits)
        self.waiting = deque(range(count))
        self.responses: dict[int, Completion] = {}
        self.chunks: dict[int, list[tuple[np.ndarray, ...]]] = {}
        self.finishes: dict[int, Finish] = {}
        self.begin_at_once = max(1, plan.slots // 8)
        self.owners = np.full(plan.slots, NOBODY)
        self.lengths = np.zeros(plan.slots, int)
        self.stopped = np.zeros(plan.slots, bool)
        self.cache_length = plan.lengths[0]
        self.slots = programs.empty(plan.slots, self.cache_length)
        self.prefix: Any = None
        self.places: dict[bytes, int] = {}  # where in the prefix a prompt is
        self.tokens = self.steps = self.errors = 0
        self.crowded_tokens = self.crowded_steps = 0

    def goes_on(self) -> bool:
        """Whether any response is waiting or being decoded."""
        return bool(self.waiting) or bool((self.owners != NOBODY).any())

    def refill(self) -> None:
        """Gives free slots to the next responses."""
        free = deque(np.flatnonzero(self.owners == NOBODY).tolist())
        while free and self.waiting:
            if self.prompt(self.waiting[0]) not in self.places:
                self.prefill_next()
            slots: list[int] = []
            jobs: list[int] = []
            while free and self.waiting and len(jobs) < self.begin_at_once:
                if self.prompt(self.waiting[0]) not in self.places:
                    break
                slots.append(free.popleft())
                jobs.append(self.waiting.popleft())
            self.admit(slots, jobs)

    def prompt(self, job: int) -> bytes:
        """What tells a job's prompt from others."""
        return self.jobs.prompts[job, : self.jobs.prompt_lengths[job]].tobytes()

    def prefill_next(self) -> None:
        """Prefills the next distinct prompts of those that wait."""
        firsts: dict[bytes, int] = {}
        for job in self.waiting:
            if len(firsts) == self.plan.prefill_rows:
                break
            firsts.setdefault(self.prompt(job), job)
        jobs = list(firsts.values())
        longest = int(self.jobs.prompt_lengths[jobs].max())
        self.prefill(jobs, next(n for n in self.plan.prompt_lengths if n >= longest))
        self.places = {prompt: row for row, prompt in enumerate(firsts)}

    def prefill(self, jobs: Sequence[int], columns: int) -> None:
        """Prefills these jobs' prompts, all but their last tokens."""
        rows = self.plan.prefill_rows
        lengths, tokens = np.zeros(rows, np.int32), np.zeros((rows, columns), np.int32)
        lengths[: len(jobs)] = self.jobs.prompt_lengths[jobs] - 1
        tokens[: len(jobs)] = self.jobs.prompts[jobs, :columns]
        self.prefix = None  # frees the one before
        self.prefix = self.programs.prefill(self.params, tokens, lengths, length=self.plan.max_prompt)

    def admit(self, slots: Sequence[int], jobs: Sequence[int]) -> None:
        """Lets responses begin."""

        def column(values: np.ndarray, filler: int = 0) -> np.ndarray:
            filled = np.full(self.begin_at_once, filler, values.dtype)
            filled[: len(values)] = values
            return filled

        lengths = self.jobs.prompt_lengths[jobs] - 1
        places = [self.places[self.prompt(job)] for job in jobs]
        new = Admission(
            column(np.asarray(slots, np.int32), len(self.owners)),
            column(np.asarray(places, np.int32)),
            column(lengths),
            column(self.jobs.prompts[jobs, lengths]),
            column(self.jobs.problems[jobs]),
            column(self.jobs.samples[jobs]),
            column(self.jobs.limits[jobs]),
            jax.tree.map(lambda x: column(x[jobs]), self.jobs.settings),
        )
        self.slots = self.programs.admit(self.slots, self.prefix, new, self.seed_and_step)
        self.owners[slots], self.lengths[slots], self.stopped[slots] = jobs, lengths, False
        self.chunks |= {job: [] for job in jobs}

    def start_round(self) -> Decoded:
        """Starts decoding a few tokens in all slots, of which there are no more than needed."""
        live = np.flatnonzero(self.owners != NOBODY)
        if not self.waiting:
            rows = min(n for n in self.plan.row_counts if n >= len(live))
            self.keep_rows(np.argsort(self.owners == NOBODY, kind="stable")[:rows])
        longest = int(self.lengths[self.owners != NOBODY].max())
        needed = min(longest + STEPS, self.plan.lengths[-1])
        self.resize(next(n for n in self.plan.lengths if n >= needed))
        return self.decode()

    def decode(self) -> Decoded:
        """Starts a round."""
        patience = max(1, len(self.owners) // PATIENCE) if self.waiting else len(self.owners)
        self.slots, decoded = self.programs.decode(
            self.params, self.slots, self.stopped, np.int32(patience), self.stop_ids, self.forbidden
        )
        return decoded

    def keep_rows(self, rows: Int[np.ndarray, " R"]) -> None:
        """Goes on with these rows only."""
        if len(rows) < len(self.owners):
            self.slots = self.programs.rows(self.slots, rows.astype(np.int32))
            self.owners, self.lengths, self.stopped = (
                x[rows] for x in (self.owners, self.lengths, self.stopped)
            )

    def resize(self, length: int) -> None:
        """Gives the cache another length, one array after the other: two caches would not fit.

        From one length to the next, so that few such programs are compiled.
        """
        lengths = self.plan.lengths
        while self.cache_length != length:
            step = 1 if length > self.cache_length else -1
            self.cache_length = lengths[lengths.index(self.cache_length) + step]
            axes = jax.tree.leaves(self.programs.column_axes(self.slots.cache))
            cache, tree = jax.tree.flatten(self.slots.cache)
            self.slots = self.slots._replace(cache=None)
            for i, axis in enumerate(axes):
                cache[i] = self.programs.with_columns(cache[i], self.cache_length, axis)
            self.slots = self.slots._replace(cache=jax.tree.unflatten(tree, cache))

    def book(self, decoded: Decoded) -> list[int]:
        """Keeps what a round drew; returns the jobs that drew something, or that it ended."""
        seen = []
        crowded = bool(self.waiting)
        for slot in np.flatnonzero(self.owners != NOBODY):
            job, count, end = int(self.owners[slot]), int(decoded.counts_B[slot]), int(decoded.ends_B[slot])
            if job in self.responses:  # the host ended it while this round ran
                self.owners[slot], self.stopped[slot] = NOBODY, True
                continue
            self.chunks[job].append(tuple(np.array(x[:count, slot]) for x in decoded[:3]))
            self.lengths[slot] += count
            self.tokens += count
            self.crowded_tokens += count * crowded
            if end:
                self.owners[slot] = NOBODY
                self.finishes[job] = Finish(end)
            seen.append(job)
        self.steps += int(decoded.steps)
        self.crowded_steps += int(decoded.steps) * crowded
        if (decoded.ends_B == Finish.ERROR).any():
            self.slots = self.programs.without_errors(self.slots)
        return seen

    def finish(
        self, jobs: Sequence[int], stop: StopFunction | None, ended: Callable[[int, Completion], None]
    ) -> None:
        """Hands out the responses among those jobs that have ended, by themselves or by `stop`."""
        for job in jobs:
            chunks, finish = self.chunks[job], self.finishes.get(job)
            kept = None
            if stop is not None:
                so_far = np.concatenate([chunk[0] for chunk in chunks]).tolist()
                kept = stop(so_far, len(so_far) - len(chunks[-1][0]))
                finish = finish if kept is None else Finish.STOP
            if finish is not None:
                ids, log_probs, full_log_probs = (
                    np.concatenate(part)[:kept] for part in zip(*chunks, strict=True)
                )
                self.responses[job] = Completion(ids, log_probs, full_log_probs, finish)
                self.errors += finish is Finish.ERROR
                del self.chunks[job]
                ended(job, self.responses[job])

    def usage(self) -> EngineStats:
        """See `EngineStats`."""
        crowded = max(1, self.crowded_steps * self.plan.slots)
        seconds = time.perf_counter() - self.began
        responses = len(self.responses)
        occupancy = self.crowded_tokens / crowded
        return EngineStats(
            len(self.jobs.limits),
            responses,
            self.errors,
            self.tokens,
            self.steps,
            occupancy,
            seconds,
            self.reshard_seconds,
        )
