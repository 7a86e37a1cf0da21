import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdistill.tasks.mathematics import last_boxed


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
