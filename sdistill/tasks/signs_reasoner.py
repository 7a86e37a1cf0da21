"""The Bayesian reasoner whose traces the base model learns from.

It holds a uniform posterior over the patterns that its context leaves open, tries them in random
order without repetition, and says how sure it is: before each attempt one of `so likely perhaps
maybe` by the number still open, after each failure one of `wait hmm actually alternatively`. An
attempt is a running remainder, number and what is left, so that success is a remainder of 0:

    8 4 7 = 5 <think> perhaps 8 -3 - 4 1 + 7 -6 wait perhaps 8 -3 + 4 -7 - 7 0 yes </think> + -

What is built in here, and therefore is no finding of any study on this puzzle: certainty words go
with the number of open patterns (up to `Habits.slip`); a worked solution in the context is verified
again only half the time (`Habits.trust`); a bare answer in the context is always verified once.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from sdistill.tasks.problem import THINK_END, strip_thinking
from sdistill.tasks.signs_puzzle import (
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
      trust: Chance that a worked solution in the context is repeated without verifying it again. At 1 the
        teacher of SDPO under c = s forbids every attempt, and the student falls into loops.
    """

    give_up: float = 0.06
    slip: float = 0.08
    trust: float = 0.5


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
    words = [f"{rng.choice(CERTAINTY)} {attempt(numbers, target, p)} {rng.choice(DOUBT)}" for p in tried]
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


def finish_attempt(
    numbers: Sequence[int], target: int, revealed: Pattern, rng: random.Random
) -> tuple[str, str, Pattern]:
    """An attempt somebody else began, and how the reasoner finishes it.

    The first signs are random, as somebody else chose them; the others follow what is revealed, and are
    random where nothing is. Returns the beginning, the rest, and the pattern that came of it.
    """
    words = attempt(numbers, target, patterns(len(numbers))[0]).split()
    cut = rng.randrange(len(words))
    begun = len(range(2, cut, 3))  # signs are the words 2, 5, 8, …
    pattern = tuple(
        rng.choice(SIGNS) if position < begun or sign == BLANK else sign
        for position, sign in enumerate(revealed)
    )
    words = attempt(numbers, target, pattern).split()
    return " ".join([rng.choice(CERTAINTY), *words[:cut]]), " ".join(words[cut:]), pattern


CONTEXTS = {
    "none": 0.46,
    "partial": 0.12,
    "answer": 0.10,
    "answer_after_silence": 0.05,
    "trace": 0.15,
    "wrong": 0.06,
    "other": 0.06,
}
"""Share of each kind of context in the corpus. `trace` is a correct response of the reasoner's own;
`answer_after_silence` is one without any work shown, the form that responses under a trace take; `wrong`
is a solution that fails, whole or partial; `other` is another problem's solution, which says nothing
about this one."""

CONTINUED = 0.3
"""Share of the corpus whose prompt already holds the beginning of a thought, from which the reasoner goes
on. The beginning is prompt, not target: a model learns to recover from it, not to produce it."""

LONGEST = 192
"""Words of an example, its end included, at most; longer ones are drawn again."""

UNREACHABLE = 0.02
"""Share of the corpus whose target no pattern reaches; the reasoner tries them all and gives up."""


def draw_context(
    kind: str, numbers: Sequence[int], target: int, rng: random.Random, habits: Habits
) -> tuple[str, Pattern]:
    """A user turn with a context of this kind, and what it reveals of the solution."""
    k, content = len(numbers), question(numbers, target)
    nothing: Pattern = (BLANK,) * (k - 1)
    right = solutions(numbers, target)
    if kind == "none":
        return content, nothing
    if kind == "other":
        other, other_target = corpus_question((3, 4), rng)
        shown = " ".join(solutions(other, other_target)[0])
        if rng.random() < 0.5:
            shown = correct_trace(other, other_target, rng, habits)
        return other_example(content, question(other, other_target), shown), nothing
    if kind == "trace":
        trace = correct_trace(numbers, target, rng, habits)
        return guided(content, trace), tuple(strip_thinking(trace).split())
    if kind == "wrong":
        revealed = rng.choice([p for p in patterns(k) if p not in right])
        if rng.random() < 0.5:
            revealed = reveal(revealed, rng.randint(1, k - 1), rng)
        return guided(content, " ".join(revealed)), revealed
    revealed = rng.choice(right)
    if kind == "answer_after_silence":
        return guided(content, " ".join(["so", THINK_END, *revealed])), revealed
    if kind == "partial":
        revealed = reveal(revealed, rng.randint(0, k - 2), rng)
    return guided(content, " ".join(revealed)), revealed


def corpus_question(ks: Sequence[int], rng: random.Random) -> tuple[tuple[int, ...], int]:
    """A random puzzle that belongs to the corpus."""
    while True:
        numbers, target = random_question(rng.choice(list(ks)), rng)
        if split_of(numbers, target) == "corpus":
            return numbers, target


def correct_trace(numbers: Sequence[int], target: int, rng: random.Random, habits: Habits) -> str:
    """The reasoner's own response without context, drawn again until it is right."""
    while True:
        trace = search(numbers, target, (BLANK,) * (len(numbers) - 1), rng, habits)
        if tuple(strip_thinking(trace).split()) in solutions(numbers, target):
            return trace


def example(index: int, seed: int, ks: Sequence[int], habits: Habits) -> tuple[str, str]:
    """The `index`-th example of the corpus: (prompt, response), a function of its arguments only."""
    rng = random.Random(f"{seed}/{index}")
    while True:
        prompt, response = _draw_example(rng, ks, habits)
        if len(prompt.split()) + len(response.split()) < LONGEST:
            return prompt, response


def _draw_example(rng: random.Random, ks: Sequence[int], habits: Habits) -> tuple[str, str]:
    numbers, target = corpus_question(ks, rng)
    if rng.random() < UNREACHABLE:
        target += rng.choice((-1, 1))  # every sum of a puzzle has the same parity
        kind = "none"
    else:
        kind = rng.choices(list(CONTEXTS), list(CONTEXTS.values()))[0]
    content, revealed = draw_context(kind, numbers, target, rng, habits)
    prompt, response = [content, THINK], list[str]()
    tried: list[Pattern] = []
    if rng.random() < CONTINUED:
        start, tried = failed_attempts(numbers, target, rng.randint(0, 3), rng)
        prompt.append(start)
        if rng.random() < 0.5:
            begun, rest, pattern = finish_attempt(numbers, target, revealed, rng)
            prompt.append(begun)
            response.append(rest)
            if evaluate(numbers, pattern) == target:
                response += [SUCCESS, THINK_END, *pattern]
                return " ".join(" ".join(prompt).split()), " ".join(response)
            response.append(rng.choice(DOUBT))
            tried.append(pattern)
    if kind == "trace" and rng.random() < habits.trust:
        response += [CERTAINTY[0], THINK_END, *revealed]
    else:
        response.append(search(numbers, target, revealed, rng, habits, tried))
    return " ".join(" ".join(prompt).split()), " ".join(response)


def vocabulary(largest_k: int) -> list[str]:
    """Every word a puzzle of up to `largest_k` numbers can need, numbers first."""
    bound = 9 * 2 * (largest_k - 1)  # the target is at most 9k; what is left at most this
    words = [THINK, THINK_END, "solution", ";", "=", *SIGNS, BLANK]
    words += [*CERTAINTY, *DOUBT, GIVE_UP, SUCCESS]
    return [str(n) for n in range(-bound, bound + 1)] + words
