import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdistill.tasks.code import CodeTask, python_block, same_output
from sdistill.tasks.problem import Problem
from sdistill.tasks.sandbox import Limits

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are confined on Linux only")

TASK = CodeTask(Limits(seconds=1, wall_seconds=10.0))


def posed(tests, **metadata):
    given_tests = [{"input": given, "output": wanted} for given, wanted in tests]
    return Problem("p", ({"role": "user", "content": "?"},), "", {"tests": given_tests, **metadata})


def fenced(source, language="python"):
    return f"Here it is.\n\n```{language}\n{source}\n```\nDone."


SUM = posed([("1 2\n", "3"), ("5 6\n", "11\n"), ("0 0", "0")])
PAIR = posed([("[3, 2, 4]\n6", "[1, 2]"), ("[1, 1]\n2", "[0, 1]")], function="pair")

PAIR_METHOD = """class Solution:
    def pair(self, numbers: List[int], target: int) -> List[int]:
        print("looking")  # is no result
        for i, j in combinations(range(len(numbers)), 2):
            if numbers[i] + numbers[j] == target:
                return (i, j)"""
PAIR_FUNCTION = (
    PAIR_METHOD.replace("class Solution:\n", "")
    .replace("    def pair(self, ", "def pair(")
    .replace("\n        ", "\n    ")
)


@pytest.mark.parametrize(
    ("problem", "source"),
    [
        (SUM, "a, b = map(int, input().split())\nprint(a + b)"),
        (SUM, "import sys\nprint(sum(map(int, sys.stdin.read().split())))"),
        (SUM, "if __name__ == '__main__':\n    print(float(sum(map(int, input().split()))), ' ')"),
        (PAIR, PAIR_METHOD),
        (PAIR, PAIR_FUNCTION),
    ],
)
def test_programs_that_pass(problem, source):
    verdict = TASK.verify(problem, fenced(source))
    assert (verdict.correct, verdict.answer.strip(), verdict.feedback, verdict.timed_out) == (
        True,
        source,
        "",
        False,
    )


def test_the_first_failing_test_is_told():
    verdict = TASK.verify(SUM, fenced("a, b = map(int, input().split())\nprint(a * b + 1)"))
    assert not verdict.correct and not verdict.timed_out
    assert verdict.feedback == "Test 2 of 3 failed.\nInput:\n5 6\nExpected:\n11\nGot:\n31"


def test_an_error_is_told_with_its_line():
    verdict = TASK.verify(SUM, fenced("a, b = map(int, input().split())\nprint(a / (b - 2))"))
    assert verdict.feedback.startswith("Test 1 of 3 failed.\nInput:\n1 2\nError:\nTraceback")
    assert 'File "solution.py", line 2' in verdict.feedback and "ZeroDivisionError" in verdict.feedback


def test_a_program_that_takes_too_long_is_told_so():
    task = CodeTask(Limits(seconds=1, wall_seconds=0.5))
    verdict = task.verify(SUM, fenced("while True: pass"))
    assert verdict.timed_out and not verdict.correct
    assert verdict.feedback == "Test 1 of 3 failed.\nInput:\n1 2\nIt took more than 1 seconds."


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (PAIR_METHOD.replace("== target", "== target + 1"), "Expected:\n[1, 2]\nGot:\n"),
        (PAIR_METHOD.replace("pair", "other"), "no function 'pair'"),
        ("def pair(numbers, target): return {1, 2}", "not JSON serializable"),
        ("def pair(numbers): return [1, 2]", "TypeError"),
        ("def pair(numbers, target): exit()", "Got:\n"),
        ("print('[1, 2]')", "no function 'pair'"),
    ],
)
def test_functions_that_fail(source, told):
    verdict = TASK.verify(PAIR, fenced(source))
    assert not verdict.correct and told in verdict.feedback


def test_long_inputs_and_outputs_are_cut():
    problem = posed([("\n".join(map(str, range(1000))), "x" * 5000)])
    verdict = TASK.verify(problem, fenced("print('y\\n' * 3000)"))
    assert "0\n1\n2" in verdict.feedback and verdict.feedback.count("…") == 3
    assert len(verdict.feedback) < 1000


@pytest.mark.parametrize(
    ("response", "block"),
    [
        ("```python\na\n```", "a\n"),
        ("```python\na\n```\nbetter:\n```py\nb\n```", "b\n"),
        ("```python3\na\n```\nprints\n```\n1 2\n```", "a\n"),  # an unnamed block does not replace it
        ("```\na\n```", "a\n"),
        ("```cpp\na\n```", None),
        ("```python\na\n```\nor\n```cpp\nb\n```", "a\n"),
        ("```python\na", None),  # cut off
        ("```python\na\n```python\nb\n```", "b\n"),
        ("```Python title=x\na\n```", "a\n"),
        ("```python\n```", ""),
        ("  ```python\n  a\n  ```", "  a\n"),
        ("no code", None),
    ],
)
def test_the_last_python_block(response, block):
    assert python_block(response) == block


def test_blocks_of_the_thinking_do_not_count():
    verdict = TASK.verify(SUM, f"<think>{fenced('print(3)')}</think> I do not know.")
    assert (verdict.correct, verdict.answer) == (False, None) and "```python" in verdict.feedback


def test_long_responses_are_read_at_once():
    start = time.process_time()
    for text in (
        "```python\n" * 40_000,
        "` " * 200_000,
        "```\n" * 100_001,
        " ```python" * 40_000,
        " " * 400_000,
    ):
        python_block(text)
    assert time.process_time() - start < 10  # it takes about 0.1 s


@pytest.mark.parametrize(
    ("output", "expected", "same"),
    [
        ("1 2\n3\n", "1 2\n3", True),
        ("1  2 \n3\n\n", "1 2\n3", True),
        ("1.0 yes", "1 yes", True),
        ("1e3", "1000", True),
        ("", "", True),
        ("1\n2", "1 2", False),
        ("yes", "Yes", False),
        ("1.0001", "1", False),
        ("1\n\n2", "1\n2", False),
        ("nan", "NaN", False),
        ("", "1", False),
    ],
)
def test_outputs_are_compared_line_by_line(output, expected, same):
    assert same_output(output, expected) == same


@given(st.lists(st.lists(st.integers(-(10**20), 10**20), min_size=1, max_size=4), min_size=1, max_size=4))
def test_layout_of_numbers_does_not_count(rows):
    expected = "\n".join(" ".join(map(str, row)) for row in rows)
    output = "".join("  ".join(f"{value}.0" for value in row) + " \n" for row in rows)
    assert same_output(output, expected) and same_output(expected, output)
    rows[-1][-1] += 1
    assert not same_output("\n".join(" ".join(map(str, row)) for row in rows), expected)


def test_many_verdicts_keep_their_order():
    pairs = [(SUM, fenced(f"a, b = map(int, input().split())\nprint(a + b + {n % 2})")) for n in range(6)]
    assert [verdict.correct for verdict in TASK.verify_all(pairs)] == [True, False] * 3


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (Problem("p", (), "", {}), r"'tests'\]=None must be a list"),
        (posed([]), r"'tests'\]=\[\] must be a list, not empty"),
        (Problem("p", (), "", {"tests": [{"input": "1"}]}), r"'tests'\]\[0\]="),
        (posed([("1", "2")], function="a b"), "'a b' must be the name of a function"),
        (posed([("1 2", "2")], function="f"), "must hold JSON, one value a line"),
    ],
)
def test_bad_metadata_is_an_error_before_anything_runs(problem, message):
    with pytest.raises(ValueError, match=f"problem 'p': metadata.*{message}"):
        TASK.verify(problem, fenced("print(3)"))
    with pytest.raises(ValueError, match=message):
        TASK.verify_all([(SUM, fenced("raise SystemExit")), (problem, "")])
