import pytest

from sdistill.data import builders
from sdistill.data.catalogue import open_corpus, open_problems
from sdistill.settings import ConfigError
from sdistill.tasks.signs_puzzle import all_questions, parse_question, question, solutions, split_of
from sdistill.tasks.signs_reasoner import Habits, example

SPLITS = ("k3_pool", "k4_pool", "k3_test", "k4_test", "k5_test")


@pytest.fixture(scope="module")
def questions(data_dir):
    return {split: [p.id for p in open_problems(split, data_dir)] for split in SPLITS}


def test_every_split_holds_its_own_solvable_puzzles(questions):
    for split, texts in questions.items():
        k, owner = int(split[1]), split[3:]
        for text in texts:
            numbers, target = parse_question(text)
            assert len(numbers) == k and solutions(numbers, target) and split_of(numbers, target) == owner


def test_no_problem_is_in_two_splits_or_twice_in_one(questions):
    texts = [text for split in questions.values() for text in split]
    assert len(texts) == len(set(texts))


@pytest.mark.parametrize("k", [3, 4])
def test_splits_of_three_and_four_numbers_are_complete(questions, k):
    for split in ("pool", "test"):
        expected = {question(*q) for q in all_questions(k) if split_of(*q) == split}
        assert set(questions[f"k{k}_{split}"]) == expected


def test_the_split_of_five_numbers_is_full(questions):
    assert 1100 < len(questions["k5_test"]) <= 1200


def test_order_is_mixed_and_stays(questions, tmp_path):
    again = {split: [p.id for p in open_problems(split, tmp_path)] for split in SPLITS}
    assert again == questions
    for texts in questions.values():
        assert texts != sorted(texts)
        assert len({parse_question(text)[0][0] for text in texts[:60]}) == 9


def test_order_is_that_of_the_published_figures(questions):
    assert {split: texts[0] for split, texts in questions.items()} == {
        "k3_pool": "7 2 1 = 8",
        "k4_pool": "5 7 7 2 = -7",
        "k3_test": "1 1 5 = 5",
        "k4_test": "8 7 5 3 = -7",
        "k5_test": "5 7 7 6 6 = 5",
    }


def test_problems_are_whole(data_dir):
    problem = open_problems("k3_pool", data_dir)[0]
    assert problem.messages == ({"role": "user", "content": problem.id},)
    assert tuple(problem.answer.split()) in solutions(*parse_question(problem.id))


def test_unknown_splits_are_refused_with_those_there_are(data_dir):
    with pytest.raises(ConfigError, match="no problems are called 'k9_pool'; did you mean ") as error:
        open_problems("k9_pool", data_dir)
    assert all(split in str(error.value) for split in SPLITS)


def test_corpus_holds_the_reasoners_examples(tmp_path, monkeypatch):
    monkeypatch.setattr(builders, "CORPUS_SIZE", {"train": 40, "validation": 15})
    for seed, (split, size) in enumerate(builders.CORPUS_SIZE.items()):
        records = open_corpus(split, tmp_path)
        found = {(r["prompt"].decode(), r["response"].decode()) for r in records}
        assert len(records) == size
        assert found == {example(i, seed, (3, 4), Habits()) for i in range(size)}
    with pytest.raises(ConfigError, match="no split 'test' in signs_corpus; it has train, validation"):
        open_corpus("test", tmp_path)
