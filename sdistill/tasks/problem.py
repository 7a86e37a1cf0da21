"""The nouns every task shares: a problem and the verdict on a response to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

Message = Mapping[str, str]
"""One chat turn: `{"role": "user", "content": "..."}`."""

THINK_START, THINK_END = "<think>", "</think>"


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
      timed_out: Whether a deadline, or the death of its process, ended the verification, or the program
        that was verified. Such a verdict is never `correct`, and it says nothing of the answer.
    """

    correct: bool
    answer: str | None = None
    feedback: str = ""
    timed_out: bool = False


class Task(Protocol):
    """A source of verdicts. Tasks know text only; token ids are none of their business.

    A task may have processes of its own: close it, or use it as a context manager. Verdicts may be asked
    for from several threads.

    Attributes:
      announcing: Words of responses that are part of an answer, or announce one; numbers, signs and markup
        need not be named.
    """

    announcing: frozenset[str] = frozenset()

    def verify(self, problem: Problem, response: str) -> Verdict:
        """Judges the text of one response."""
        ...

    def verify_all(self, pairs: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """Judges many responses, in their order and as fast as the task can."""
        return [self.verify(problem, response) for problem, response in pairs]

    def first_wrong_attempt(self, problem: Problem, response: str) -> int | None:
        """How many characters the response has up to the end of its first wrong attempt; None without one.

        Where attempts cannot be told apart, the first thinking as a whole is one.
        """
        end = response.find(THINK_END)
        return None if end < 0 or self.verify(problem, response).correct else len(response[:end].rstrip())

    def close(self) -> None:
        """Ends what the task has started; no verdict can be asked for afterwards."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def strip_thinking(response: str) -> str:
    """Drops everything up to and including the last `</think>`: s∖think of the paper.

    The opening tag may be missing, because several chat templates put it in the prompt; a
    response that never closes its thinking is returned whole, as in the released code.
    """
    return response.rpartition(THINK_END)[2].strip()


def answer_part(response: str) -> str:
    """What a response says after its thinking.

    All up to the last `</think>` goes, and so does all from a `<think>` that nothing closes: a response
    that is still thinking has said nothing yet. Without either tag, all of it is the answer.
    """
    return strip_thinking(response).partition(THINK_START)[0].strip()
