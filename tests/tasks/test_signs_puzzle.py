import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdistill.tasks.problem import Problem, strip_thinking
from sdistill.tasks.signs_puzzle import (
    SignsTask,
    all_questions,
    evaluate,
    make_problem,
    parse_question,
    patterns,
    problem_from_text,
    question,
    random_question,
    solutions,
    split_of,
)

NUMBERS = st.lists(st.integers(1, 9), min_size=2, max_size=6).map(tuple)


def by_python(numbers, pattern):
    signs = ("", *pattern)
    return eval("".join(f"{sign}{number}" for sign, number in zip(signs, numbers, strict=True)))


@given(NUMBERS)
def test_solutions_are_all_the_patterns_python_evaluates_to_the_target(numbers):
    candidates = list(itertools.product("+-", repeat=len(numbers) - 1))
    assert patterns(len(numbers)) == candidates
    for target in {by_python(numbers, p) for p in candidates} | {0, 99}:
        expected = [p for p in candidates if by_python(numbers, p) == target]
        assert solutions(numbers, target) == expected
    for pattern in candidates:
        assert evaluate(numbers, pattern) == by_python(numbers, pattern)


def test_evaluate_refuses_a_pattern_of_another_length():
    with pytest.raises(ValueError):
        evaluate((8, 4, 7), ("+",))


@given(NUMBERS, st.integers(-60, 60))
def test_question_round_trips(numbers, target):
    assert parse_question(question(numbers, target)) == (numbers, target)


@pytest.mark.parametrize(
    "text", ["", "8 4 7", "8 4 7 = ", "8 4 x = 3", "8 4 = 3 = 4", "8 4 7 =5", "8  4 = 12"]
)
def test_parse_question_quotes_what_is_no_puzzle(text):
    with pytest.raises(ValueError, match="not a signs puzzle") as error:
        parse_question(text)
    assert repr(text) in str(error.value)


def test_problem_carries_its_text_as_identity_and_turn():
    problem = problem_from_text("1 1 1 = 1")
    assert problem == Problem(
        "1 1 1 = 1", ({"role": "user", "content": "1 1 1 = 1"},), answer="+ -", metadata={"k": 3}
    )


def test_make_problem_refuses_an_unreachable_target():
    with pytest.raises(ValueError, match="'8 4 7 = 20' has no solution"):
        make_problem((8, 4, 7), 20)


def test_all_questions_of_two_numbers():
    expected = []
    for first, second in itertools.product(range(1, 10), repeat=2):
        expected += [((first, second), first - second), ((first, second), first + second)]
    assert list(all_questions(2)) == expected


def test_all_questions_are_distinct_and_solvable():
    questions = list(all_questions(3))
    distinct = 9**3 * 4 - 9 * 9  # two patterns agree where the last two numbers are equal
    assert len(questions) == len(set(questions)) == distinct
    assert questions == sorted(questions)
    assert all(solutions(*q) for q in questions)


@pytest.mark.parametrize("k", [3, 4, 5])
def test_random_questions_are_solvable_and_repeat_with_the_seed(k):
    draws = [random_question(k, random.Random(7)) for _ in range(2)]
    assert draws[0] == draws[1]
    rng = random.Random(0)
    many = [random_question(k, rng) for _ in range(200)]
    assert all(len(numbers) == k and solutions(numbers, target) for numbers, target in many)
    assert {n for numbers, _ in many for n in numbers} == set(range(1, 10))


def test_random_question_reaches_its_target_by_a_uniform_pattern():
    rng = random.Random(1)
    draws = [random_question(3, rng) for _ in range(4000)]
    all_plus = sum(target == sum(numbers) for numbers, target in draws)
    assert abs(all_plus / 4000 - 1 / 4) < 4 * (0.25 * 0.75 / 4000) ** 0.5


@pytest.mark.parametrize(("k", "shares"), [(3, (0.45, 0.40, 0.15)), (4, (0.80, 0.10, 0.10))])
def test_splits_have_their_shares(k, shares):
    splits = [split_of(*q) for q in all_questions(k)]
    for name, share in zip(("corpus", "pool", "test"), shares, strict=True):
        spread = (share * (1 - share) / len(splits)) ** 0.5
        assert abs(splits.count(name) / len(splits) - share) < 4 * spread


def test_five_numbers_are_for_tests_only():
    rng = random.Random(0)
    assert {split_of(*random_question(5, rng)) for _ in range(300)} == {"test"}


def test_splits_are_those_of_the_shipped_data():
    texts = ("1 1 1 = 1", "1 1 1 = 3", "1 1 2 = 0", "9 8 7 6 = 30")
    assert [split_of(*parse_question(t)) for t in texts] == ["corpus", "pool", "test", "corpus"]
    assert split_of([1, 1, 1], 1) == "corpus"


TASK = SignsTask()
PUZZLE = problem_from_text("8 4 7 = 5")


@pytest.mark.parametrize(
    ("response", "answer", "feedback"),
    [
        ("so 8 -3 </think> + -", "+ -", ""),
        ("</think>+ -", "+ -", ""),
        ("</think> - - so </think> + -", "+ -", ""),
        ("</think>  +   -  ", "+   -", ""),
        ("so 8 -3 + -", None, "no final answer"),
        ("", None, "no final answer"),
        ("</think>", "", "not 2 signs"),
        ("</think> +", "+", "not 2 signs"),
        ("</think> + - +", "+ - +", "not 2 signs"),
        ("</think> + *", "+ *", "not 2 signs"),
        ("</think> +-", "+-", "not 2 signs"),
        ("</think> - +", "- +", "gives 11"),
    ],
)
def test_verdicts(response, answer, feedback):
    verdict = TASK.verify(PUZZLE, response)
    assert (verdict.correct, verdict.answer, verdict.feedback) == (feedback == "", answer, feedback)
    assert not verdict.timed_out


@given(NUMBERS, st.data())
def test_verifier_agrees_with_python(numbers, data):
    signs = st.tuples(*[st.sampled_from("+-")] * (len(numbers) - 1))
    right, tried = data.draw(signs), data.draw(signs)
    problem = make_problem(numbers, by_python(numbers, right))
    verdict = TASK.verify(problem, f"so </think> {' '.join(tried)}")
    assert verdict.correct == (by_python(numbers, tried) == by_python(numbers, right))
    assert TASK.verify(problem, f"</think> {problem.answer}").correct


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("maybe 8 </think> + -", "+ -"),
        ("<think> a </think> b </think> c ", "c"),
        (" never closed ", "never closed"),
        ("a</think>", ""),
    ],
)
def test_strip_thinking(response, answer):
    assert strip_thinking(response) == answer


@pytest.mark.parametrize(
    ("response", "kept"),
    [
        ("so 8 -3 - 4 1 + 7 -6 wait so 8 -3 + 4 -7 - 7 0 yes </think> + -", "so 8 -3 - 4 1 + 7 -6"),
        ("so 8 -3 + 4 -7 - 7 0 yes </think> + -", None),
        ("so 8 -3 + 4 -7 - 7 0 hmm 8 -3 + 4 -7 + 7 -14 hmm", "so 8 -3 + 4 -7 - 7 0 hmm 8 -3 + 4 -7 + 7 -14"),
        ("so 8 -3 - 4 1 + 7", None),  # not finished
        ("so 8 -3 - 4 1 + 6 -5 wait", None),  # other numbers
        ("</think> 8 -3 - 4 1 + 7 -6", None),  # no thought
        ("", None),
    ],
)
def test_the_first_wrong_attempt_is_the_first_that_is_not_left_with_nothing(response, kept):
    end = TASK.first_wrong_attempt(PUZZLE, response)
    assert (None if end is None else response[:end]) == kept
