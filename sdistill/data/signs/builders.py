"""TFDS builders of the signs puzzle, stored as `array_record`: no TensorFlow needed.

Everything is generated from a seed; nothing is downloaded. `split_of` keeps the corpus, the training
pools and the test sets disjoint as problems (same numbers and target).
"""

import random
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from sdistill.tasks.problem import Problem, Task
from sdistill.tasks.signs_puzzle import (
    SignsTask,
    all_questions,
    problem_from_text,
    question,
    random_question,
    split_of,
)
from sdistill.tasks.signs_reasoner import Habits, example

PROBLEM_SPLITS = ("k3_pool", "k4_pool", "k3_test", "k4_test", "k5_test")
CORPUS_SIZE = {"train": 100_000, "validation": 2_000}
DRAWN = 1_200  # puzzles of five numbers


class SignsCorpus(tfds.core.GeneratorBasedBuilder):
    """The Bayesian reasoner's traces, of puzzles of three and four numbers."""

    VERSION = tfds.core.Version("1.1.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {"prompt": tfds.features.Text(), "response": tfds.features.Text()}
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {name: self._generate_examples(name) for name in CORPUS_SIZE}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, str]]]:
        seed = list(CORPUS_SIZE).index(split)
        for index in range(CORPUS_SIZE[split]):
            prompt, response = example(index, seed, ks=(3, 4), habits=Habits())
            yield index, {"prompt": prompt, "response": response}


class SignsProblems(tfds.core.GeneratorBasedBuilder):
    """Puzzles in a fixed random order, so that the first n of a pool are nested in its first m > n.

    Splits: `k3_pool`, `k4_pool` to train on; `k3_test`, `k4_test`, `k5_test` never to be trained on.
    """

    VERSION = tfds.core.Version("1.2.0")

    @staticmethod
    def task() -> Task:
        """What verifies responses."""
        return SignsTask()

    @staticmethod
    def problem_of(record: dict[str, bytes]) -> Problem:
        """The problem that a stored record stands for."""
        return problem_from_text(record["question"].decode())

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=__doc__,
            features=tfds.features.FeaturesDict({"question": tfds.features.Text()}),
            disable_shuffling=True,  # the order is part of the data: subsets are its prefixes
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {split: self._generate_examples(int(split[1]), split[3:]) for split in PROBLEM_SPLITS}

    def _generate_examples(self, k: int, split: str) -> Iterator[tuple[int, dict[str, str]]]:
        rng = random.Random(f"{k}/{split}")
        if k <= 4:
            texts = [question(*q) for q in all_questions(k) if split_of(*q) == split]
        else:  # too many to enumerate quickly; draws are distinct with a set
            texts = sorted({question(*random_question(k, rng)) for _ in range(DRAWN)})
        rng.shuffle(texts)
        for index, text in enumerate(texts):
            yield index, {"question": text}
