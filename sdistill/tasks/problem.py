"""The nouns every task shares: a problem and the verdict on a response to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

Message = Mapping[str, str]
"""One chat turn: `{"role": "user", "content": "..."}`."""

THINK_END = "</think>"


@dataclass(frozen=True)
class Problem:
    """A question with a checkable answer.

    Attributes:
      id: Unique within its task and stable across runs; random streams are keyed by it.
      messages: The conversation that poses the problem; the last one is the user's.
      answer: A reference answer in the task's own notation.
      metadata: Whatever the task's verifier needs beyond the answer.
    """

    id: str
    messages: tuple[Message, ...]
    answer: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What a verifier found in one response.

    Attributes:
      correct: Whether the final answer solves the problem.
      answer: The answer that was read from the response, None if there was none.
      feedback: Text an environment could hand back to the model; empty if it has none.
      timed_out: Whether the verifier gave up. Such a verdict is never `correct`.
    """

    correct: bool
    answer: str | None = None
    feedback: str = ""
    timed_out: bool = False


class Task(Protocol):
    """A source of verdicts. Tasks know text only; token ids are none of their business."""

    def verify(self, problem: Problem, response: str) -> Verdict:
        """Judges the text of one response."""
        ...


def strip_thinking(response: str) -> str:
    """Drops everything up to and including the last `</think>`: s∖think of the paper.

    The opening tag may be missing, because several chat templates put it in the prompt; a
    response that never closes its thinking is returned whole, as in the released code.
    """
    return response.rpartition(THINK_END)[2].strip()
