"""What goes into an engine and what comes out of it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from sdistill.engine.programs import Finish
from sdistill.engine.sampling import Sampling


class Request(NamedTuple):
    """One response to sample.

    Attributes:
      prompt: Token ids. Requests with the same prompt should follow each other: it is prefilled once.
      problem: First part of the name of its random stream, usually the problem's id.
      sample: Second part: which of the problem's responses it is.
      sampling: How tokens are drawn.
      limit: Tokens after which it is cut; the engine's `max_response` if not told.
    """

    prompt: Sequence[int]
    problem: str
    sample: int = 0
    sampling: Sampling = Sampling()
    limit: int | None = None


class Completion(NamedTuple):
    """What came of a request.

    Attributes:
      ids: Tokens, the one that ended it included.
      log_probs: Log-probability of each under the distribution it was drawn from.
      full_log_probs: The same without truncation.
      finish: Why it ended.
    """

    ids: Int[np.ndarray, " T"]
    log_probs: Float[np.ndarray, " T"]
    full_log_probs: Float[np.ndarray, " T"]
    finish: Finish


class Completions(NamedTuple):
    """Responses in the order of their requests; 0 after their ends.

    Attributes:
      ids: Tokens; T is the engine's `max_response`.
      lengths: Number of tokens; 0 only where the model failed at once.
      finish: Why each ended, as `Finish`.
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
    def of(cls, responses: Sequence[Completion], length: int) -> "Completions":
        """Padded to `length` columns."""

        def padded(name: str, dtype: str) -> np.ndarray:
            rows = np.zeros((len(responses), length), dtype)
            for row, response in zip(rows, responses, strict=True):
                row[: len(response.ids)] = getattr(response, name)
            return rows

        return cls(
            padded("ids", "int32"),
            np.asarray([len(response.ids) for response in responses], np.int32),
            np.asarray([response.finish for response in responses], np.int32),
            padded("log_probs", "float32"),
            padded("full_log_probs", "float32"),
        )


class EngineStats(NamedTuple):
    """What a generation has done so far.

    Attributes:
      total: Responses wanted, by all processes together.
      responses: Responses ended.
      errors: How many of those because of logits that were not numbers.
      tokens: Tokens drawn.
      steps: Decoding steps.
      occupancy: Share of the slots that drew a token, over the steps made while responses were waiting.
      seconds: Since the parameters were in the layout for sampling.
      reshard_seconds: That it took to bring them there.
    """

    total: int
    responses: int
    errors: int
    tokens: int
    steps: int
    occupancy: float
    seconds: float
    reshard_seconds: float = 0.0


StopFunction = Callable[[Sequence[int], int], int | None]
"""Looks at a response's ids, of which so many were looked at before; how many to keep if it ends there."""


class Engine(Protocol):
    """What the rest of the project needs of an engine."""

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
        """See `SlotEngine.generate`."""
