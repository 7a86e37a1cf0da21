"""Which characters of a text each of its tokens stands for, whatever the tokenizer."""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Shaped

from sdistill.text.tokenizer import Tokenizer

BROKEN = "\ufffd"
"""What bytes that are no whole character decode to."""


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each token; together they are the text of the ids, as `decode` gives it.

    A character whose bytes are spread over tokens belongs to the last of them. Tokens without text, such as
    the one that ends a response, have "".
    """
    found = [_inside(tokenizer, token) for token in ids]
    if BROKEN in "".join(found):
        for start, end in _runs([BROKEN in text for text in found]):
            found[start:end] = _whole_characters(tokenizer, ids[start:end])
    whole, joined = tokenizer.decode(ids), "".join(found)
    if joined == whole:
        return found
    if joined.endswith(whole):  # a space before the first word, which is dropped at the beginning of a text
        return _without_start(found, len(joined) - len(whole))
    return _by_prefixes(tokenizer, ids, whole)


def touched(texts: Sequence[str], spans: Iterable[tuple[int, int]]) -> Bool[np.ndarray, " T"]:
    """Which of the tokens of a text hold a character of one of the spans (start, end) of it."""
    lengths = np.fromiter(map(len, texts), int, len(texts))
    ends = np.cumsum(lengths)
    bounds = np.asarray(list(spans), int).reshape(-1, 2)
    changes = np.zeros(len(texts) + 1, int)
    np.add.at(changes, np.searchsorted(ends, bounds[:, 0], "right"), 1)
    np.add.at(changes, np.searchsorted(ends - lengths, bounds[:, 1], "left"), -1)
    return np.cumsum(changes[:-1]) > 0


def of_rows(
    mark: Callable[[Sequence[str]], Shaped[np.ndarray, " T"]], rows: Sequence[Sequence[str]], width: int
) -> Shaped[np.ndarray, "B T"]:
    """What `mark` says of the tokens of each row, looked at together; 0 after their ends.

    Rows are parted by line ends, so that no word goes from one to the next.
    """
    lengths = np.fromiter(map(len, rows), int, len(rows))
    found = mark([text for row in rows for text in (*row, "\n")])
    found = np.delete(found, np.cumsum(lengths + 1) - 1)
    marks_BT = np.zeros((len(rows), width), found.dtype)
    marks_BT[np.arange(width) < lengths[:, None]] = found
    return marks_BT


@functools.lru_cache(maxsize=1 << 18)  # a vocabulary or two
def _inside(tokenizer: Tokenizer, token: int) -> str:
    """The text of a token that is not the first: after itself."""
    return tokenizer.decode([token, token])[len(tokenizer.decode([token])) :]


def _runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """Where the flag is set: (start, end) of each stretch."""
    edges = np.flatnonzero(np.diff([0, *flags, 0])).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _whole_characters(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Of tokens that hold parts of characters: each is given to the token that completes it."""
    found, start = [""] * len(ids), 0
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[start:end])
        if end == len(ids) or not text.endswith(BROKEN):
            found[end - 1], start = text, end
    return found


def _without_start(texts: list[str], count: int) -> list[str]:
    """The texts without the first `count` characters."""
    kept = []
    for text in texts:
        kept.append(text[count:])
        count = max(0, count - len(text))
    return kept


def _by_prefixes(tokenizer: Tokenizer, ids: Sequence[int], whole: str) -> list[str]:
    """For tokenizers whose tokens change the text before them: what is longer with a token than without."""
    lengths = [min(len(tokenizer.decode(ids[:end])), len(whole)) for end in range(len(ids))]
    ends = [*np.maximum.accumulate(lengths).tolist(), len(whole)]
    return [whole[start:end] for start, end in itertools.pairwise(ends)]
