import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdistill.analysis.epistemic import WORDS
from sdistill.analysis.probes import can_shuffle, first_half, followed_by, shuffled, thinking


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("a b yes </think> + -", "a b yes"),
        ("a\n</think>\n\n4 </think>", "a"),
        ("a b", None),
        ("</think> 4", ""),
    ],
)
def test_thinking_is_what_comes_before_its_end(response, expected):
    assert thinking(response) == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("a b c d e </think> f g h i j", "a b"),
        ("a  b\nc d", "a  b"),
        ("a </think> b", ""),
        ("", ""),
    ],
)
def test_the_first_half_is_of_the_thinking(response, expected):
    assert first_half(response) == expected


def test_a_cue_is_a_word_of_its_own():
    assert [followed_by(text, "wait") for text in ("", "a", "a\n")] == ["wait", "a wait", "a\nwait"]
    assert [followed_by(text, "") for text in ("", "a", "a\n")] == ["", "a", "a\n"]


TEXTS = st.lists(st.sampled_from(["maybe", "Wait", "hmm", "8", "-3", "awaits", "so"])).map(" ".join)


@given(TEXTS, st.integers())
def test_shuffling_moves_the_words_among_their_places_and_nothing_else(text, seed):
    moved = shuffled(text, WORDS, random.Random(seed))
    before, after = text.split(), moved.split()
    marked = [word.lower() in WORDS for word in before]
    assert [w for w, m in zip(before, marked, strict=True) if not m] == [
        w for w, m in zip(after, marked, strict=True) if not m
    ]
    assert sorted(before) == sorted(after)
    assert can_shuffle(text, WORDS) or moved == text


def test_shuffling_does_move():
    text = "maybe 1 wait 2 hmm 3 actually 4"
    assert len({shuffled(text, WORDS, random.Random(seed)) for seed in range(200)}) == 24
