"""What all tasks share: a problem, the verdict on a response to it, and the protocol of a task."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

Message = Mapping[str, str]
"""One chat turn: `{"role": "user", "content": "..."}`."""

THINK_START, THINK_END = "<think>", "</think>"


@dataclass(frozen=True)
class Problem:
    """A question whose answer can be verified.

    Attributes:
      id: Unique within its task and stable across runs; random streams are keyed by it.
      messages: The conversation that poses the problem; the last message is the user's.
      answer: A reference answer in the task's own notation.
      metadata: Whatever the verifier needs beyond the answer.
    """

    id: str
    messages: tuple[Message, ...]
    answer: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """The result of verifying one response.

    Attributes:
      correct: Whether the final answer solves the problem.
      answer: The answer in the response; None if there is none.
      feedback: Text that an environment could give to the model; empty if there is none.
      timed_out: Whether verification, or the program that was verified, ran out of time, or its process died.
        Such a verdict is never `correct`, and it says nothing about the answer.
    """

    correct: bool
    answer: str | None = None
    feedback: str = ""
    timed_out: bool = False


class Task(Protocol):
    """Verifies responses. A task knows text only and no token ids.

    A task may own processes: close it, or use it as a context manager. Its methods may be called from
    several threads.

    Attributes:
      announcing: Words that are part of an answer, or announce one. Numbers, signs and markup need not be
        listed.
      parallel: Number of responses that `verify_all` verifies at a time.
    """

    announcing: frozenset[str] = frozenset()
    parallel: int = 1

    def verify(self, problem: Problem, response: str) -> Verdict:
        """Verifies the text of one response."""
        ...

    def verify_all(self, pairs: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """Verifies many responses; the verdicts are in their order."""
        if self.parallel == 1:
            return [self.verify(problem, response) for problem, response in pairs]
        with ThreadPoolExecutor(self.parallel) as threads:
            return list(threads.map(lambda pair: self.verify(*pair), pairs))

    def first_wrong_attempt(self, problem: Problem, response: str) -> int | None:
        """The number of characters up to the end of the first wrong attempt in a response; None without one.

        By default the thinking as a whole is one attempt.
        """
        end = response.find(THINK_END)
        return None if end < 0 or self.verify(problem, response).correct else len(response[:end].rstrip())

    def close(self) -> None:
        """Ends the processes of the task, which cannot be used afterwards."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def strip_thinking(response: str) -> str:
    """The response without everything up to and including the last `</think>`: s∖think of the paper.

    The opening tag may be missing, because several chat templates put it in the prompt. A response that never
    closes its thinking is returned whole, as in the released code.
    """
    return response.rpartition(THINK_END)[2].strip()


def answer_part(response: str) -> str:
    """The text after the thinking, where the answer is read.

    It begins after the last `</think>` and ends at a `<think>` that nothing closes: a response that is still
    thinking has not answered. Without either tag it is the whole response.
    """
    return strip_thinking(response).partition(THINK_START)[0].strip()
