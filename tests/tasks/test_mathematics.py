import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sdistill.settings import ConfigError
from sdistill.tasks.mathematics import (
    MAX_ANSWER,
    MathematicsTask,
    last_boxed,
    parity_answer,
    plain,
)
from sdistill.tasks.problem import Problem
from tests.public_files import public_file
from tests.tasks.adversarial import answers
from tests.tasks.rewritings import rewritings, value_of

ROOT = Path(__file__).parents[2]

GOLDS = (
    *("12", "-7", "0", "25200", r"31,\!415", "0.375", ".00031", r"\frac{5}{8}", r"-\frac{7}{3}", r"\frac 27"),
    *(r"4\sqrt{6}", r"9\pi", r"35^\circ", r"\$14.50", r"2 - 3i", "3x^2-x+4", r"2\frac{3}{4}", "121_3"),
    *(
        r"\text{Carla}",
        r"\text{(D)}",
        "2, 4, 9",
        r"(2,-5)",
        "[1,6)",
        r"(-\infty, 4)",
        r"(1,3) \cup (5, \infty)",
    ),
    *(
        r"3 \pm 2\sqrt{7}",
        r"\begin{pmatrix} 1/3 \\ -2 \end{pmatrix}",
        r"\left( 4, \frac{\pi}{6} \right)",
        "y=3x-1",
    ),
)
"""Made up, in the manner of MATH-500."""

DEADLINE = 0.3


def posed(gold):
    return Problem(f"gold {gold}", ({"role": "user", "content": "?"},), gold)


@pytest.fixture(scope="module")
def task():
    with MathematicsTask(workers=1, deadline=60.0) as one:
        yield one


@pytest.fixture(scope="module")
def parity():
    with MathematicsTask(workers=1, deadline=60.0, parity=True) as one:
        yield one


@pytest.fixture(scope="module")
def hasty():
    with MathematicsTask(workers=1, deadline=DEADLINE) as one:
        yield one


def test_verdicts_agree_with_what_is_known(task):
    """Every gold answer in all its rewritings, against how each was made."""
    pairs = [(gold, rewriting) for gold in GOLDS for rewriting in rewritings(gold)]
    verdicts = task.verify_all([(posed(gold), rf"so \boxed{{{r.text}}}") for gold, r in pairs])
    wrong = [(g, r) for (g, r), verdict in zip(pairs, verdicts, strict=True) if verdict.correct != r.right]
    assert wrong == []
    assert not any(verdict.timed_out for verdict in verdicts)
    assert len(pairs) > 300 and len({r.rule for _, r in pairs}) > 50


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("3,5", r"x=3 \text{ or } x=5", True),
        ("3,5", "x=3, x=5", True),
        (r"\frac{1}{2}", r"50\%", True),
        (r"\frac{1}{2}", r"\frac{1}{2} \approx 0.5", True),
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", True),
        ("1024", "2^{10}", True),
        ("(a+5)(b+2)", "ab+2a+5b+10", True),
        ("2x", "y=2x", True),
        ("33", "033", True),
        ("12", "1 2", False),
        ("12", r"12 \text{ or } 13", False),
        ("a+5", "a+b=5", False),
        (r"\sqrt{2}", "1.414", False),
        (r"1 \pm \sqrt{19}", r"1+\sqrt{19}", False),
        ("(1,-2)", "(-2,1)", False),
    ],
)
def test_answers_as_models_write_them(task, gold, answer, right):
    verdict = task.verify(posed(gold), rf"\boxed{{{answer}}}")
    assert (verdict.correct, verdict.answer, verdict.timed_out) == (right, answer, False)
    assert bool(verdict.feedback) != right


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"<think>\boxed{1}</think> it is \boxed{2}", "2"),
        (r"\boxed{1}</think> it is \boxed{2}", "2"),
        (r"\boxed{1}, no, \boxed{2}", "2"),
        (r"\boxed{2}, no, \boxed{1", "2"),
        (r"<think>\boxed{2}</think> done", None),
        (r"<think>\boxed{2}", None),
        ("2", None),
        ("", None),
    ],
)
def test_where_the_answer_is_read(task, response, answer):
    verdict = task.verify(posed("2"), response)
    assert (verdict.answer, verdict.correct) == (answer, answer is not None)
    assert answer is not None or r"\boxed{}" in verdict.feedback


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"<think> it is \boxed{2}", "2"),  # tags do not matter
        (r"\boxed{2}" + "." * 91, "2"),
        (r"\boxed{2}" + "." * 92, None),  # its first character is the 101st from the end
        (r"\boxed{2} \boxed{3", None),  # nor is another box looked for
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{}", None),
        ("2", None),
    ],
)
def test_where_parity_reads_the_answer(response, answer):
    assert parity_answer(response) == answer


@pytest.mark.parametrize(
    ("gold", "answer", "by_parity"),
    [("7", "7.0", True), (r"\frac{1}{2}", "1/2", True), (r"3\sqrt{13}", "3", True), ("x+1", "1+x", False)],
)
def test_parity_compares_as_the_released_code_does(parity, task, gold, answer, by_parity):
    """Without dollar signs, math-verify looks for a number in the text; the last two are mistakes."""
    response, is_number = rf"\boxed{{{answer}}}", answer in ("7.0", "1/2")
    assert parity.verify(posed(gold), response).correct == by_parity
    assert task.verify(posed(gold), response).correct == (is_number or gold == "x+1")


@pytest.mark.parametrize("count", [7, pytest.param(42, marks=pytest.mark.long)])
def test_hostile_answers_end_at_the_deadline(hasty, monkeypatch, count):
    """No hang, no crash, never correct; the slack is for the start of workers on a busy machine."""
    hasty.verify(posed("x"), r"\boxed{y}")
    for response in answers(count, seed=3):  # seven kinds take turns
        start = time.monotonic()
        verdict = hasty.verify(posed(r"\frac{1}{2}"), response)
        assert not verdict.correct
        assert time.monotonic() - start < 2 * DEADLINE + 20
        assert not verdict.timed_out or "could not be checked" in verdict.feedback
    before = hasty.counts["timed out"]
    tower = hasty.verify(posed("3"), r"\boxed{9^{9^{9^9}}}")
    assert tower.timed_out and not tower.correct and tower.answer == "9^{9^{9^9}}"
    assert hasty.counts["timed out"] == before + 1
    # The first comparison of a new worker may be late on a busy machine.
    monkeypatch.setattr(hasty._workers, "deadline", 60.0)
    assert hasty.verify(posed("x+1"), r"\boxed{1+x}").correct


@settings(max_examples=20)
@given(st.text(max_size=40))
def test_no_text_is_an_error(task, text):
    verdict = task.verify(posed("x^2"), rf"\boxed{{{text}}}")
    assert verdict.correct is False or verdict.answer is not None


def test_long_responses_and_long_answers(task):
    start = time.process_time()
    long = r"so \frac{1}{2} of it is \boxed{3}, wait, " * 10_000
    assert task.verify(posed("x+1"), rf"{long}\boxed{{1+x}}").correct
    assert task.verify(posed("2"), rf"<think>{long}</think>\boxed{{2}}").correct
    assert time.process_time() - start < 5
    verdict = task.verify(posed("2"), rf"\boxed{{{'2' * 100_000}}}")
    assert not verdict.correct and not verdict.timed_out and "too long" in verdict.feedback
    assert verdict.answer is not None and len(verdict.answer) < 2 * MAX_ANSWER


def test_many_threads_may_ask(task):
    golds, found = ("x+1", "x+2", "x+3"), {}

    def ask(gold):
        found[gold] = task.verify(posed(gold), rf"\boxed{{{'+'.join(reversed(gold.split('+')))}}}").correct

    threads = [threading.Thread(target=ask, args=(gold,)) for gold in golds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == dict.fromkeys(golds, True)


@pytest.mark.parametrize("gold", GOLDS)
def test_gold_answers_without_defect(task, gold):
    assert task.defect(gold) is None


@pytest.mark.parametrize(
    ("gold", "reason"),
    [("", "empty"), ("  ", "empty"), (r"\frac{1}{", "cannot parse"), ("1" * 3000, "3000 characters")],
)
def test_gold_answers_with_a_defect(task, gold, reason):
    assert reason in task.defect(gold)


def test_a_gold_answer_that_takes_too_long_has_a_defect(hasty):
    assert f"{DEADLINE} s" in hasty.defect("(" * 80 + "1" + ")" * 80)


@given(st.integers(-(10**9), 10**9))
def test_integers_are_compared_without_a_worker(number):
    task = MathematicsTask(workers=1)
    for text in (
        f"{number:,}",
        f" {number} ",
        f"{number}.",
        rf"n = {number}",
        f"{number:,}".replace(",", r",\!"),
    ):
        assert task.verify(posed(str(number)), rf"\boxed{{{text}}}").correct
    assert not task.verify(posed(str(number)), rf"\boxed{{{number + 1}}}").correct
    assert task.counts == {}


@given(st.text("ab12+,. (){}\\", max_size=12))
@example("...")
def test_plain_changes_no_answer_twice(text):
    assert plain(plain(text).strip()) == plain(plain(plain(text)).strip())


def test_rewritings_of_numbers_keep_their_value():
    """The rules themselves, against exact fractions: numbers that are right are equal, others are not."""
    compared = 0
    for gold in GOLDS:
        value = value_of(gold)
        for rewriting in rewritings(gold) if value is not None else []:
            other = value_of(rewriting.text)
            if other is not None:
                assert (other == value) == rewriting.right, (gold, rewriting)
                compared += 1
    assert compared > 100


def test_tasks_import_neither_jax_nor_sympy():
    """SymPy is the workers' business: it costs a second and memory."""
    code = "import sys; from sdistill.tasks import code, mathematics, multiple_choice, signs_puzzle; "
    code += "print({'jax', 'math_verify', 'sympy'} & sys.modules.keys())"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout == "set()\n"


@pytest.mark.parametrize(
    ("values", "message"),
    [({"deadline": 0.0}, "deadline=0.0 must be"), ({"workers": 0}, "workers=0 must be")],
)
def test_settings_that_cannot_be(values, message):
    with pytest.raises(ConfigError, match=message):
        MathematicsTask(**values)


def test_every_gold_answer_of_math500_is_right_and_its_neighbour_wrong(task):
    models = parquet.read_table(public_file("math", "math500.parquet"))["reward_model"].to_pylist()
    for gold in {json.loads(model)["ground_truth"] for model in models}:
        assert task.defect(gold) is None
        assert task.verify(posed(gold), rf"\boxed{{{gold}}}").correct
        neighbours = [r.text for r in rewritings(gold) if not r.right]
        wrong = neighbours[0] if any(c.isdigit() for c in gold) else "17"
        assert not task.verify(posed(gold), rf"\boxed{{{wrong}}}").correct, (gold, wrong)


# The box.


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{1}", "1"),
        (r"\boxed{1} and \boxed{ 2 }", "2"),
        (r"\boxed {a}", "a"),
        (r"\fbox{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"so \boxed{\frac{1}{2}}, or \boxed{7", r"\frac{1}{2}"),  # the last one is cut off
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{3}, in \boxed{}", "3"),  # the blank one quotes the instructions
        (r"\boxed{ }", None),
        (r"{ \boxed{x}", "x"),
        (r"} \boxed{2}", "2"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{1\right.}", r"\left\{1\right."),  # an escaped brace is none
        (r"\boxed{x \\}", r"x \\"),  # a line break is no escape of the brace
        (r"\boxed 5", None),
        (r"boxed{5}", None),
        ("\\boxed{a\nb}", "a\nb"),
        ("", None),
    ],
)
def test_last_boxed(text, content):
    assert last_boxed(text) == content


CONTENT = st.recursive(
    st.text(st.characters(exclude_characters="\\{}"), min_size=1, max_size=5).filter(str.strip),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(lambda parts: "{" + "".join(parts) + "}"),
    max_leaves=8,
)
"""Text with balanced braces."""


@given(CONTENT, st.text(st.characters(exclude_characters="\\{}"), max_size=10))
def test_balanced_content_is_found_whatever_is_around(content, around):
    assert last_boxed(rf"{around}\boxed{{{content}}}{around}") == content.strip()
    assert last_boxed(rf"\boxed{{old}}{around}\boxed{{{content}}} \boxed{{ {around}") == content.strip()


@given(st.lists(st.sampled_from([r"\boxed{", "{", "}", r"\{", "\\", "a"]), max_size=30).map("".join))
def test_what_is_found_is_in_a_box(text):
    content = last_boxed(text)
    assert content is None or rf"\boxed{{{content}}}" in text


@pytest.mark.parametrize(
    "text", [r"\boxed{" * 60_000, "{" * 400_000, r"\boxed{" * 50_000 + "}" * 50_000, "\\" * 400_000]
)
def test_one_pass_over_the_longest_responses(text):
    start = time.process_time()
    last_boxed(text)
    assert time.process_time() - start < 5  # it takes about 0.1 s; a second pass for each box took minutes
