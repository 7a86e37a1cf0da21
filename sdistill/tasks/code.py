"""Programs: the last Python block of a response is run on tests.

`Problem.metadata` holds, as plain JSON:

    tests       a list of {"input": text, "output": text}; all must pass
    function    the name of a function, or of a method of a class `Solution`, that is called; without it, a
                test's input is standard input, and its output is the expected standard output

With a function, a test's input has one JSON argument a line, and its output is the JSON of the result, as in
LiveCodeBench. The expected outputs never enter the sandbox, so a program cannot print them.
"""

import contextlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation

from sdistill.settings import require
from sdistill.tasks import sandbox
from sdistill.tasks.problem import Problem, Task, Verdict, answer_part
from sdistill.tasks.sandbox import Limits
from sdistill.tasks.workers import core_count

FENCE = re.compile(r"[ \t]*```[ \t]*(\w*)")
PYTHON = ("python", "python3", "py")
MAX_QUOTED = 400  # characters of an input, an output or an error in the feedback
MAX_LINES = 8


class CodeTask(Task):
    """Runs the program of a response on the problem's tests, one after the other, until one fails."""

    def __init__(self, limits: Limits | None = None):
        """The limits are those of one test; one program a core runs at a time."""
        self._limits = limits or Limits()
        self.parallel = core_count()
        require(sys.platform == "linux", f"platform={sys.platform!r} has no limits for programs; use Linux")

    def verify(self, problem: Problem, response: str) -> Verdict:
        """A response is correct if its program passes all tests.

        The program is the last closed Python block of the answer, or without one, the last block that names
        no language. The feedback quotes the first test that fails.

        Raises:
          ValueError: naming the problem, if its metadata is not as described above.
        """
        tests, function = read_tests(problem)
        source = python_block(answer_part(response))
        if source is None:
            return Verdict(False, None, "There is no closed ```python block in the answer.")
        agree = same_output if function is None else _same_json
        for number, test in enumerate(tests, 1):
            run = sandbox.run(source, test["input"], self._limits, function=function)
            if run.status == "timeout":
                complaint = f"It took more than {self._limits.seconds} seconds."
            elif run.status == "failed":
                complaint = f"Error:\n{_tail(run.error)}"
            elif not agree(run.output, test["output"]):
                complaint = f"Expected:\n{_head(test['output'])}\nGot:\n{_head(run.output)}"
            else:
                continue
            feedback = f"Test {number} of {len(tests)} failed.\nInput:\n{_head(test['input'])}\n{complaint}"
            return Verdict(False, source, feedback, timed_out=run.status == "timeout")
        return Verdict(True, source)

    def verify_all(self, pairs: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """See the base class."""
        for problem in {id(problem): problem for problem, _ in pairs}.values():
            read_tests(problem)  # an error in a problem is raised before anything runs
        return super().verify_all(pairs)


def read_tests(problem: Problem) -> tuple[Sequence[Mapping[str, str]], str | None]:
    """The tests of a problem, and the function that they call; None for programs.

    Raises:
      ValueError: naming the problem and the field that is malformed.
    """
    tests, function = problem.metadata.get("tests"), problem.metadata.get("function")
    expected = "a list, not empty, of {'input': text, 'output': text}"
    where = f"problem {problem.id!r}: metadata"
    if not isinstance(tests, Sequence) or not tests:
        raise ValueError(f"{where}['tests']={tests!r} must be {expected}")
    if function is not None and not (isinstance(function, str) and function.isidentifier()):
        raise ValueError(f"{where}['function']={function!r} must be the name of a function")
    for number, test in enumerate(tests):
        this_test = f"{where}['tests'][{number}]={test!r}"
        if not all(isinstance(test.get(name), str) for name in ("input", "output")):
            raise ValueError(f"{this_test}: tests must be {expected}")
        if function is not None:
            try:
                for value in [*test["input"].splitlines(), test["output"]]:
                    json.loads(value or "null")
            except json.JSONDecodeError:
                raise ValueError(f"{this_test} must hold JSON, one value a line") from None
    return tests, function


def python_block(text: str) -> str | None:
    """The last closed Python block; None if there is none. Takes one pass over the lines."""
    found: dict[bool, str] = {}  # by whether the block names its language
    language, lines = None, []
    for line in text.splitlines(keepends=True):
        fence = FENCE.match(line)
        if fence is None:
            lines.append(line)
        elif fence[1] or language is None:  # a fence with a language opens a block, even inside another
            language, lines = fence[1].lower(), []
        else:
            if language in (*PYTHON, ""):
                found[bool(language)] = "".join(lines)
            language = None
    return found.get(True, found.get(False))


def _same_json(output: str, expected: str) -> bool:
    try:
        return json.loads(output) == json.loads(expected)
    except json.JSONDecodeError:  # it printed to the original standard output
        return False


def same_output(output: str, expected: str) -> bool:
    r"""Whether two outputs agree line by line: as text, or word by word as decimal numbers.

    Blanks at the ends of lines, and blank lines at the end, do not count. In: "1.0 a \n", "1 a". Out: True.
    """
    ours, theirs = ([line.split() for line in text.rstrip().split("\n")] for text in (output, expected))
    return ours == theirs or (
        [list(map(_number, line)) for line in ours] == [list(map(_number, line)) for line in theirs]
    )


def _number(word: str) -> Decimal | str:
    with contextlib.suppress(InvalidOperation):
        if (value := Decimal(word)).is_finite():
            return value
    return word


def _head(text: str) -> str:
    quoted = "\n".join(text.strip().split("\n")[:MAX_LINES])[:MAX_QUOTED]
    return quoted if quoted == text.strip() else f"{quoted} …"


def _tail(text: str) -> str:
    quoted = "\n".join(text.strip().split("\n")[-MAX_LINES:])[-MAX_QUOTED:]
    return quoted if quoted == text.strip() else f"… {quoted}"
