"""Epistemic words, which verbalise uncertainty (arXiv 2603.24472, released list), and classes of tokens."""

import functools
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from sdistill.tasks.problem import THINK_END, THINK_START
from sdistill.text.tokenizer import Tokenizer
from sdistill.text.words import map_rows, token_texts, tokens_in_spans

WORDS = ("wait", "hmm", "perhaps", "maybe", "actually", "alternatively", "seems", "might", "likely", "check")

CLASSES = ("epistemic", "digits", "other")
"""Of tokens: parts of epistemic words, digits and operators, and all others."""

MATHEMATICS = re.compile(r"[-\d+*/=<>^%×÷±·√≤≥≠≈−]+")
_HYPHENS = re.compile(r"(?<=[^\W\d_])-(?=[^\W\d_])")  # of words


def whole_word(words: Sequence[str]) -> re.Pattern[str]:
    """A pattern that finds these words as whole words, in any case."""
    return re.compile(rf"\b({'|'.join(map(re.escape, words))})\b", re.IGNORECASE)


_WHOLE_WORD = whole_word(WORDS)


def count_words(text: str) -> int:
    """Occurrences as whole words, in any case."""
    return len(_WHOLE_WORD.findall(text))


def count_substrings(text: str) -> int:
    """Occurrences anywhere, as the paper's code counts: "unlikely" is one, "checking" is one."""
    lowered = text.lower()
    return sum(lowered.count(word) for word in WORDS)


def word_tokens(texts: Sequence[str], words: Sequence[str] = WORDS) -> Bool[np.ndarray, " T"]:
    """Which tokens hold one of the words, or a part of one, given the text of each; see `text.spans`."""
    return tokens_in_spans(texts, (match.span() for match in whole_word(words).finditer("".join(texts))))


def token_classes(texts: Sequence[str]) -> Int[np.ndarray, " T"]:
    r"""The class of each token, as an index into `CLASSES`, given the text of each (`text.spans`).

    A token that holds a character of an epistemic word is epistemic; else a token that holds a digit or an
    operator is of that class. Thinking tags and the hyphens of words are neither. Names of operators, such
    as `\times`, are other.
    """
    text = _HYPHENS.sub(" ", "".join(texts))
    for tag in (THINK_START, THINK_END):  # spelled with characters of the class, and no mathematics
        text = text.replace(tag, " " * len(tag))
    mathematics = tokens_in_spans(texts, (match.span() for match in MATHEMATICS.finditer(text)))
    return np.where(word_tokens(texts), 0, np.where(mathematics, 1, 2))


def token_mask(
    tokenizer: Tokenizer,
    ids: Int[np.ndarray, "B T"],
    lengths: Int[np.ndarray, " B"],
    words: Sequence[str] = WORDS,
) -> Float[np.ndarray, "B T"]:
    """1 on the tokens of these words, which may have several each; 0 after a row's length."""
    texts = [token_texts(tokenizer, row[:n].tolist()) for row, n in zip(ids, lengths, strict=True)]
    marks_BT = map_rows(functools.partial(word_tokens, words=words), texts, ids.shape[1])
    return marks_BT.astype(np.float32)
