"""Epistemic words: how often a response verbalises uncertainty (arXiv 2603.24472, released list)."""

import functools
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from sdistill.text.spans import of_rows, token_texts, touched
from sdistill.text.tokenizer import Tokenizer

WORDS = (
    "wait",
    "hmm",
    "perhaps",
    "maybe",
    "actually",
    "alternatively",
    "seems",
    "might",
    "likely",
    "check",
)


def whole_word(words: Sequence[str]) -> re.Pattern[str]:
    """What finds these words as whole ones, in any case."""
    return re.compile(rf"\b({'|'.join(map(re.escape, words))})\b", re.IGNORECASE)


WHOLE_WORD = whole_word(WORDS)


def count_words(text: str) -> int:
    """Occurrences as whole words, in any case."""
    return len(WHOLE_WORD.findall(text))


def count_substrings(text: str) -> int:
    """Occurrences anywhere, as the paper's code counts: "unlikely" is one, "checking" is one."""
    lowered = text.lower()
    return sum(lowered.count(word) for word in WORDS)


def word_tokens(texts: Sequence[str], words: Sequence[str] = WORDS) -> Bool[np.ndarray, " T"]:
    """Which tokens hold one of the words, or a part of one, given the text of each; see `text.spans`."""
    return touched(texts, (match.span() for match in whole_word(words).finditer("".join(texts))))


def token_mask(
    tokenizer: Tokenizer,
    ids: Int[np.ndarray, "B T"],
    lengths: Int[np.ndarray, " B"],
    words: Sequence[str] = WORDS,
) -> Float[np.ndarray, "B T"]:
    """1 on the tokens of these words, of which a tokenizer may make several; 0 after a row's length."""
    texts = [token_texts(tokenizer, row[:n].tolist()) for row, n in zip(ids, lengths, strict=True)]
    marks_BT = of_rows(functools.partial(word_tokens, words=words), texts, ids.shape[1])
    return marks_BT.astype(np.float32)
