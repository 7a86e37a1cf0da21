"""Words in texts and the tokens that hold them, whatever the tokenizer."""

import functools
import itertools
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Shaped

from sdistill.text.tokenizer import Tokenizer

MARKUP = re.compile(r"<[^<>\s]*>|\\\w+")
"""Tags, such as `<think>`, and commands of TeX."""

BROKEN = "\ufffd"
"""What bytes that are no whole character decode to."""


def word_counts(texts: Iterable[str], *, numbers: bool = False) -> Counter[str]:
    """Occurrences of each word, in lower case; with `numbers`, of each group of digits as well."""
    word = re.compile(r"\w+" if numbers else r"\b[^\W\d_]{2,}\b")
    return Counter(found.lower() for text in texts for found in word.findall(MARKUP.sub(" ", text)))


def match_frequencies(counts: Counter[str], words: Collection[str], excluded: Collection[str]) -> list[str]:
    """For each word, the most frequent first, another word that occurs about as often.

    Args:
      excluded: Words that may not be chosen, besides these.

    Returns: distinct words, as many as there are to choose from and at most one for each of `words`.
    """
    free = {word: n for word, n in counts.items() if word not in words and word not in excluded}
    chosen: list[str] = []
    for word in sorted(words, key=lambda w: (-counts[w], w)):
        if free:
            chosen.append(min(free, key=lambda other: (abs(free[other] - counts[word]), other)))
            del free[chosen[-1]]
    return chosen


def first_token_ids(tokenizer: Tokenizer, words: Sequence[str]) -> list[int]:
    """Every token id that one of the words can begin with in running text.

    Those are the first tokens of the word in small letters, capitalised or in capitals, after a space, a new
    line or nothing, and every token that is such a word by itself. They may begin other words as well. A word
    spelled in unusual pieces may begin with another token.
    """
    wanted = {word.lower() for word in words}
    ids = {i for i in range(tokenizer.vocab_size) if tokenizer.decode([i]).strip().lower() in wanted}
    for word, before in itertools.product(words, ("", " ", "\n")):
        for form in (word.lower(), word.capitalize(), word.upper()):
            try:
                pieces = tokenizer.encode(before + form)
            except ValueError:  # the tokenizer cannot write it
                continue
            while pieces and not tokenizer.decode(pieces[:1]).strip():
                pieces = pieces[1:]  # a token of white space
            ids.update(pieces[:1])
    return sorted(ids)


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each token. Joined, they are `tokenizer.decode(ids)`.

    A character whose bytes are spread over tokens belongs to the last of them. Tokens without text, such as
    the one that ends a response, have "".
    """
    texts = [_text_inside(tokenizer, token) for token in ids]
    if BROKEN in "".join(texts):
        end = 0
        for is_broken, run in itertools.groupby([BROKEN in text for text in texts]):
            start, end = end, end + len(list(run))
            if is_broken:
                texts[start:end] = _complete_characters(tokenizer, ids[start:end])
    whole, joined = tokenizer.decode(ids), "".join(texts)
    if joined == whole:
        return texts
    if joined.endswith(whole):  # a space before the first word, which is dropped at the beginning of a text
        ends = np.maximum(np.cumsum([len(text) for text in texts]) - (len(joined) - len(whole)), 0)
    else:  # tokens that change the text before them: a token's text is what it adds to the length
        lengths = [min(len(tokenizer.decode(ids[:end])), len(whole)) for end in range(1, len(ids))]
        ends = np.maximum.accumulate([*lengths, len(whole)])
    return [whole[start:end] for start, end in itertools.pairwise([0, *ends.tolist()])]


def _complete_characters(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The texts of tokens that hold parts of characters: each goes to the token that completes it."""
    texts, start = [""] * len(ids), 0
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[start:end])
        if end == len(ids) or not text.endswith(BROKEN):
            texts[end - 1], start = text, end
    return texts


@functools.lru_cache(maxsize=1 << 18)  # a vocabulary or two
def _text_inside(tokenizer: Tokenizer, token: int) -> str:
    """The text of a token that is not the first: what it adds after itself."""
    return tokenizer.decode([token, token])[len(tokenizer.decode([token])) :]


def tokens_in_spans(texts: Sequence[str], spans: Iterable[tuple[int, int]]) -> Bool[np.ndarray, " T"]:
    """Which tokens hold a character of one of the spans (start, end) of the joined texts."""
    lengths = np.asarray([len(text) for text in texts], int)
    ends = np.cumsum(lengths)
    bounds = np.asarray(list(spans), int).reshape(-1, 2)
    changes = np.zeros(len(texts) + 1, int)
    np.add.at(changes, np.searchsorted(ends, bounds[:, 0], "right"), 1)
    np.add.at(changes, np.searchsorted(ends - lengths, bounds[:, 1], "left"), -1)
    return np.cumsum(changes[:-1]) > 0


def map_rows(
    function: Callable[[Sequence[str]], Shaped[np.ndarray, " T"]], rows: Sequence[Sequence[str]], width: int
) -> Shaped[np.ndarray, "B T"]:
    """A function of token texts applied to all rows at once; 0 after the end of a row.

    A line end between rows keeps words from going from one row to the next.
    """
    lengths = np.asarray([len(row) for row in rows], int)
    found = function([text for row in rows for text in (*row, "\n")])
    found = np.delete(found, np.cumsum(lengths + 1) - 1)
    result_BT = np.zeros((len(rows), width), found.dtype)
    result_BT[np.arange(width) < lengths[:, None]] = found
    return result_BT
