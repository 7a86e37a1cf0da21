import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.train_tokenizer import train_word_model
from sdistill.settings import ConfigError
from sdistill.tasks.signs_reasoner import vocabulary
from sdistill.text.tokenizer import (
    SIGNS_TOKENIZER,
    SentencePieceTokenizer,
    check_response,
    check_vocabulary,
)

WORDS = vocabulary(5)
SHIPPED = SentencePieceTokenizer(SIGNS_TOKENIZER)


def test_one_id_a_word_after_the_special_ones():
    ids = [SHIPPED.encode(word) for word in WORDS]
    assert all(len(i) == 1 for i in ids)
    assert {i for (i,) in ids} == set(range(3, len(WORDS) + 3))
    assert (SHIPPED.vocab_size, SHIPPED.pad_id, SHIPPED.eos_id) == (len(WORDS) + 3, 0, 2)
    assert (SHIPPED.bos_id, SHIPPED.stop_ids) == (None, (2,))


@given(st.lists(st.sampled_from(WORDS)))
def test_text_round_trips(words):
    ids = SHIPPED.encode(" ".join(words))
    assert len(ids) == len(words)
    assert SHIPPED.decode(ids) == " ".join(words)


@given(st.lists(st.sampled_from(WORDS), min_size=1), st.lists(st.sampled_from(WORDS), min_size=1))
def test_prompt_and_response_tokenize_apart_as_they_do_together(prompt, response):
    apart = SHIPPED.encode(" ".join(prompt)) + SHIPPED.encode(" ".join(response))
    assert apart == SHIPPED.encode(" ".join([*prompt, *response]))


def test_decode_drops_padding_end_unknown_and_spare_rows_of_the_embedding():
    eight, four = SHIPPED.encode("8 4")
    assert SHIPPED.decode([0, eight, 1, four, 2, 0, 166, 167]) == "8 4"
    assert SHIPPED.decode([]) == ""


@pytest.mark.parametrize(
    ("text", "word"), [("8 ten 4", "ten"), ("8 73 x", "73"), ("8+4", "8+4"), ("Wait", "Wait"), ("８ 4", "８")]
)
def test_unknown_words_are_quoted(text, word):
    with pytest.raises(ValueError, match="is not in the tokenizer's vocabulary") as error:
        SHIPPED.encode(text)
    assert repr(word) in str(error.value) and repr(text) in str(error.value)


@pytest.mark.parametrize("text", ["8\t4", "8\n4", "8\u00a04"])
def test_white_space_other_than_blanks_is_unknown(text):
    with pytest.raises(ValueError, match="is not in the tokenizer's vocabulary"):
        SHIPPED.encode(text)


def test_missing_model_says_how_to_make_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="python launch/train_tokenizer.py --config") as error:
        SentencePieceTokenizer(tmp_path / "no.model")
    assert str(tmp_path / "no.model") in str(error.value)


def test_shipped_model_is_what_its_command_makes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the model records the prefix it was made with
    prefix = "sdistill/text/assets/signs"
    (tmp_path / prefix).parent.mkdir(parents=True)
    train_word_model(WORDS, prefix)
    assert (tmp_path / f"{prefix}.model").read_bytes() == SIGNS_TOKENIZER.read_bytes()


def test_trained_model_has_exactly_the_words_given(tmp_path):
    words = ["yes", "no", "</think>", "-1", "+"]
    random.Random(0).shuffle(words)
    train_word_model(words, tmp_path / "small")
    assert [p.name for p in tmp_path.iterdir()] == ["small.model"]
    tokenizer = SentencePieceTokenizer(tmp_path / "small.model")
    assert tokenizer.vocab_size == 8
    assert [tokenizer.decode([i]) for i in range(3, 8)] == sorted(words)
    with pytest.raises(ValueError, match="'maybe'"):
        tokenizer.encode("yes maybe no")


def test_a_model_needs_a_row_for_every_id():
    check_vocabulary(SHIPPED, SHIPPED.vocab_size)
    check_vocabulary(SHIPPED, SHIPPED.vocab_size + 2)
    with pytest.raises(ConfigError, match=r"vocab_size=165 is smaller than the tokenizer's 166"):
        check_vocabulary(SHIPPED, 165)


def objection(ids):
    try:
        check_response(ids, (2, 3))
    except ValueError as error:
        return str(error).partition(";")[0]
    return None


@pytest.mark.parametrize("count", range(5))
def test_only_the_last_token_of_a_response_may_be_an_end_token(count):
    """Every response of so many tokens, two kinds of end and one other: the first early end is named."""
    for ids in itertools.product((2, 3, 5), repeat=count):
        early = [position for position, token in enumerate(ids[:-1]) if token != 5]
        expected = None
        if early:
            where = f"end token {ids[early[0]]} at position {early[0]} of {count}"
            expected = f"the response goes on after {where}"
        assert objection(ids) == expected, ids
