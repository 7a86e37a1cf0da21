"""LiveCodeBench v6: programming problems with hidden tests.

Which problems and how they are posed are those of the code released with SDPO (arXiv
2601.20802): contests from February to April 2025, 131 problems as reported there.
"""

import base64
import io
import json
import pickle
import zlib
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from sdistill.data.problem_set import Found, ProblemSet, Tally
from sdistill.data.sources import on_the_hub
from sdistill.data.tables import Row
from sdistill.tasks.problem import Problem, Task

FROM, UNTIL = datetime(2025, 2, 1), datetime(2025, 5, 1)

PROMPT = """You are a coding expert. You will be given a coding problem, and you need to write a correct \
Python program that matches the specification and passes all tests. The time limit is 1 second. \
You may start by outlining your thought process. In the end, please provide the complete code \
in a code block enclosed with ```.

{problem}"""
"""The prompt of the released data, to the letter."""

SIGNATURE = "\n\nYour solution should have the following signature: ```python\n{signature}\n```"


class LiveCodeBenchV6(ProblemSet):
    """Programming problems of LiveCodeBench's sixth release.

    `metadata["tests"]` are the hidden tests, and `metadata["function"]` is what they call, where they call
    one; `tasks.code` describes both.
    """

    name = "livecodebench_v6"
    SOURCES = (
        on_the_hub(
            "livecodebench/code_generation_lite",
            "0fe84c3912ea0c4d4a78037083943e8f0c4dd505",
            "test6.jsonl",
            "bb4c364f71921c4495a6ad15abe1a927350b720009f4933e2e71f8af0f6fd1f5",
            "CC",
        ),
    )

    @staticmethod
    def task() -> Task:
        """See the base class."""
        from sdistill.tasks.code import CodeTask

        return CodeTask()

    def convert(self, rows: Iterator[Row], tally: Tally) -> Iterator[Found]:
        """The problems of the months that are asked for."""
        for row in rows:
            date = row.text("contest_date")
            if FROM <= datetime.fromisoformat(date) < UNTIL:
                yield "test", _problem(row)
            else:
                tally.drop(f"contest before {FROM:%Y-%m-%d} or after", f"{row.text('question_id')}, {date}")


def _problem(row: Row) -> Problem:
    text = row.text("question_content")
    starter = row.get("starter_code")
    if starter.strip():
        text += SIGNATURE.format(signature=_signature(starter))
    metadata = {
        "tests": _tests(row),
        "difficulty": row.text("difficulty"),
        "platform": row.text("platform"),
    }
    if function := json.loads(row.get("metadata") or "{}").get("func_name"):
        metadata["function"] = function
    return Problem(
        id=f"livecodebench_v6/{row.text('question_id')}",
        messages=({"role": "user", "content": PROMPT.replace("{problem}", text)},),
        answer="",  # there is no reference solution
        metadata=metadata,
    )


def _signature(starter: str) -> str:
    """The function to write, not as a method. In: a class with `def f(self, x):`. Out: `def f(x):`."""
    after = starter.partition("def ")[2].partition("Input\n")[0]
    return f"def {after.strip()}".replace("(self, ", "(")


def _tests(row: Row) -> list[dict[str, str]]:
    """The hidden tests, which are JSON text, or that text pickled, compressed and in base 64."""
    stored = row.text("private_test_cases")
    try:
        if not stored.startswith("["):
            stored = _TextOnly(io.BytesIO(zlib.decompress(base64.b64decode(stored)))).load()
        return [{"input": test["input"], "output": test["output"]} for test in json.loads(stored)]
    except (ValueError, TypeError, LookupError, EOFError, zlib.error, pickle.UnpicklingError) as error:
        raise row.error(("private_test_cases",), f"cannot be read: {error!r}") from error


class _TextOnly(pickle.Unpickler):
    """Loads text and nothing that could run: the file comes from the network."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"{module_name}.{global_name} is not text")
