"""Programs: the last Python block of a response, run on tests.

What `Problem.metadata` holds, all plain JSON:

    tests       a list of {"input": text, "output": text}; all must pass
    function    the name of what is called, a function or a method of a class `Solution`; without it, a test's
                input is the program's standard input, and its output the standard output that is expected

With a function, a test's input has one JSON argument a line, and its output is the JSON of the result, as in
LiveCodeBench. The expected outputs never enter the sandbox, so no program can print its way to a pass.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation

from sdistill.settings import require
from sdistill.tasks import sandbox
from sdistill.tasks.problem import Problem, Task, Verdict, answer_part
from sdistill.tasks.sandbox import Limits, Run
from sdistill.tasks.workers import core_count

FENCE = re.compile(r"[ \t]*```[ \t]*(\w*)")
PYTHON = ("python", "python3", "py")
SHOWN = 400  # characters of an input, an output or an error that feedback quotes
LINES = 8  # and lines


@dataclass(frozen=True)
class CodeConfig:
    """How programs are judged.

    Attributes:
      limits: Of one run, that is of one test.
      parallel: Programs that run at a time; None for one a core.
    """

    limits: Limits = field(default_factory=Limits)
    parallel: int | None = None

    def __post_init__(self) -> None:
        require(self.parallel is None or self.parallel > 0, f"parallel={self.parallel} must be positive")


class CodeTask(Task):
    """Runs the program of a response on the problem's tests, one after the other, until one fails."""

    def __init__(self, config: CodeConfig | None = None):
        self._config = config or CodeConfig()
        require(sys.platform == "linux", f"platform={sys.platform!r} has no limits for programs; use Linux")

    @property
    def isolation(self) -> sandbox.Isolation:
        """What keeps programs apart from this machine."""
        return sandbox.isolation()

    def verify(self, problem: Problem, response: str) -> Verdict:
        """A response is right if its program passes all tests.

        The program is the last closed block of the answer that is fenced as Python, or where there is none,
        the last that names no language. The feedback quotes the first test that fails.

        Raises:
          ValueError: naming the problem, if its metadata is not as described above.
        """
        tests, function = read_tests(problem)
        source = python_block(answer_part(response))
        if source is None:
            return Verdict(False, None, "There is no closed ```python block in the answer.")
        for number, test in enumerate(tests, 1):
            run = sandbox.run(source, test["input"], self._config.limits, function=function)
            if not _passes(run, test["output"], function):
                told = f"Test {number} of {len(tests)} failed.\n{self._failure(run, test)}"
                return Verdict(False, source, told, timed_out=run.end == "time")
        return Verdict(True, source)

    def verify_all(self, pairs: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """Judges many responses, several at a time."""
        for problem in {id(problem): problem for problem, _ in pairs}.values():
            read_tests(problem)  # what is wrong with a problem is said before anything runs
        with ThreadPoolExecutor(self._config.parallel or core_count()) as threads:
            return list(threads.map(lambda pair: self.verify(*pair), pairs))

    def _failure(self, run: Run, test: Mapping[str, str]) -> str:
        """What the model is told of a test that failed."""
        shown = f"Input:\n{_head(test['input'])}\n"
        if run.end == "time":
            return f"{shown}It took more than {self._config.limits.seconds} seconds."
        if run.end == "failed":
            return f"{shown}Error:\n{_tail(run.error)}"
        return f"{shown}Expected:\n{_head(test['output'])}\nGot:\n{_head(run.output)}"


def read_tests(problem: Problem) -> tuple[Sequence[Mapping[str, str]], str | None]:
    """The tests of a problem, and the function they call, None for programs.

    Raises:
      ValueError: naming the problem and the field that is not as it should be.
    """
    tests, function = problem.metadata.get("tests"), problem.metadata.get("function")
    wanted = "a list, not empty, of {'input': text, 'output': text}"
    where = f"problem {problem.id!r}: metadata"
    if not isinstance(tests, Sequence) or not tests:
        raise ValueError(f"{where}['tests']={tests!r} must be {wanted}")
    for number, test in enumerate(tests):
        if not all(isinstance(test.get(name), str) for name in ("input", "output")):
            raise ValueError(f"{where}['tests'][{number}]={test!r}: tests must be {wanted}")
        if function is not None:
            try:
                for value in [*test["input"].splitlines(), test["output"]]:
                    json.loads(value or "null")
            except json.JSONDecodeError:
                raise ValueError(
                    f"{where}['tests'][{number}]={test!r} must hold JSON, one value a line"
                ) from None
    if function is not None and not (isinstance(function, str) and function.isidentifier()):
        raise ValueError(f"{where}['function']={function!r} must be the name of a function")
    return tests, function


def python_block(text: str) -> str | None:
    """The last closed Python block; None if there is none. One pass over the lines."""
    found: dict[bool, str] = {}
    language, lines = None, []
    for line in text.splitlines(keepends=True):
        fence = FENCE.match(line)
        if fence is None:
            lines.append(line)
        elif fence[1] or language is None:  # a named fence opens a block, also where one was left open
            language, lines = fence[1].lower(), []
        else:
            if language in (*PYTHON, ""):
                found[bool(language)] = "".join(lines)
            language = None
    return found.get(True, found.get(False))


def _passes(run: Run, expected: str, function: str | None) -> bool:
    if run.end != "done":
        return False
    if function is None:
        return same_output(run.output, expected)
    try:
        return json.loads(run.output) == json.loads(expected)
    except json.JSONDecodeError:  # it printed to the original standard output
        return False


def same_output(output: str, expected: str) -> bool:
    r"""Whether two outputs agree line by line: as text, or word by word as decimal numbers.

    Blanks at the ends of lines, and blank lines at the end, do not count. In: "1.0 a \n", "1 a". Out: True.
    """
    ours, theirs = ([line.split() for line in text.rstrip().split("\n")] for text in (output, expected))
    return ours == theirs or [list(map(_number, line)) for line in ours] == [
        list(map(_number, line)) for line in theirs
    ]


def _number(word: str) -> Decimal | str:
    try:
        number = Decimal(word)
    except InvalidOperation:
        return word
    return number if number.is_finite() else word


def _head(text: str) -> str:
    kept = "\n".join(text.strip().split("\n")[:LINES])[:SHOWN]
    return kept if kept == text.strip() else f"{kept} …"


def _tail(text: str) -> str:
    kept = "\n".join(text.strip().split("\n")[-LINES:])[-SHOWN:]
    return kept if kept == text.strip() else f"… {kept}"
