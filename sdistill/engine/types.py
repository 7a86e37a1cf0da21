"""What the engine is asked for, what it returns, and how it reports on the way."""

import contextlib
import enum
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from rich.progress import Progress

from sdistill.engine.sampling import Sampling


class Finish(enum.IntEnum):
    """Why a completion ended: by itself, at its limit, or because its logits were not finite."""

    NONE = 0  # it has not
    STOP = 1
    LENGTH = 2
    ERROR = 3


class Request(NamedTuple):
    """One completion to sample.

    Attributes:
      prompt: Token ids. Requests with the same prompt should be neighbours: it is then prefilled once.
      problem: First part of the name of the random stream, usually the problem's id.
      sample: Second part: the index of the completion among those of the problem.
      sampling: How tokens are drawn.
      limit: Maximum number of tokens; None for the engine's `max_response_length`.
    """

    prompt: Sequence[int]
    problem: str
    sample: int = 0
    sampling: Sampling = Sampling()
    limit: int | None = None


class Completions(NamedTuple):
    """What was sampled, in the order of the requests, padded with 0 to the engine's `max_response_length`, T.

    Attributes:
      ids: Tokens, including the stop token.
      lengths: Number of tokens; 0 only where the first logits were not finite.
      finish: Why each ended: a `Finish`.
      log_probs: Log-probability of each token under the distribution it was drawn from.
      full_log_probs: The same without truncation.
    """

    ids: Int[np.ndarray, "N T"]
    lengths: Int[np.ndarray, " N"]
    finish: Int[np.ndarray, " N"]
    log_probs: Float[np.ndarray, "N T"]
    full_log_probs: Float[np.ndarray, "N T"]

    @property
    def finished(self) -> Bool[np.ndarray, " N"]:
        """Whether each ended by itself."""
        return self.finish == Finish.STOP

    @classmethod
    def empty(cls, count: int, length: int) -> "Completions":
        """Nothing drawn yet."""
        tokens, rows = (count, length), (count,)
        return cls(
            ids=np.zeros(tokens, np.int32),
            lengths=np.zeros(rows, np.int32),
            finish=np.zeros(rows, np.int32),
            log_probs=np.zeros(tokens, np.float32),
            full_log_probs=np.zeros(tokens, np.float32),
        )


class EngineStats(NamedTuple):
    """What an engine has done since `generate` was called.

    Attributes:
      total: Number of requests, of all processes together.
      completed: Completions that have ended.
      errors: How many of those ended because their logits were not finite.
      occupancy: Share of slots that drew a token, over the steps made while requests were waiting.
      seconds: Since the parameters were in the layout for sampling.
      reshard_seconds: Time it took to bring the parameters into that layout.
    """

    total: int
    completed: int
    errors: int
    tokens: int
    steps: int
    occupancy: float
    seconds: float
    reshard_seconds: float = 0.0


StopFunction = Callable[[Sequence[int], int], int | None]
"""`stop(ids, seen)` returns the number of ids to keep if the completion ends within them, else None. It has
already been called with the first `seen` ids."""


@contextlib.contextmanager
def follow(progress: Progress, name: str, total: int) -> Iterator[Callable[[EngineStats], None]]:
    """A callback that shows completions, tokens per second, busy slots and failures in a bar of its own."""
    bar = progress.add_task(name, total=total)

    def show(stats: EngineStats) -> None:
        rate = stats.tokens / max(stats.seconds, 1e-9)
        failed = f", {stats.errors} failed" if stats.errors else ""
        text = f"{name}: {rate:.0f} tokens/s, {stats.occupancy:.0%} of slots busy{failed}"
        progress.update(bar, total=stats.total, completed=stats.completed, description=text)

    yield show
    progress.remove_task(bar)
