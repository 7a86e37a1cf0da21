"""The text of each token, with SentencePiece and with a byte-level BPE that splits every other word."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdistill.text.hugging_face import HuggingFaceTokenizer
from sdistill.text.words import BROKEN, map_rows, token_texts, tokens_in_spans
from tests.text.folders import write_folder


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    return HuggingFaceTokenizer(write_folder(tmp_path_factory.mktemp("bpe")))


def test_words_keep_the_space_before_them_but_the_first_has_none(tokenizer):
    ids = [*tokenizer.encode("perhaps 8 -3 wait </think> +"), tokenizer.eos_id]
    assert token_texts(tokenizer, ids) == ["perhaps", " 8", " -3", " wait", " </think>", " +", ""]
    assert token_texts(tokenizer, []) == []


def test_a_character_belongs_to_the_token_that_completes_it(bpe):
    ids = bpe.encode("é is ∑<|im_end|>")
    assert token_texts(bpe, ids) == ["", "é", " is", " ", "", "", "∑", ""]


def test_text_before_the_first_word_is_dropped_after_tokens_without_any(tokenizer):
    ids = [tokenizer.pad_id, *tokenizer.encode("wait so")]
    assert token_texts(tokenizer, ids) == ["", "wait", " so"]


@given(st.lists(st.integers(0, 285), max_size=30))
def test_any_ids_of_a_bpe_make_their_own_text(bpe, ids):
    """Broken bytes, too, and characters in parts."""
    ids = [i for i in ids if i < bpe.vocab_size]
    texts = token_texts(bpe, ids)
    assert len(texts) == len(ids) and "".join(texts) == bpe.decode(ids)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_any_text_comes_out_whole(bpe, text):
    ids = bpe.encode(text)
    texts = token_texts(bpe, ids)
    assert "".join(texts) == bpe.decode(ids)
    if BROKEN not in text:
        assert BROKEN not in "".join(texts)


class Merging:
    """A tokenizer whose tokens change the text before them: 1 takes the last character away."""

    def decode(self, ids):
        text = ""
        for i in ids:
            text = text[:-1] if i == 1 else text + "ab"
        return text


def test_a_tokenizer_that_changes_what_it_has_written_is_followed_by_prefixes():
    assert token_texts(Merging(), [2, 1, 2]) == ["aa", "", "b"]  # as "aab" is cut
    assert "".join(token_texts(Merging(), [2, 2, 1, 1])) == "ab"


@given(
    st.lists(st.sampled_from(["", "a", "bc", "def"]), max_size=12),
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 5)), max_size=4),
)
def test_touched_tokens_are_those_that_hold_a_character_of_a_span(texts, spans):
    size = len("".join(texts))
    spans = [(start, min(start + length, size)) for start, length in spans if start < size]
    owner = [t for t, text in enumerate(texts) for _ in text]
    expected = {owner[i] for start, end in spans for i in range(start, end)}
    found = set(np.flatnonzero(tokens_in_spans(texts, spans)).tolist())
    # A token without text is touched only inside of a span, between characters of it.
    assert {t for t in found if texts[t]} == expected
    assert all(min(expected) < t < max(expected) for t in found - expected)


def test_rows_are_looked_at_apart():
    rows = [["un", "like"], [], ["ly", "a", "b"]]
    asked = []

    def mark(texts):
        asked.append("".join(texts))
        return np.asarray([len(text) for text in texts])

    np.testing.assert_array_equal(map_rows(mark, rows, 4), [[2, 4, 0, 0], [0, 0, 0, 0], [2, 1, 1, 0]])
    assert asked == ["unlike\n\nlyab\n"]
