import numpy as np
import pytest

from sdistill.analysis.epistemic import (
    CLASSES,
    WORDS,
    count_substrings,
    count_words,
    token_classes,
    token_mask,
)
from sdistill.text.hugging_face import HuggingFaceTokenizer
from sdistill.text.words import token_texts
from tests.text.folders import write_folder

PAPER = {
    "wait", "hmm", "perhaps", "maybe", "actually", "alternatively", "seems", "might", "likely", "check",
}  # fmt: skip


def test_the_list_is_the_papers():
    assert set(WORDS) == PAPER and len(WORDS) == 10


@pytest.mark.parametrize(
    ("text", "words", "substrings"),
    [
        ("", 0, 0),
        ("so 8 -3 yes </think> + -", 0, 0),
        ("wait, WAIT! Wait-wait", 4, 4),
        ("unlikely checking waiting almighty", 0, 4),
        ("maybe 8 perhaps\nhmm", 3, 3),
        ("hmmm", 0, 1),
        ("factually", 0, 1),
        ("it seems likely that might be actually right; alternatively, check", 6, 6),
        ("check_sum maybe's", 1, 2),
    ],
)
def test_counts(text, words, substrings):
    assert (count_words(text), count_substrings(text)) == (words, substrings)


@pytest.mark.parametrize("word", WORDS)
def test_every_word_counts_once(word):
    assert count_words(f"x {word.upper()}. y") == count_substrings(f"x {word.upper()}. y") == 1


def test_mask_marks_the_tokens_that_are_epistemic_words(tokenizer):
    texts = ["maybe 8 -3 - 4 1 wait so", "likely perhaps seems </think> + - yes"]
    ids = np.zeros((2, 10), np.int32)
    expected = np.zeros((2, 10), np.float32)
    for row, text in enumerate(texts):
        for column, word in enumerate(text.split()):
            ids[row, column] = tokenizer.encode(word)[0]
            expected[row, column] = word in WORDS
    mask = token_mask(tokenizer, ids, np.array([7, 7]))
    assert mask.dtype == np.float32 and expected.sum() == 5
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(mask.sum(axis=1), [count_words(t) for t in texts])


def test_mask_ignores_special_and_spare_ids(tokenizer):
    ids = np.array([[0, 1, 2, 166, 167]])
    np.testing.assert_array_equal(token_mask(tokenizer, ids, np.array([5])), np.zeros((1, 5)))


def test_mask_ends_with_the_row(tokenizer):
    ids = np.full((2, 3), tokenizer.encode("wait")[0])
    np.testing.assert_array_equal(token_mask(tokenizer, ids, np.array([1, 3])), [[1, 0, 0], [1, 1, 1]])


LETTERS = dict(zip("edo", CLASSES, strict=True))


def classes(texts):
    return "".join("edo"[i] for i in token_classes(texts))


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["perhaps", " 8", " -3", " -", " wait", " so", " </think>", " +", ""], "edddeoodo"),
        (["x", "-", "axis", " -", "3", " 5", "-", "3", " well", "-", "known"], "ooo" + "ddddd" + "ooo"),
        ([" un", "likely", " likely", ",", " Hm", "m", "!"], "oo" + "eoeeo"),
        (["<", "think", ">", " 2", "<", "3", "</", "think", ">"], "ooo" + "ddd" + "ooo"),
        ([" \\times", " =", " wait", "=2"], "oded"),
    ],
)
def test_classes_of_tokens(texts, expected):
    assert set(LETTERS) == set("edo")
    assert classes(texts) == expected


def test_a_bpe_that_splits_words_is_classed_by_its_words(tmp_path):
    tokenizer = HuggingFaceTokenizer(write_folder(tmp_path / "bpe"))
    text = "<think>Hmm, the unlikely 12-3 is wait</think>"
    texts = token_texts(tokenizer, tokenizer.encode(text))
    marked = classes(texts)
    assert len(texts) > len(text.split())
    by_class = {name: "".join(t for t, c in zip(texts, marked, strict=True) if c == name) for name in "edo"}
    assert by_class == {"e": "Hmmwait", "d": "12-3", "o": "<think>, the unlikely  is </think>"}
