"""The signs puzzle: `8 4 7 = 19` asks for the signs that make it true, `+ +`.

Each of the k numbers is from 1 to 9, and the first has no sign. So there are 2^(k-1) patterns of signs, of
which several may be right. Two puzzles with the same numbers and target are the same problem.
"""

import itertools
import random
import re
import zlib
from collections.abc import Iterator, Sequence

from sdistill.tasks.problem import THINK_END, Problem, Task, Verdict, strip_thinking

SIGNS = ("+", "-")
BLANK = "_"  # an unrevealed sign in a partial solution

Numbers = Sequence[int]
Pattern = tuple[str, ...]
Puzzle = tuple[tuple[int, ...], int]
"""Numbers and target."""


def patterns(k: int) -> list[Pattern]:
    """All 2^(k-1) sign patterns of a puzzle of k numbers."""
    return list(itertools.product(SIGNS, repeat=k - 1))


def evaluate(numbers: Numbers, pattern: Pattern) -> int:
    """Value of the expression. In: (8, 4, 7), ("+", "-"). Out: 5."""
    terms = (number if sign == "+" else -number for sign, number in zip(pattern, numbers[1:], strict=True))
    return numbers[0] + sum(terms)


def solutions(numbers: Numbers, target: int) -> list[Pattern]:
    """The patterns that reach the target, in the order of `patterns`."""
    return [p for p in patterns(len(numbers)) if evaluate(numbers, p) == target]


def question(numbers: Numbers, target: int) -> str:
    """The text of a puzzle, which is also its identity. Out: `8 4 7 = 19`."""
    return f"{' '.join(map(str, numbers))} = {target}"


def parse_question(text: str) -> Puzzle:
    """Inverse of `question`. Raises ValueError, naming the text, if it is not a puzzle."""
    try:
        left, right = text.split(" = ")
        return tuple(int(n) for n in left.split(" ")), int(right)
    except ValueError as error:
        raise ValueError(f"not a signs puzzle: {text!r}; expected e.g. '8 4 7 = 19'") from error


def make_problem(numbers: Numbers, target: int) -> Problem:
    """The puzzle as a `Problem`. Raises ValueError if no pattern reaches the target."""
    text, right = question(numbers, target), solutions(numbers, target)
    if not right:
        raise ValueError(f"{text!r} has no solution")
    return Problem(text, ({"role": "user", "content": text},), " ".join(right[0]), {"k": len(numbers)})


def problem_from_text(text: str) -> Problem:
    """The `Problem` of a stored question."""
    return make_problem(*parse_question(text))


def all_questions(k: int) -> Iterator[Puzzle]:
    """Every solvable puzzle of k numbers once, in lexicographic order."""
    for numbers in itertools.product(range(1, 10), repeat=k):
        for target in sorted({evaluate(numbers, p) for p in patterns(k)}):
            yield numbers, target


def random_question(k: int, rng: random.Random) -> Puzzle:
    """A solvable puzzle: uniform numbers, and the target of a uniform pattern."""
    numbers = tuple(rng.randint(1, 9) for _ in range(k))
    return numbers, evaluate(numbers, tuple(rng.choice(SIGNS) for _ in range(k - 1)))


def split_of(numbers: Numbers, target: int) -> str:
    """The split of a puzzle: `corpus`, `pool` (on-policy training) or `test`.

    A hash of the problem decides, so the splits are disjoint by construction. The shares differ with k
    because there are only 2,835 puzzles of three numbers. Those of five or more are for tests only.
    """
    bucket = zlib.crc32(question(numbers, target).encode()) % 100
    if len(numbers) > 4:
        return "test"
    corpus, pool = (45, 85) if len(numbers) == 3 else (80, 90)
    return "corpus" if bucket < corpus else "pool" if bucket < pool else "test"


class SignsTask(Task):
    """Verifies a response by evaluating the expression at its end."""

    announcing = frozenset({"yes", "solution"})

    def verify(self, problem: Problem, response: str) -> Verdict:
        """A response is correct if a pattern that reaches the target follows its `</think>`.

        It is not if `</think>` is missing, if anything but k-1 signs follows, or if the value is wrong; the
        feedback says which.
        """
        numbers, target = parse_question(problem.id)
        if THINK_END not in response:
            return Verdict(False, None, "no final answer")
        answer = strip_thinking(response)
        signs = tuple(answer.split())
        if len(signs) != len(numbers) - 1 or any(sign not in SIGNS for sign in signs):
            return Verdict(False, answer, f"not {len(numbers) - 1} signs")
        value = evaluate(numbers, signs)
        return Verdict(value == target, answer, "" if value == target else f"gives {value}")

    def first_wrong_attempt(self, problem: Problem, response: str) -> int | None:
        """An attempt goes through all numbers, as in `8 -3 - 4 1 + 7 -6`; it is right if it ends in 0."""
        first, *others = parse_question(problem.id)[0]
        steps = "".join(rf" [+-] {number} (-?\d+)" for number in others)
        for attempt in re.finditer(rf"(?<!\S){first} -?\d+{steps}(?!\S)", response.partition(THINK_END)[0]):
            if int(attempt[len(others)]) != 0:
                return attempt.end()
        return None
