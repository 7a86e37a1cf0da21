import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdistill.config import ContextConfig, FeedbackConfig
from sdistill.contexts import (
    contrastive_turns,
    demonstration,
    first_other_success,
    teacher_turn,
    teacher_turns,
)
from sdistill.settings import ConfigError
from sdistill.tasks.signs_puzzle import problem_from_text
from tests import tiny

FIRST, SECOND, THIRD = (problem_from_text(t) for t in ("1 1 1 = 1", "8 4 7 = 5", "2 2 2 = 6"))
TEMPLATES = {"template": "{prompt} solution {solution}", "example_template": "{example} ; {prompt}"}
TRACE = "likely 1 0 + 1 -1 wait so 1 0 </think> + - + -"


@pytest.mark.parametrize(
    ("correct", "teachers"),
    [
        ([0, 1, 1], [1, 2, 1]),
        ([1, 0, 1, 1], [2, 0, 0, 0]),
        ([0, 0, 1], [2, 2, None]),
        ([0, 0], [None, None]),
        ([1], [None]),
    ],
)
def test_the_teacher_is_the_first_other_success(correct, teachers):
    assert [first_other_success(correct, own) for own in range(len(correct))] == teachers


@pytest.mark.parametrize(
    ("kind", "fraction", "shown"),
    [
        ("solution", None, TRACE),
        ("other_problem", None, TRACE),
        ("answer", None, "+ - + -"),
        ("partial", 0.0, "_ _ _ _"),
        ("partial", 0.25, "+ _ _ _"),
        ("partial", 0.26, "+ - _ _"),
        ("partial", 0.5, "+ - _ _"),
        ("partial", 1.0, "+ - + -"),
        ("partial_solution", 0.0, ""),
        ("partial_solution", 0.5, "likely 1 0 + 1 -1 wait so"),
        ("partial_solution", 1.0, TRACE),
    ],
)
def test_demonstration(kind, fraction, shown):
    assert demonstration(ContextConfig(kind, fraction), TRACE) == shown


@given(st.integers(1, 12), st.integers(0, 100))
def test_partial_rounds_up(words, percent):
    shown = demonstration(ContextConfig("partial", percent / 100), "</think> " + " ".join("x" * words))
    assert shown.split().count("x") == -(-percent * words // 100)
    assert len(shown.split()) == words


def test_guided_content():
    assert (
        teacher_turn(ContextConfig("answer", **TEMPLATES), FIRST, "so </think> + -")
        == "1 1 1 = 1 solution + -"
    )
    other = teacher_turn(ContextConfig("other_problem", **TEMPLATES), FIRST, "so </think> + -", SECOND)
    assert other == "8 4 7 = 5 solution so </think> + - ; 1 1 1 = 1"


def test_templates_are_the_users():
    config = ContextConfig("answer", template="{solution} solves {prompt}")
    assert teacher_turn(config, FIRST, "</think> + -") == "+ - solves 1 1 1 = 1"
    config = ContextConfig(
        "other_problem", template="<{prompt}: {solution}>", example_template="{prompt}! {example}"
    )
    assert teacher_turn(config, FIRST, "a", SECOND) == "1 1 1 = 1! <8 4 7 = 5: a>"


def test_braces_in_responses_are_text():
    assert (
        teacher_turn(ContextConfig("solution", **TEMPLATES), FIRST, "{0} {prompt} }")
        == "1 1 1 = 1 solution {0} {prompt} }"
    )
    shown = teacher_turn(ContextConfig("other_problem", **TEMPLATES), FIRST, "{x}", SECOND)
    assert shown == "8 4 7 = 5 solution {x} ; 1 1 1 = 1"


@pytest.mark.parametrize("source", [None, FIRST])
def test_another_problem_must_be_another(source):
    with pytest.raises(ConfigError, match="needs another problem"):
        teacher_turn(ContextConfig("other_problem", **TEMPLATES), FIRST, "a", source)


def groups(*rows):
    """In: `("a", "B", "c")`, a group whose capital letters are correct. Out: its responses."""
    return [[tiny.response(text=text.lower(), correct=text.isupper()) for text in row] for row in rows]


def test_siblings_are_shown_and_the_lone_success_is_left_alone():
    contents = teacher_turns(ContextConfig("solution", **TEMPLATES), [FIRST, SECOND], groups("aBC", "deF"))
    first, second = "1 1 1 = 1 solution ", "8 4 7 = 5 solution "
    assert contents == [first + "b", first + "c", first + "b", second + "f", second + "f", None]


def test_nobody_solved_it():
    assert teacher_turns(ContextConfig("answer"), [FIRST], groups("ab")) == [None, None]


def test_another_problem_is_the_next_solved_one_going_round():
    contents = teacher_turns(
        ContextConfig("other_problem", **TEMPLATES),
        [FIRST, FIRST, SECOND, THIRD],
        groups("aB", "CD", "ef", "gH"),
    )
    third, first = "2 2 2 = 6 solution h ; ", "1 1 1 = 1 solution b ; "
    assert contents == [
        *[third + "1 1 1 = 1"] * 4,
        *[third + "8 4 7 = 5"] * 2,
        *[first + "2 2 2 = 6"] * 2,
    ]


def test_no_other_problem_was_solved():
    contents = teacher_turns(ContextConfig("other_problem"), [FIRST, FIRST], groups("A", "B"))
    assert contents == [None, None]


def test_hints_are_the_first_other_success_and_the_other_failures_in_order():
    contents = contrastive_turns(
        ContextConfig("answer", **TEMPLATES), [FIRST, SECOND], groups("aBcd", "EFGh"), hints=2
    )
    first = [
        [hint and f"1 1 1 = 1 solution {hint}" for hint in row]
        for row in ("bcd", [None, *"ac"], "bad", "bac")
    ]
    second = [
        [hint and f"8 4 7 = 5 solution {hint}" for hint in row]
        for row in (["f", "h", None], ["e", "h", None], ["e", "h", None], ["e", None, None])
    ]
    assert contents == [*first, *second]


@pytest.mark.parametrize("with_solution", [None, "{prompt}: {solution}, {feedback}"])
def test_only_failures_are_shown_feedback_and_only_their_own(with_solution):
    feedback = FeedbackConfig("{prompt}! {feedback}", with_solution)
    said = [["cut", "well"], ["", "late"]]
    rows = [
        [dataclasses.replace(response, feedback=text) for response, text in zip(group, texts, strict=True)]
        for group, texts in zip(groups("aB", "cd"), said, strict=True)
    ]
    context = ContextConfig("solution", feedback=feedback, **TEMPLATES)
    contents = teacher_turns(context, [FIRST, SECOND], rows)
    both = "1 1 1 = 1 solution b" if with_solution is None else "1 1 1 = 1: b, cut"
    assert contents == [both, None, None, "8 4 7 = 5! late"]
