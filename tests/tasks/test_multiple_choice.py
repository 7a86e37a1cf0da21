import json

import pytest

from sdistill.tasks.multiple_choice import MultipleChoiceTask, read_letter
from sdistill.tasks.problem import Problem
from tests.public_files import public_file


def posed(answer, **metadata):
    return Problem("q", ({"role": "user", "content": "?"},), answer, metadata)


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("<answer>B</answer>", "B"),
        ("<reasoning>\nA or C\n</reasoning>\n<answer>\nb\n</answer>\n", "B"),
        ("<answer>A</answer> no, <answer>C</answer>", "C"),
        ("<answer>A <answer>C</answer>", "C"),
        ("<answer>B: benzene</answer>", "B"),
        ("<answer>A or B</answer>", None),
        ("<answer>A, C</answer>", None),
        ("<answer>E</answer>", None),
        ("<answer></answer> The answer is B", None),  # the tag decides, also where it is empty
        ("<answer>A", None),
        (r"\boxed{A}, that is \boxed{\text{(D)}}", "D"),
        (r"\boxed{B. two bonds}", "B"),
        (r"<answer>A</answer> \boxed{B}", "A"),
        (r"The answer is A: \boxed{B}", "B"),
        ("The answer is (B).", "B"),
        ("the answer is **B**, since", "B"),
        (r"the answer is $\mathbf{C}$", "C"),
        ("Answer: D", "D"),
        ("Final answer: option D", "D"),
        ("The correct answer to this question is D: foo", "D"),
        ("Option A is wrong. The correct option is C.", "C"),
        ("The answer is B and not A", "B"),
        ("The answer is B. So the answer is B", "B"),
        ("The answer is A. Hmm, the answer is B", None),
        ("The answer is A or B.", None),
        ("Answer: A/B", None),
        ("The answer is not B", None),
        ("the answer is a mystery", None),
        ("B", "B"),
        ("(b).", "B"),
        ("**B**", "B"),
        ("B: benzene", "B"),
        ("(B) benzene", "B"),
        ("A, B", None),
        ("(A) and (B)", None),
        ("A catalyst is needed", None),
        ("<think>the answer is A</think>Answer: D", "D"),
        ("<think>the answer is A", None),
        ("", None),
    ],
)
def test_letters(response, letter):
    assert read_letter(response) == letter


def test_verdicts():
    task = MultipleChoiceTask()
    right = task.verify(posed("B"), "<answer>B</answer>")
    wrong = task.verify(posed("B"), "<answer>C</answer>")
    none = task.verify(posed("B"), "who knows")
    assert (right.correct, right.answer, right.feedback) == (True, "B", "")
    assert (wrong.correct, wrong.answer) == (False, "C") and "C" in wrong.feedback
    assert (none.correct, none.answer) == (False, None) and "A, B, C, D" in none.feedback
    assert not (right.timed_out or wrong.timed_out or none.timed_out)


def test_a_problem_may_have_other_letters():
    problem = posed("J", letters="ABCDEFGHIJ")
    assert MultipleChoiceTask().verify(problem, "The answer is J.").correct
    assert not MultipleChoiceTask().verify(problem, "The answer is I.").correct


@pytest.mark.parametrize("answer", ["E", "", "AB", "b"])
def test_an_answer_that_is_no_letter_is_refused(answer):
    with pytest.raises(ValueError, match=r"'q': answer=.* must be one of 'ABCD'"):
        MultipleChoiceTask().verify(posed(answer), "A")


def test_the_longest_responses_are_read_at_once():
    for text in ("<answer>" * 50_000, "answer is " * 40_000, "answer " * 60_000, "A or " * 80_000):
        assert read_letter(text) is None


def test_the_form_that_the_real_questions_ask_for():
    task = MultipleChoiceTask()
    lines = public_file("sciknoweval", "chemistry_test.json").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, lines):
        response = f"<reasoning>A, B, C and D</reasoning>\n<answer>\n{row['answer']}\n</answer>"
        assert "<answer>" in row["system"]
        assert task.verify(posed(row["answer"]), response).correct
