"""The Bayesian reasoner whose traces the base model learns from.

It holds a uniform posterior over the patterns that its context leaves open, and tries them in random order
without repetition. Words tell its certainty: before each attempt one of `so likely perhaps maybe`, by the
number of open patterns, and after each failure one of `wait hmm actually alternatively`. An attempt is a
running remainder, number and rest, so that success is a remainder of 0:

    8 4 7 = 5 <think> perhaps 8 -3 - 4 1 + 7 -6 wait perhaps 8 -3 + 4 -7 - 7 0 yes </think> + -

What is built in here is no finding of any study on this puzzle: words of certainty follow the number of open
patterns (up to `Habits.slip`); a worked solution in the context is verified again only half the time
(`Habits.trust`); a bare answer in the context is always verified once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from sdistill.tasks import signs_puzzle
from sdistill.tasks.problem import THINK_END, strip_thinking
from sdistill.tasks.signs_puzzle import BLANK, SIGNS, Numbers, Pattern, Puzzle, evaluate, patterns, solutions

CERTAINTY = ("so", "likely", "perhaps", "maybe")
DOUBT = ("wait", "hmm", "actually", "alternatively")
GIVE_UP = "seems"
SUCCESS = "yes"
THINK = "<think>"

CONTEXTS = {"none": 0.46, "partial": 0.12, "answer": 0.10, "answer_after_silence": 0.05}
CONTEXTS |= {"trace": 0.15, "wrong": 0.06, "other": 0.06}
"""Share of each kind of context in the corpus. `trace` is a correct response of the reasoner;
`answer_after_silence` is one without any work, the form of responses under a trace; `wrong` is a solution
that fails, whole or partial; `other` is another problem's solution, which says nothing about this one."""

CONTINUED = 0.3
"""Share of the corpus whose prompt contains the beginning of a thought, which the reasoner continues. The
beginning is prompt, not target: a model learns to recover from it, not to produce it."""

UNREACHABLE = 0.02
"""Share of the corpus whose target no pattern reaches; the reasoner tries them all and gives up."""

MAX_WORDS = 192
"""Of an example, with its end; longer examples are drawn again."""


@dataclass(frozen=True)
class Habits:
    """How the reasoner behaves, as probabilities.

    Attributes:
      give_up: At each failure, to stop and guess among the patterns left.
      slip: At each attempt, to sound more certain than it is. Then the corpus has traces that go on after a
        confident mistake; without them a model trained to be confident never recovers.
      trust: To repeat a worked solution in the context without verifying it. At 1 the teacher of SDPO under
        c = s forbids every attempt, and the student falls into loops.
    """

    give_up: float = 0.06
    slip: float = 0.08
    trust: float = 0.5


def certainty(num_open: int) -> str:
    """1 `so`, 2 `likely`, 3 or 4 `perhaps`, more `maybe`."""
    return CERTAINTY[min((num_open - 1).bit_length(), 3)]


def attempt(numbers: Numbers, target: int, pattern: Pattern) -> str:
    """A pattern worked out. In: (8, 4, 7), 5, ("-", "+"). Out: `8 -3 - 4 1 + 7 -6`."""
    rest = target - numbers[0]
    words = [str(numbers[0]), str(rest)]
    for sign, number in zip(pattern, numbers[1:], strict=True):
        rest += -number if sign == "+" else number
        words += [sign, str(number), str(rest)]
    return " ".join(words)


def consistent(pattern: Pattern, revealed: Pattern) -> bool:
    """Whether a pattern agrees with a partial one, in which `_` is unknown."""
    return all(r in (BLANK, p) for p, r in zip(pattern, revealed, strict=True))


def search(
    numbers: Numbers,
    target: int,
    revealed: Pattern,
    rng: Random,
    habits: Habits,
    tried: Sequence[Pattern] = (),
) -> str:
    """The reasoner's thought and answer, given the `revealed` signs and the patterns already `tried`.

    When every pattern that agrees with the revealed signs has failed, the reasoner stops believing them and
    tries all others; when all have failed, it gives up with a guess.
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


def correct_trace(numbers: Numbers, target: int, rng: Random, habits: Habits) -> str:
    """The reasoner's response without context, drawn again until it is correct."""
    while True:
        trace = search(numbers, target, (BLANK,) * (len(numbers) - 1), rng, habits)
        if tuple(strip_thinking(trace).split()) in solutions(numbers, target):
            return trace


def failed_attempts(numbers: Numbers, target: int, count: int, rng: Random) -> tuple[str, list[Pattern]]:
    """Attempts of somebody else, who may repeat himself and sound certain without reason."""
    wrong = [p for p in patterns(len(numbers)) if evaluate(numbers, p) != target]
    tried = [rng.choice(wrong) for _ in range(count)]
    words = [f"{rng.choice(CERTAINTY)} {attempt(numbers, target, p)} {rng.choice(DOUBT)}" for p in tried]
    return " ".join(words), tried


def finish_attempt(numbers: Numbers, target: int, revealed: Pattern, rng: Random) -> tuple[str, str, Pattern]:
    """An attempt that somebody else began: its beginning, the reasoner's rest, and the whole pattern.

    The signs of the beginning are random; the others follow the revealed signs, and are random without them.
    """
    words = attempt(numbers, target, patterns(len(numbers))[0]).split()
    cut = rng.randrange(len(words))
    num_begun = len(range(2, cut, 3))  # signs are the words 2, 5, 8, …
    pattern = tuple(
        rng.choice(SIGNS) if position < num_begun or sign == BLANK else sign
        for position, sign in enumerate(revealed)
    )
    words = attempt(numbers, target, pattern).split()
    return " ".join([rng.choice(CERTAINTY), *words[:cut]]), " ".join(words[cut:]), pattern


def reveal(pattern: Pattern, count: int, rng: Random) -> Pattern:
    """A partial pattern: `count` of its signs, and `_` for the others."""
    visible = set(rng.sample(range(len(pattern)), count))
    return tuple(sign if i in visible else BLANK for i, sign in enumerate(pattern))


def draw_context(kind: str, puzzle: Puzzle, rng: Random, habits: Habits) -> tuple[str, Pattern]:
    """A user turn with a context of this kind, and the signs that it reveals."""
    k, content, right = len(puzzle[0]), signs_puzzle.question(*puzzle), solutions(*puzzle)
    nothing: Pattern = (BLANK,) * (k - 1)
    if kind == "none":
        return content, nothing
    if kind == "other":
        other = corpus_question((3, 4), rng)
        solution = " ".join(solutions(*other)[0])
        if rng.random() < 0.5:
            solution = correct_trace(*other, rng, habits)
        return f"{signs_puzzle.question(*other)} solution {solution} ; {content}", nothing
    if kind == "trace":
        solution = correct_trace(*puzzle, rng, habits)
        return f"{content} solution {solution}", tuple(strip_thinking(solution).split())
    if kind == "wrong":
        revealed = rng.choice([p for p in patterns(k) if p not in right])
        if rng.random() < 0.5:
            revealed = reveal(revealed, rng.randint(1, k - 1), rng)
    else:
        revealed = rng.choice(right)
        if kind == "partial":
            revealed = reveal(revealed, rng.randint(0, k - 2), rng)
    silence = ["so", THINK_END] if kind == "answer_after_silence" else []
    return " ".join([content, "solution", *silence, *revealed]), revealed


def corpus_question(ks: Sequence[int], rng: Random) -> Puzzle:
    """A random puzzle of the corpus."""
    while True:
        puzzle = signs_puzzle.random_question(rng.choice(ks), rng)
        if signs_puzzle.split_of(*puzzle) == "corpus":
            return puzzle


def example(index: int, seed: int, ks: Sequence[int], habits: Habits) -> tuple[str, str]:
    """The `index`-th example of the corpus: (prompt, response), a function of its arguments only."""
    rng = Random(f"{seed}/{index}")
    while True:
        prompt, response = (" ".join(" ".join(parts).split()) for parts in _draw_example(rng, ks, habits))
        if len(prompt.split()) + len(response.split()) < MAX_WORDS:
            return prompt, response


def _draw_example(rng: Random, ks: Sequence[int], habits: Habits) -> tuple[list[str], list[str]]:
    numbers, target = corpus_question(ks, rng)
    if rng.random() < UNREACHABLE:
        target += rng.choice((-1, 1))  # every sum of a puzzle has the same parity
        kind = "none"
    else:
        kind = rng.choices(list(CONTEXTS), list(CONTEXTS.values()))[0]
    content, revealed = draw_context(kind, (numbers, target), rng, habits)
    prompt, response = [content, THINK], list[str]()
    tried: list[Pattern] = []
    if rng.random() < CONTINUED:
        start, tried = failed_attempts(numbers, target, rng.randint(0, 3), rng)
        prompt.append(start)
        if rng.random() < 0.5:
            beginning, rest, pattern = finish_attempt(numbers, target, revealed, rng)
            prompt.append(beginning)
            response.append(rest)
            if evaluate(numbers, pattern) == target:
                return prompt, [*response, SUCCESS, THINK_END, *pattern]
            response.append(rng.choice(DOUBT))
            tried.append(pattern)
    if kind == "trace" and rng.random() < habits.trust:
        return prompt, [*response, CERTAINTY[0], THINK_END, *revealed]
    return prompt, [*response, search(numbers, target, revealed, rng, habits, tried)]


def vocabulary(largest_k: int) -> list[str]:
    """Every word of puzzles of up to `largest_k` numbers, numbers first."""
    bound = 9 * 2 * (largest_k - 1)  # of remainders; targets are at most 9k
    words = [THINK, THINK_END, "solution", ";", "=", *SIGNS, BLANK]
    words += [*CERTAINTY, *DOUBT, GIVE_UP, SUCCESS]
    return [str(n) for n in range(-bound, bound + 1)] + words
