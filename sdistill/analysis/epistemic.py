"""Epistemic words: how often a response verbalises uncertainty (arXiv 2603.24472, released list)."""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

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


def token_mask(
    tokenizer: Tokenizer, ids: Int[np.ndarray, "B T"], words: Sequence[str] = WORDS
) -> Float[np.ndarray, "B T"]:
    """1 where a token alone holds one of the words, the epistemic ones unless told.

    Words that a tokenizer splits over several tokens are not found; the puzzle's are all single.
    """
    unique, inverse = np.unique(ids, return_inverse=True)
    pattern = whole_word(words)
    marked = np.asarray([bool(pattern.search(tokenizer.decode([int(i)]))) for i in unique], np.float32)
    return marked[inverse].reshape(ids.shape)
