"""What the sets of competition mathematics share: how a problem is posed, and the forms of their rows."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from sdistill.data.problem_set import Found, GoldCheck, ProblemSet, Tally
from sdistill.data.tables import Row
from sdistill.tasks.problem import Problem, Task

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
"""The last line of every prompt, as in the code released with arXiv 2603.24472."""

# DAPO-Math-17k comes with instructions of its own, before and after the problem, which ask for another form.
_DAPO_OPENING = re.compile(
    r"\s*Solve the following math problem step by step\..*?answer to the problem\.\s", re.S
)
_DAPO_CLOSING = re.compile(r"\s*Remember to put your answer on its own line after \"Answer:\"\.?\s*$")


class MathematicsSet(ProblemSet):
    """A set of competition mathematics whose rows are all problems of one split, `SPLIT`."""

    SPLIT: ClassVar[str] = "test"

    @staticmethod
    def task() -> Task:
        """See the base class."""
        from sdistill.tasks.mathematics import MathematicsTask

        return MathematicsTask()

    def convert(self, rows: Iterator[Row], tally: Tally) -> Iterator[Found]:
        """Every row is a problem."""
        return ((self.SPLIT, mathematics_problem(row, self.name)) for row in rows)

    @contextmanager
    def gold_check(self) -> Iterator[GoldCheck | None]:
        """The verifier's own; its processes run meanwhile."""
        from sdistill.tasks.mathematics import MathematicsTask

        with MathematicsTask() as task:
            yield task.defect


def posed(text: str) -> str:
    """The prompt of a problem: its text, without the instructions it may have, a line end, `INSTRUCTION`."""
    opening = _DAPO_OPENING.match(text)
    problem = text[opening.end() :] if opening else text
    problem = _DAPO_CLOSING.sub("", problem).strip().removesuffix(INSTRUCTION).strip()
    return f"{problem}\n{INSTRUCTION}"


def mathematics_problem(row: Row, name: str) -> Problem:
    """The problem of a row, in either form that public files have.

    One is that of verl, and so of DAPO-Math-17k and of the files released with arXiv 2603.24472: `prompt`
    (one message), `reward_model.ground_truth`, `extra_info.index`. The other is plain: `problem` or
    `question`, `answer`, `unique_id` or `id`.

    Raises:
      ConfigError: naming row and column, if a row is of neither form.
    """
    if row.has("prompt", "reward_model"):
        messages = row.messages("prompt")
        if len(messages) != 1:
            raise row.error(("prompt",), f"must be one message, not {len(messages)}")
        question = messages[0]["content"]
        answer = row.text("reward_model", "ground_truth")
        index = row.text("extra_info", "index")
        about = row.parsed("extra_info")
    else:
        question = row.text("question" if row.has("question") else "problem")
        answer = row.text("answer")
        index = row.text("unique_id" if row.has("unique_id") else "id")
        about = row.values
    metadata = {key: about[key] for key in ("subject", "level") if key in about}
    prompt = ({"role": "user", "content": posed(question)},)
    return Problem(f"{name}/{index}", prompt, answer.strip(), metadata)
