r"""Mathematics: the boxed answer of a response, compared with the reference answer by math-verify.

The answer is the last balanced `\boxed{}` after the thinking. An answer that agrees as plain text, or as an
integer, is judged at once. All others go to a worker process with a deadline, because an answer can ask more
of a computer algebra system than it can compute.
"""

import functools
import logging
import re
from typing import Any

from sdistill.settings import require
from sdistill.tasks.problem import Problem, Task, Verdict, answer_part
from sdistill.tasks.workers import WorkerDied, WorkerPool, core_count

MAX_ANSWER = 2_000  # characters of an answer that is compared; the longest answer of MATH-500 has 53
MAX_DEFAULT_WORKERS = 16  # each takes 100 MB, and 16 judge thousands of answers a second
WORKER_MEMORY = 1 << 30  # bytes; ordinary comparisons take a tenth, huge powers would take everything
PARITY_WINDOW = 100  # characters at the end of a response that the authors' code looks at


class MathematicsTask(Task):
    """Verifies boxed answers; its workers start when they are first needed.

    Attributes:
      counts: Numbers of `calls` of workers, of calls that `timed out`, and of workers that `died`.
    """

    def __init__(self, *, parity: bool = False, deadline: float = 5.0, workers: int | None = None):
        """How answers are read and compared.

        Args:
          parity: Judge as the authors' released code does: only the last box within the last 100 characters
            counts, inside the thinking or not, and it is read as a sentence that may contain an answer.
          deadline: Seconds for one comparison.
          workers: Number of processes that compare; None for one a core, and 16 at most.
        """
        require(deadline > 0, f"{deadline=} must be positive")
        require(workers is None or workers > 0, f"{workers=} must be positive")
        self._parity = parity
        self.parallel = workers or min(core_count(), MAX_DEFAULT_WORKERS)
        self._workers = WorkerPool(Comparer, count=self.parallel, deadline=deadline, memory=WORKER_MEMORY)
        self.counts = self._workers.counts

    def verify(self, problem: Problem, response: str) -> Verdict:
        """A response is correct if its answer is equivalent to the problem's."""
        parity = self._parity
        answer = parity_answer(response) if parity else last_boxed(answer_part(response))
        if answer is None:
            return Verdict(False, None, r"There is no final answer: put it in \boxed{} after the reasoning.")
        if len(answer) > MAX_ANSWER:
            return Verdict(False, f"{answer[:MAX_ANSWER]} …", "The final answer is too long to be one.")
        correct = (answer == problem.answer or None) if parity else compare_plain(problem.answer, answer)
        if correct is None:
            text = answer if parity else answer.translate(UNICODE)
            try:
                correct = self._workers.call("equivalent", problem.answer, text, parity)
            except (TimeoutError, WorkerDied) as error:
                return Verdict(False, answer, f"{answer} could not be checked: {error}.", timed_out=True)
        return Verdict(bool(correct), answer, "" if correct else f"{answer} is wrong.")

    def defect(self, answer: str) -> str | None:
        """Why a reference answer cannot be compared with; None if it can.

        Data preparation reports it: a problem with such an answer can never be solved.
        """
        if not answer.strip():
            return "it is empty"
        if len(answer) > MAX_ANSWER:
            return f"it has {len(answer)} characters, more than {MAX_ANSWER}"
        if INTEGER.fullmatch(answer):
            return None
        try:
            return self._workers.call("defect", answer)
        except (TimeoutError, WorkerDied) as error:
            return str(error)

    def close(self) -> None:
        """Ends the workers."""
        self._workers.close()


# An escaped character is one token, so that `\{` is no brace.
BOX_TOKENS = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""The content of the last balanced `\boxed{}` or `\fbox{}`; None if there is none.

    The last box is the one that begins last, so of nested boxes it is the inner one. Boxes that are never
    closed do not count, nor do blank ones, which quote the instructions. Takes one pass over any text.

    In: `so \boxed{\frac{1}{2}}, or \boxed{7`. Out: `\frac{1}{2}`.
    """
    opened: list[tuple[int, bool]] = []  # where the content of a brace begins, and whether it is a box
    start, found = -1, None
    for token in BOX_TOKENS.finditer(text):
        if token.group() == "}":
            if opened:
                begin, boxed = opened.pop()
                content = text[begin : token.start()].strip() if boxed and begin > start else ""
                if content:
                    start, found = begin, content
        elif token.group().endswith("{") and token.group() != r"\{":
            opened.append((token.end(), token.group() != "{"))
    return found


def parity_answer(response: str) -> str | None:
    """The answer as the authors' released code reads it; None also where its last box is not closed."""
    window = response[-PARITY_WINDOW:]
    start = window.rfind(r"\boxed{")
    return None if start < 0 else last_boxed(window[start:])


# Signs that math-verify does not know, or not everywhere.
UNICODE = str.maketrans(
    {"°": r"^\circ", "−": "-", "π": r"\pi ", "∞": r"\infty ", "×": r"\times ", "·": r"\cdot ", "≤": r"\le "}
    | {"≥": r"\ge ", "∪": r"\cup ", "∈": r"\in ", "±": r"\pm "}
)
WRAPPED = re.compile(r"\\(?:text(?:bf|rm|it|normal)?|mbox|math(?:rm|bf|it)) ?\{([^{}]*)\}")
COSMETIC = re.compile(r"\\(?:left|right|displaystyle)(?![a-zA-Z])|\\[,!]|\$|(?<!\d)\s+|\s+(?!\d)")
ASSIGNED = re.compile(r"^[a-zA-Z]=")
INTEGER = re.compile(r"[+-]?(?:\d{1,3}(?:(?:,|\{,\})\d{3})+|\d+)")
BASED = re.compile(r"(\d+)_\{?(\d+)\}?")


def plain(text: str) -> str:
    r"""An answer without markup that only changes its looks.

    In: `\left( \dfrac{1}{2},\, \text{even} \right).` Out: `(\frac{1}{2},even)`.
    """
    text = WRAPPED.sub(r"\1", text.translate(UNICODE))
    text = text.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac").replace(r"^{\circ}", r"^\circ")
    return COSMETIC.sub("", re.sub(r"\\[;: ]", " ", text)).rstrip(".")


def compare_plain(reference: str, answer: str) -> bool | None:
    """Whether two answers are the same; None where that takes algebra."""
    ours, theirs = plain(answer), plain(reference)
    if "=" not in theirs:
        ours = ASSIGNED.sub("", ours)
    if ours == theirs:
        return True
    if INTEGER.fullmatch(ours) and INTEGER.fullmatch(theirs):
        first, second = (int(re.sub(r"[{},]", "", number)) for number in (ours, theirs))
        return first == second
    if (mine := BASED.fullmatch(ours)) and (other := BASED.fullmatch(theirs)):  # math-verify drops the base
        return mine.groups() == other.groups()
    return None


class Comparer:
    """Compares answers by math-verify. It lives in a worker process, and only there SymPy is imported.

    math-verify's own time-outs are signals, which work in a main thread only. They are off: the owner of the
    worker keeps the time.
    """

    def __init__(self) -> None:
        import math_verify

        logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time-outs are off
        self._parse, self._verify = math_verify.parse, math_verify.verify
        self._boxed_first = (math_verify.LatexExtractionConfig(boxed_match_priority=0),)
        # A reference answer meets many responses, and responses to it often agree.
        self._read = functools.lru_cache(maxsize=4096)(self._read_uncached)

    def equivalent(self, reference: str, answer: str, parity: bool) -> bool:
        """Whether the answer means the same as the reference answer."""
        both = list(self._read(reference, parity)), list(self._read(answer, parity))
        return self._verify(*both, timeout_seconds=None)

    def defect(self, reference: str) -> str | None:
        """Why a reference answer cannot be compared with; None if it can."""
        if all(isinstance(reading, str) for reading in self._read(reference, False)):
            return "math-verify cannot parse it"
        if not self.equivalent(reference, reference, False):
            return "math-verify does not find it equal to itself"
        return None

    def _read_uncached(self, text: str, parity: bool) -> tuple[Any, ...]:
        r"""The readings of LaTeX without a box: a SymPy object if it can be parsed, and a string.

        With `parity`, it is read as a sentence that may contain an answer. LaTeX without dollar signs is then
        searched for numbers: `3\sqrt{13}` is 3, and `x+1` is nothing.
        """
        if parity:
            return tuple(self._parse(text, parsing_timeout=None))
        return tuple(self._parse(rf"\boxed{{{text}}}", self._boxed_first, parsing_timeout=None))
