"""All data sets, as TFDS builders stored as `array_record`, which needs no TensorFlow.

TFDS derives the folder of a prepared data set from a builder's name and version.
"""

import base64
import io
import json
import pickle
import random
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from sdistill.data.problem_set import ProblemSet, Row, Source, SplitProblem, Tally, on_the_hub
from sdistill.tasks import signs_puzzle
from sdistill.tasks.code import CodeTask
from sdistill.tasks.mathematics import MathematicsTask
from sdistill.tasks.multiple_choice import MultipleChoiceTask
from sdistill.tasks.problem import Problem
from sdistill.tasks.signs_reasoner import Habits, example

# ── Competition mathematics ───────────────────────────────────────────────────────────────────────

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
"""The last line of every prompt, as in the code released with arXiv 2603.24472."""

# DAPO-Math-17k has instructions of its own before and after the problem, which ask for another form.
DAPO_INSTRUCTIONS = re.compile(
    r"\A\s*Solve the following math problem step by step\..*?answer to the problem\.\s"
    r"|\s*Remember to put your answer on its own line after \"Answer:\"\.?\s*$",
    re.S,
)


def boxed_prompt(text: str) -> str:
    """The prompt of a problem: its text without instructions, a line end, and `INSTRUCTION`."""
    problem = DAPO_INSTRUCTIONS.sub("", text).strip().removesuffix(INSTRUCTION).strip()
    return f"{problem}\n{INSTRUCTION}"


def mathematics_problem(row: Row, name: str) -> Problem:
    """The problem of a row, in either form that public files have.

    One form is that of verl, DAPO-Math-17k and the files released with arXiv 2603.24472: `prompt` (one
    message), `reward_model.ground_truth`, `extra_info.index`. The other is plain: `problem` or `question`,
    `answer`, `unique_id` or `id`.

    Raises:
      ConfigError: naming row and column, if a row has neither form.
    """
    if {"prompt", "reward_model"} <= row.values.keys():
        messages = row.messages("prompt")
        if len(messages) != 1:
            raise row.error(("prompt",), f"must be one message, not {len(messages)}")
        text = messages[0]["content"]
        answer = row.text("reward_model", "ground_truth")
        index = row.text("extra_info", "index")
        extra = row.parsed("extra_info")
    else:
        text = row.text("question" if "question" in row.values else "problem")
        answer = row.text("answer")
        index = row.text("unique_id" if "unique_id" in row.values else "id")
        extra = row.values
    metadata = {key: extra[key] for key in ("subject", "level") if key in extra}
    prompt = ({"role": "user", "content": boxed_prompt(text)},)
    return Problem(f"{name}/{index}", prompt, answer.strip(), metadata)


class MathematicsSet(ProblemSet):
    """Competition mathematics with boxed answers; every row is a problem of the one split, `SPLIT`."""

    SPLIT: ClassVar[str] = "test"
    task = MathematicsTask

    def convert(self, rows: Iterator[Row], tally: Tally) -> Iterator[SplitProblem]:
        """See the base class."""
        return ((self.SPLIT, mathematics_problem(row, self.name)) for row in rows)

    def defects(self, answers: Sequence[str]) -> Iterable[str | None]:
        """The verifier's own check."""
        with MathematicsTask() as task:
            yield from map(task.defect, answers)


class Aime24(MathematicsSet):
    """AIME 2024: 30 problems with integer answers; the public file has every problem 32 times."""

    SOURCES = on_the_hub(
        "BytedTsinghua-SIA/AIME-2024@aa49075e24ad594b79fdf0bdcefa735c2181be67/data/aime-2024.parquet",
        "12154e38a716d12db5731f9a022ae69a610c4f7d0e0dcc04e902887a686877e7",
        "Apache-2.0",
    )


class Aime25(MathematicsSet):
    """AIME 2025, I and II: 30 problems with integer answers."""

    SOURCES = on_the_hub(
        "math-ai/aime25@563bb8404243c5f09de6ec262f2db674fe5bce9b/test.jsonl",
        "b4e273c02d3e7fe1b74b59eae768fc8230bfb0f79539890cb56f4361caac0331",
        "Apache-2.0",
    )


class Amc23(MathematicsSet):
    """AMC 12 A and B of 2023: 40 problems, reworded by the publisher so that the answers are integers."""

    SOURCES = on_the_hub(
        "math-ai/amc23@80815d37005feb82cd7f8fbc6901d5d3eff43057/test-00000-of-00001.parquet",
        "b696e87ba47be4e879a60fd4ef1d4aa522ba78c5ae013c6aff5cc9788a397c5e",
        "not declared",
    )


class Math500(MathematicsSet):
    """MATH-500: 500 problems of the MATH test set, of seven subjects and five levels; answers are LaTeX."""

    SOURCES = on_the_hub(
        "HuggingFaceH4/MATH-500@6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be/test.jsonl",
        "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132",
        "MIT",
    )


class DapoMath17k(MathematicsSet):
    """DAPO-Math-17k to train on, in English and Chinese; the file has each problem about 100 times."""

    name = "dapo_math_17k"
    SPLIT = "train"
    SOURCES = on_the_hub(
        "BytedTsinghua-SIA/DAPO-Math-17k@65877096c24ffa7abc4e4fa5edb95cf3413a5674/data/dapo-math-17k.parquet",
        "534375d6bb8630d22ab46a56e11f2ffec1d288d8f7d04099bc82d68948705941",
        "Apache-2.0",
    )


RELEASED = (
    "https://raw.githubusercontent.com/beanie00/self-distillation-analysis/"
    "5c51051aaa07513764ab66c631277816bc6520e5/data/math/section_6_2"
)
SEEN = {
    "seen_1x64": "be287350eb44f5f09f8ca0bfab958bbba8ca0bb39f53ef08ced0063ec0649b26",
    "seen_8x8": "6bfa1a84cd19143b8e1ce8230d4d82f15b447e820cc9a25a63a0e26ba69f64de",
    "seen_64": "8b5594cdeb75943f9586e6494c28e681832ee0690d86675218b4bf4aac202591",
    "seen_128": "72ad58907726ebb1af92cb1a3e2813d66c1d14ca78491da2fec719a55e2ada68",
    "seen_512": "6c92acdacedfb9ea04ff9ed27b903cb1b5d34ce17277a61fc8959b2a1a246c49",
}


class DapoMath17kSeen(MathematicsSet):
    """The nested training sets of section 6. A split is a file; `seen_512` has 511 distinct problems.

    `seen_1x64` is one problem 64 times, and so one problem with 64 copies here.
    """

    name = "dapo_math_17k_seen"
    SOURCES = tuple(Source(f"{RELEASED}/{name}.parquet", sha, "Apache-2.0") for name, sha in SEEN.items())

    def convert(self, rows: Iterator[Row], tally: Tally) -> Iterator[SplitProblem]:
        """The name of the file is the split."""
        for row in rows:
            split = row.file.removesuffix(".parquet")
            if split not in SEEN:
                raise row.error((), f"cannot be placed: the file must be named one of {', '.join(SEEN)}")
            yield split, mathematics_problem(row, DapoMath17k.name)


# ── SciKnowEval: multiple choice ──────────────────────────────────────────────────────────────────

DOMAINS = ("biology", "chemistry", "material", "physics")
LEVEL = "L3"
QUESTION_TYPES = ("mcq-4-choices", "mcq-2-choices")

SYSTEM_PROMPT = """
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

RELEASED_SPLIT = re.compile(rf"({'|'.join(DOMAINS)})_(train|test)\.json")


def split_indices(count: int) -> dict[str, Sequence[int]]:
    """The indices of `count` questions that are for testing (⌈count/10⌉) and for training, in their order."""
    test, train = np.split(np.random.default_rng(42).permutation(count), [-(-count // 10)])
    return {"test": test.tolist(), "train": train.tolist()}


class SciKnowEval(ProblemSet):
    """SciKnowEval v2 in four domains; a split is `chemistry_train`, `chemistry_test` and so on.

    Selection, prompts and split are those of the code released with SDPO (arXiv 2601.20802): level L3, four
    or two choices, in the order of the public file, with a test set chosen by a permutation with seed 42. The
    split files of that code are read as well, if they are named `chemistry_test.json` and so on.
    """

    name = "sciknoweval"
    task = MultipleChoiceTask
    SOURCES = on_the_hub(
        "hicai-zju/SciKnowEval@92ef969ad0a8bd6e195e0ac18af2c46e307e0cc2/data/v2/sciknoweval_test_v2.jsonl",
        None,
        "MIT",
    )

    def convert(self, rows: Iterator[Row], tally: Tally) -> Iterator[SplitProblem]:
        """The questions of each domain, test first."""
        of_domain: dict[str, list[Row]] = {domain: [] for domain in DOMAINS}
        for row in rows:
            if released := RELEASED_SPLIT.fullmatch(row.file):
                yield "_".join(released.groups()), _choice_problem(row, released[1], None)
                continue
            domain = row.text("domain").lower()
            if domain not in of_domain:
                raise row.error(("domain",), f"must be one of {', '.join(DOMAINS)}, not {domain!r}")
            if row.text("details", "level") != LEVEL:
                tally.drop(f"not of level {LEVEL}", f"{row.file}, row {row.number}")
            elif row.text("type") not in QUESTION_TYPES:
                tally.drop("not multiple choice", f"{row.file}, row {row.number}")
            else:
                of_domain[domain].append(row)
        for domain, questions in of_domain.items():
            for split, indices in split_indices(len(questions)).items():
                for index in indices:
                    yield f"{domain}_{split}", _choice_problem(questions[index], domain, index)


def _choice_problem(row: Row, domain: str, index: int | None) -> Problem:
    """The problem of a row of the public file, or without an index, of a released split file."""
    system = SYSTEM_PROMPT
    if index is None:
        index, system = row.get("idx"), row.get("system")
        prompt, answer = row.text("prompt"), row.text("answer")
        letters = "".join(re.findall(r"^([A-Z]): ", prompt.rpartition("\n\n")[2], re.M))
    else:
        labels, texts = row.get("choices", "label"), row.get("choices", "text")
        answer = row.text("answerKey")
        if answer not in labels:
            raise row.error(("answerKey",), f"must be one of {', '.join(labels)}, not {answer!r}")
        options = "\n".join(f"{label}: {text}" for label, text in zip(labels, texts, strict=True))
        prompt = f"{row.text('question')}\n\n{options}\nPlease reason step by step."
        letters = "".join(labels)
    messages = ({"role": "system", "content": system}, {"role": "user", "content": prompt})
    return Problem(f"sciknoweval/{domain}/{index}", messages, answer, {"domain": domain, "letters": letters})


# ── LiveCodeBench: programs ───────────────────────────────────────────────────────────────────────

FIRST_CONTEST, END_OF_CONTESTS = datetime(2025, 2, 1), datetime(2025, 5, 1)

CODE_PROMPT = """You are a coding expert. You will be given a coding problem, and you need to write a \
correct Python program that matches the specification and passes all tests. The time limit is 1 second. \
You may start by outlining your thought process. In the end, please provide the complete code \
in a code block enclosed with ```.

{problem}"""
"""The prompt of the released data, to the letter."""

SIGNATURE = "\n\nYour solution should have the following signature: ```python\n{signature}\n```"


class LiveCodeBenchV6(ProblemSet):
    """Programming problems of LiveCodeBench v6 with hidden tests.

    Selection and prompts are those of the code released with SDPO (arXiv 2601.20802): contests from February
    to April 2025, 131 problems as reported there. `metadata["tests"]` are the hidden tests, and
    `metadata["function"]` is the function that they call, if any; `tasks/code.py` describes both.
    """

    name = "livecodebench_v6"
    task = CodeTask
    SOURCES = on_the_hub(
        "livecodebench/code_generation_lite@0fe84c3912ea0c4d4a78037083943e8f0c4dd505/test6.jsonl",
        "bb4c364f71921c4495a6ad15abe1a927350b720009f4933e2e71f8af0f6fd1f5",
        "CC",
    )

    def convert(self, rows: Iterator[Row], tally: Tally) -> Iterator[SplitProblem]:
        """The problems of the chosen months."""
        for row in rows:
            date = row.text("contest_date")
            if FIRST_CONTEST <= datetime.fromisoformat(date) < END_OF_CONTESTS:
                yield "test", _code_problem(row)
            else:
                reason = f"contest before {FIRST_CONTEST:%Y-%m-%d} or after"
                tally.drop(reason, f"{row.text('question_id')}, {date}")


def _code_problem(row: Row) -> Problem:
    text, starter = row.text("question_content"), row.get("starter_code")
    if starter.strip():  # a class with `def f(self, x):`; the prompt asks for `def f(x):`
        signature = "def " + starter.partition("def ")[2].partition("Input\n")[0].strip()
        text += SIGNATURE.format(signature=signature.replace("(self, ", "("))
    metadata: dict[str, Any] = {"tests": _hidden_tests(row)}
    metadata |= {column: row.text(column) for column in ("difficulty", "platform")}
    if function := json.loads(row.get("metadata") or "{}").get("func_name"):
        metadata["function"] = function
    messages = ({"role": "user", "content": CODE_PROMPT.replace("{problem}", text)},)
    return Problem(f"livecodebench_v6/{row.text('question_id')}", messages, answer="", metadata=metadata)


def _hidden_tests(row: Row) -> list[dict[str, str]]:
    """The hidden tests, stored as JSON text, or as that text pickled, compressed and in base 64."""
    stored = row.text("private_test_cases")
    try:
        if not stored.startswith("["):
            stored = _TextUnpickler(io.BytesIO(zlib.decompress(base64.b64decode(stored)))).load()
        return [{"input": test["input"], "output": test["output"]} for test in json.loads(stored)]
    except (ValueError, TypeError, LookupError, EOFError, zlib.error, pickle.UnpicklingError) as error:
        raise row.error(("private_test_cases",), f"cannot be read: {error!r}") from error


class _TextUnpickler(pickle.Unpickler):
    """Loads text and nothing that could run: the file comes from the network."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"{module_name}.{global_name} is not text")


# ── The signs puzzle: generated from a seed ───────────────────────────────────────────────────────

PROBLEM_SPLITS = ("k3_pool", "k4_pool", "k3_test", "k4_test", "k5_test")
CORPUS_SIZE = {"train": 100_000, "validation": 2_000}
NUM_DRAWN = 1_200  # puzzles of five numbers


class SignsCorpus(tfds.core.GeneratorBasedBuilder):
    """The Bayesian reasoner's traces, of puzzles of three and four numbers, to pretrain on."""

    VERSION = tfds.core.Version("1.1.0")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return self.dataset_info_from_configs(
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict({"prompt": text, "response": text}),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        sizes = enumerate(CORPUS_SIZE.items())
        return {split: self._generate_examples(seed, size) for seed, (split, size) in sizes}

    def _generate_examples(self, seed: int, size: int) -> Iterator[tuple[int, dict[str, str]]]:
        for index in range(size):
            prompt, response = example(index, seed, ks=(3, 4), habits=Habits())
            yield index, {"prompt": prompt, "response": response}


class SignsProblems(tfds.core.GeneratorBasedBuilder):
    """Puzzles in a fixed random order, so that the first n of a pool are a subset of its first m > n.

    Splits: `k3_pool`, `k4_pool` to train on; `k3_test`, `k4_test`, `k5_test` to test on. `split_of` keeps
    them and the corpus disjoint as problems (same numbers and target).
    """

    VERSION = tfds.core.Version("1.2.0")
    task = signs_puzzle.SignsTask

    @staticmethod
    def problem_of(record: dict[str, bytes]) -> Problem:
        """The problem of a stored record."""
        return signs_puzzle.problem_from_text(record["question"].decode())

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict({"question": tfds.features.Text()}),
            disable_shuffling=True,  # the order is part of the data: subsets are its prefixes
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(int(split[1]), split[3:]) for split in PROBLEM_SPLITS}

    def _generate_examples(self, k: int, split: str) -> Iterator[tuple[int, dict[str, str]]]:
        rng = random.Random(f"{k}/{split}")
        if k <= 4:
            puzzles = [p for p in signs_puzzle.all_questions(k) if signs_puzzle.split_of(*p) == split]
            texts = [signs_puzzle.question(*puzzle) for puzzle in puzzles]
        else:  # too many to enumerate quickly; the set makes the draws distinct
            drawn = [signs_puzzle.random_question(k, rng) for _ in range(NUM_DRAWN)]
            texts = sorted({signs_puzzle.question(*puzzle) for puzzle in drawn})
        rng.shuffle(texts)
        yield from enumerate({"question": text} for text in texts)
