r"""Mathematics: the boxed answer of a response, compared with the gold answer by math-verify.

What is read: the last balanced `\boxed{}` after the thinking (`problem.answer_part`, `boxed.last_boxed`).
What agrees with the gold answer as plain text, or as an integer, is judged at once; all else goes to a worker
process with a deadline, because a computer algebra system can be asked for more than it can do.
"""

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sdistill.settings import require, require_positive
from sdistill.tasks.boxed import last_boxed
from sdistill.tasks.problem import Problem, Task, Verdict, answer_part
from sdistill.tasks.workers import WorkerDied, Workers, core_count

LONGEST = 2_000  # characters of an answer that is compared; the longest gold answer of MATH-500 has 53
MOST_WORKERS = 16  # where it is not said: each takes 100 MB, and these judge thousands of answers a second
PARITY_WINDOW = 100  # characters at the end of a response that the authors' code looks at

# Signs that math-verify does not know, or not everywhere.
_UNICODE = str.maketrans(
    {"°": r"^\circ", "−": "-", "π": r"\pi ", "∞": r"\infty ", "×": r"\times ", "·": r"\cdot ", "≤": r"\le "}
    | {"≥": r"\ge ", "∪": r"\cup ", "∈": r"\in ", "±": r"\pm "}
)
_WRAPPED = re.compile(r"\\(?:text(?:bf|rm|it|normal)?|mbox|math(?:rm|bf|it)) ?\{([^{}]*)\}")
_COSMETIC = re.compile(r"\\(?:left|right|displaystyle)(?![a-zA-Z])|\\[,!]|\$|(?<!\d)\s+|\s+(?!\d)")
_ASSIGNED = re.compile(r"^[a-zA-Z]=")
_INTEGER = re.compile(r"[+-]?(?:\d{1,3}(?:(?:,|\{,\})\d{3})+|\d+)")
_BASED = re.compile(r"(\d+)_\{?(\d+)\}?")


@dataclass(frozen=True)
class MathematicsConfig:
    """How answers are read and compared.

    Attributes:
      parity: As the authors' released code does, where only the last box within the last 100 characters
        counts, thinking or not, and is compared as a sentence that may hold an answer.
      deadline: Seconds a comparison may take.
      workers: Processes that compare; None for one a core, and 16 at most.
    """

    parity: bool = False
    deadline: float = 5.0
    workers: int | None = None

    def __post_init__(self) -> None:
        require_positive(self, "deadline")
        require(self.workers is None or self.workers > 0, f"workers={self.workers} must be positive")


class MathematicsTask(Task):
    """Judges boxed answers; its workers start with the first one that needs them."""

    def __init__(self, config: MathematicsConfig | None = None):
        self._config = config or MathematicsConfig()
        self._workers = Workers(
            "sdistill.tasks.equivalence",
            count=self._config.workers or min(core_count(), MOST_WORKERS),
            deadline=self._config.deadline,
        )

    def verify(self, problem: Problem, response: str) -> Verdict:
        """A response is right if its answer is equivalent to the problem's."""
        answer = parity_answer(response) if self._config.parity else last_boxed(answer_part(response))
        if answer is None:
            return Verdict(False, None, r"There is no final answer: put it in \boxed{} after the reasoning.")
        if len(answer) > LONGEST:
            return Verdict(False, f"{answer[:LONGEST]} …", "The final answer is too long to be one.")
        correct = self._compare_at_once(problem.answer, answer)
        if correct is None:
            text = answer if self._config.parity else answer.translate(_UNICODE)
            try:
                correct = self._workers.ask(["equivalent", problem.answer, text, self._config.parity])
            except (TimeoutError, WorkerDied) as error:
                return Verdict(False, answer, f"{answer} could not be checked: {error}.", timed_out=True)
        return Verdict(bool(correct), answer, "" if correct else f"{answer} is wrong.")

    def verify_all(self, pairs: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """Judges many responses, as many at a time as there are workers."""
        with ThreadPoolExecutor(self._workers.count) as threads:
            return list(threads.map(lambda pair: self.verify(*pair), pairs))

    def defect(self, answer: str) -> str | None:
        """Why a gold answer cannot be verified against; None if it can.

        For those who prepare data: a problem with such an answer can never be solved.
        """
        if not answer.strip():
            return "it is empty"
        if len(answer) > LONGEST:
            return f"it has {len(answer)} characters, more than {LONGEST}"
        if _INTEGER.fullmatch(answer):
            return None
        try:
            return self._workers.ask(["defect", answer])
        except (TimeoutError, WorkerDied) as error:
            return str(error)

    @property
    def counts(self) -> Mapping[str, int]:
        """How many answers were `asked` about in workers, `timed out`, and how many workers `died`."""
        return self._workers.counts

    def close(self) -> None:
        """Ends the workers."""
        self._workers.close()

    def _compare_at_once(self, gold: str, answer: str) -> bool | None:
        """The verdict where no algebra is needed, None where it is."""
        if self._config.parity:
            return True if answer == gold else None
        ours, theirs = plain(answer), plain(gold)
        if "=" not in theirs:
            ours = _ASSIGNED.sub("", ours)
        if ours == theirs:
            return True
        if _INTEGER.fullmatch(ours) and _INTEGER.fullmatch(theirs):
            return _integer(ours) == _integer(theirs)
        mine, other = _BASED.fullmatch(ours), _BASED.fullmatch(theirs)
        if mine and other:  # math-verify drops the base
            return mine.groups() == other.groups()
        return None


def parity_answer(response: str) -> str | None:
    """The answer as the authors' released code reads it; None where its last box is not closed, too."""
    window = response[-PARITY_WINDOW:]
    start = window.rfind(r"\boxed{")
    return None if start < 0 else last_boxed(window[start:])


def plain(text: str) -> str:
    r"""An answer without what changes its looks only.

    In: `\left( \dfrac{1}{2},\, \text{even} \right).` Out: `(\frac{1}{2},even)`.
    """
    text = (
        _WRAPPED.sub(r"\1", text.translate(_UNICODE))
        .replace(r"\dfrac", r"\frac")
        .replace(r"\tfrac", r"\frac")
    )
    text = re.sub(r"\\[;: ]", " ", text.replace(r"^{\circ}", r"^\circ"))
    return _COSMETIC.sub("", text).removesuffix(".")


def _integer(text: str) -> int:
    return int(re.sub(r"[{},]", "", text))
