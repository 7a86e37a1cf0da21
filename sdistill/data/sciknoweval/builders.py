"""SciKnowEval: multiple choice in chemistry, physics, biology and material science, split 90 to 10.

Which questions, how they are posed and the split are those of the code released with SDPO (arXiv
2601.20802): level L3, of four or of two choices, in the order of the public file; of the n questions of
a domain, ⌈n/10⌉ are the test set, chosen by a permutation with seed 42.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from sdistill.data.problem_set import Found, ProblemSet, Tally
from sdistill.data.sources import on_the_hub
from sdistill.data.tables import Row
from sdistill.tasks.problem import Problem, Task

DOMAINS = ("biology", "chemistry", "material", "physics")
LEVEL = "L3"
TYPES = ("mcq-4-choices", "mcq-2-choices")
SEED = 42

SYSTEM = """
Given a question and four options, please select the right answer. Respond in the following format:
<reasoning>
...
</reasoning>
<answer>
...
</answer>

For the answer, only output the letter corresponding to the correct option (A, B, C, or D), and nothing \
else. Do not restate the answer text. For example, if the answer is "A", just output:
<answer>
A
</answer>
"""
"""The system prompt of the released data, to the letter."""

_RELEASED = re.compile(rf"({'|'.join(DOMAINS)})_(train|test)\.json")


class SciKnowEval(ProblemSet):
    """Questions of SciKnowEval v2; a split is `chemistry_train`, `chemistry_test` and so on.

    The split files of SDPO's code are read as well, if they are named `chemistry_test.json` and so on.
    """

    name = "sciknoweval"
    SOURCES = (
        on_the_hub(
            "hicai-zju/SciKnowEval",
            "92ef969ad0a8bd6e195e0ac18af2c46e307e0cc2",
            "data/v2/sciknoweval_test_v2.jsonl",
            None,
            "MIT",
        ),
    )

    @staticmethod
    def task() -> Task:
        """See the base class."""
        from sdistill.tasks.multiple_choice import MultipleChoiceTask

        return MultipleChoiceTask()

    def convert(self, rows: Iterator[Row], tally: Tally) -> Iterator[Found]:
        """The questions of each domain, test first."""
        of_domain: dict[str, list[Row]] = {domain: [] for domain in DOMAINS}
        for row in rows:
            if released := _RELEASED.fullmatch(row.file):
                yield "_".join(released.groups()), _released_problem(row, released[1])
                continue
            domain = row.text("domain").lower()
            if domain not in of_domain:
                raise row.error(("domain",), f"must be one of {', '.join(DOMAINS)}, not {domain!r}")
            if row.text("details", "level") != LEVEL:
                tally.drop(f"not of level {LEVEL}", _place(row))
            elif row.text("type") not in TYPES:
                tally.drop("not multiple choice", _place(row))
            else:
                of_domain[domain].append(row)
        for domain, questions in of_domain.items():
            for split, indices in split_indices(len(questions)).items():
                for index in indices:
                    yield f"{domain}_{split}", _problem(questions[index], domain, index)


def split_indices(count: int) -> dict[str, Sequence[int]]:
    """Which of `count` questions are for testing and which for training, in their order."""
    order = np.random.default_rng(SEED).permutation(count).tolist()
    tests = -(-count // 10)
    return {"test": order[:tests], "train": order[tests:]}


def _problem(row: Row, domain: str, index: int) -> Problem:
    labels, texts = row.get("choices", "label"), row.get("choices", "text")
    answer = row.text("answerKey")
    if answer not in labels:
        raise row.error(("answerKey",), f"must be one of {', '.join(labels)}, not {answer!r}")
    options = "\n".join(f"{label}: {text}" for label, text in zip(labels, texts, strict=True))
    prompt = f"{row.text('question')}\n\n{options}\nPlease reason step by step."
    return _posed(domain, index, SYSTEM, prompt, answer, "".join(labels))


def _released_problem(row: Row, domain: str) -> Problem:
    prompt = row.text("prompt")
    letters = "".join(re.findall(r"^([A-Z]): ", prompt.rpartition("\n\n")[2], re.M))
    return _posed(domain, row.get("idx"), row.get("system"), prompt, row.text("answer"), letters)


def _posed(domain: str, index: int, system: str, prompt: str, answer: str, letters: str) -> Problem:
    messages = ({"role": "system", "content": system}, {"role": "user", "content": prompt})
    return Problem(f"sciknoweval/{domain}/{index}", messages, answer, {"domain": domain, "letters": letters})


def _place(row: Row) -> str:
    return f"{row.file}, row {row.number}"
