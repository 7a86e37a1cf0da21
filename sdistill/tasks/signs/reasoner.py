"""The Bayesian reasoner whose traces the base model learns from.

It holds a uniform posterior over the patterns that its context leaves open, tries them in random
order without repetition, and says how sure it is: before each attempt one of `so likely perhaps
maybe` by the number still open, after each failure one of `wait hmm actually alternatively`. An
attempt is a running remainder, number and what is left, so that success is a remainder of 0:

    8 4 7 = 5 <think> perhaps 8 -3 - 4 1 + 7 -6 wait perhaps 8 -3 + 4 -7 - 7 0 yes </think> + -

What is built in here, and therefore is no finding of any study on this puzzle: certainty words go
with the number of open patterns (up to `Habits.slip`); a worked solution in the context is not
verified again; a bare answer in the context is verified once.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from sdistill.tasks.problem import THINK_END
from sdistill.tasks.signs.puzzle import (
    BLANK,
    SIGNS,
    Pattern,
    evaluate,
    patterns,
    question,
    random_question,
    solutions,
    split_of,
)

CERTAINTY = ("so", "likely", "perhaps", "maybe")
DOUBT = ("wait", "hmm", "actually", "alternatively")
GIVE_UP = "seems"
SUCCESS = "yes"
THINK = "<think>"


@dataclass(frozen=True)
class Habits:
    """How the reasoner behaves, as probabilities.

    Attributes:
      give_up: Chance, at each failure, to stop and guess among the patterns left.
      slip: Chance, at each attempt, to sound surer than it is. It gives the corpus traces that go
        on after a confident mistake, without which a model trained to be confident has no way back.
    """

    give_up: float = 0.02
    slip: float = 0.08


def certainty(open_count: int) -> str:
    """1 `so`, 2 `likely`, 3 or 4 `perhaps`, more `maybe`."""
    return CERTAINTY[min((open_count - 1).bit_length(), 3)]


def attempt(numbers: Sequence[int], target: int, pattern: Pattern) -> str:
    """One pattern worked out. In: (8, 4, 7), 5, ("-", "+"). Out: `8 -3 - 4 1 + 7 -6`."""
    left = target - numbers[0]
    words = [str(numbers[0]), str(left)]
    for sign, number in zip(pattern, numbers[1:], strict=True):
        left += -number if sign == "+" else number
        words += [sign, str(number), str(left)]
    return " ".join(words)


def consistent(pattern: Pattern, revealed: Pattern) -> bool:
    """Whether a pattern agrees with a partial one, in which `_` is unknown."""
    return all(r in (BLANK, p) for p, r in zip(pattern, revealed, strict=True))


def search(
    numbers: Sequence[int],
    target: int,
    revealed: Pattern,
    rng: random.Random,
    habits: Habits,
    tried: Sequence[Pattern] = (),
) -> str:
    """Thinks and answers, from a posterior that `revealed` and what was `tried` leave open.

    When every pattern that agrees with the revealed signs has failed, the reasoner no longer believes
    them and goes on with all the others; when all have failed it gives up with a guess.
    """
    words: list[str] = []
    untried = [p for p in patterns(len(numbers)) if p not in tried]
    believed = [p for p in untried if consistent(p, revealed)] or untried
    while believed:
        if words and rng.random() < habits.give_up:
            break
        pattern = rng.choice(believed)
        level = CERTAINTY.index(certainty(len(believed)))
        if level and rng.random() < habits.slip:
            level = rng.randrange(level)
        words += [CERTAINTY[level], attempt(numbers, target, pattern)]
        if evaluate(numbers, pattern) == target:
            return " ".join([*words, SUCCESS, THINK_END, *pattern])
        words.append(rng.choice(DOUBT))
        untried.remove(pattern)
        believed = [p for p in believed if p != pattern] or untried
    guess = rng.choice(believed or patterns(len(numbers)))
    return " ".join([*words, GIVE_UP, THINK_END, *guess])


def failed_attempts(
    numbers: Sequence[int], target: int, count: int, rng: random.Random
) -> tuple[str, list[Pattern]]:
    """Attempts somebody else made, possibly repeating themselves and sure beyond reason."""
    wrong = [p for p in patterns(len(numbers)) if evaluate(numbers, p) != target]
    tried = [rng.choice(wrong) for _ in range(count)]
    words = [
        f"{rng.choice(CERTAINTY)} {attempt(numbers, target, p)} {rng.choice(DOUBT)}" for p in tried
    ]
    return " ".join(words), tried


def reveal(pattern: Pattern, count: int, rng: random.Random) -> Pattern:
    """A partial pattern with `count` signs shown, the others `_`."""
    shown = set(rng.sample(range(len(pattern)), count))
    return tuple(sign if i in shown else BLANK for i, sign in enumerate(pattern))


def guided(content: str, solution: str) -> str:
    """The user turn that carries a solution, whole or partial."""
    return f"{content} solution {solution}"


def other_example(content: str, other: str, solution: str) -> str:
    """The user turn that shows another problem with its solution first."""
    return f"{guided(other, solution)} ; {content}"


CONTEXTS = {
    "none": 0.56,
    "partial": 0.12,
    "answer": 0.09,
    "answer_after_silence": 0.03,
    "trace": 0.10,
    "wrong": 0.06,
    "other": 0.04,
}
"""Share of each kind of context in the corpus. `answer_after_silence` is a whole response without
any work shown, the form that responses under a worked solution take; `wrong` is a solution that
fails, whole or partial; `other` is another problem's solution, which says nothing about this one."""


def example(index: int, seed: int, ks: Sequence[int], habits: Habits) -> tuple[str, str]:
    """The `index`-th example of the corpus: (prompt, response), a function of its arguments only.

    In a quarter of the examples the prompt already holds the beginning of a thought (failed attempts),
    and the reasoner goes on from there. The beginning is prompt, not target: the model learns to
    recover from it, not to produce it. In every fiftieth the target cannot be reached.
    """
    rng = random.Random(f"{seed}/{index}")
    while True:
        numbers, target = random_question(rng.choice(list(ks)), rng)
        if split_of(numbers, target) == "corpus":
            break
    k = len(numbers)
    content = question(numbers, target)
    kind = rng.choices(list(CONTEXTS), list(CONTEXTS.values()))[0]
    if kind == "none" and rng.random() < 1 / 28:
        unreachable = target + rng.choice((-1, 1))  # every sum of a puzzle has the same parity
        content, target = question(numbers, unreachable), unreachable

    revealed: Pattern = (BLANK,) * (k - 1)
    right = solutions(numbers, target)
    if kind in ("partial", "answer", "answer_after_silence", "trace"):
        revealed = rng.choice(right)
    if kind == "wrong":
        revealed = rng.choice([p for p in patterns(k) if p not in right] or patterns(k))
        if rng.random() < 0.5:
            revealed = reveal(revealed, rng.randint(1, k - 1), rng)
    if kind == "partial":
        revealed = reveal(revealed, rng.randint(0, k - 2), rng)

    if kind in ("partial", "answer", "wrong"):
        content = guided(content, " ".join(revealed))
    elif kind == "answer_after_silence":
        content = guided(content, " ".join(["so", THINK_END, *revealed]))
    elif kind == "trace":
        # A worked solution that ends with `revealed`: found after 0 or more failures.
        before, _ = failed_attempts(numbers, target, rng.choice((0, 1, 1, 2, 3)), rng)
        work = [CERTAINTY[rng.randrange(4)], attempt(numbers, target, revealed), SUCCESS]
        worked = " ".join([before, *work, THINK_END, *revealed]).strip()
        content = guided(content, worked)
    elif kind == "other":
        other_numbers, other_target = random_question(k, rng)
        other_pattern = solutions(other_numbers, other_target)[0]
        answer = " ".join(other_pattern)
        if k == 3 and rng.random() < 0.5:
            work = attempt(other_numbers, other_target, other_pattern)
            answer = f"{rng.choice(CERTAINTY)} {work} {SUCCESS} {THINK_END} {answer}"
        content = other_example(content, question(other_numbers, other_target), answer)

    start, tried = "", []
    if rng.random() < 0.25 and len(right) < 2 ** (k - 1):
        start, tried = failed_attempts(numbers, target, rng.randint(1, 3), rng)
    prompt = f"{content} {THINK} {start}".strip()
    if kind == "trace":
        return prompt, " ".join(["so", THINK_END, *revealed])
    return prompt, search(numbers, target, revealed, rng, habits, tried)


def vocabulary(largest_k: int) -> list[str]:
    """Every word a puzzle of up to `largest_k` numbers can need, numbers first."""
    bound = 9 * 2 * (largest_k - 1)  # the target is at most 9k; what is left at most this
    words = [THINK, THINK_END, "solution", ";", "=", *SIGNS, BLANK]
    words += [*CERTAINTY, *DOUBT, GIVE_UP, SUCCESS]
    return [str(n) for n in range(-bound, bound + 1)] + words
