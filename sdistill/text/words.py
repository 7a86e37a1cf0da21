"""Words in texts, and the tokens that they begin with."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from sdistill.text.tokenizer import Tokenizer

MARKUP = re.compile(r"<[^<>\s]*>|\\\w+")
"""Tags, such as `<think>`, and commands of TeX."""


def count(texts: Iterable[str], *, numbers: bool = False) -> Counter[str]:
    """Occurrences of each word, in lower case; of numbers, digit by digit group, only if asked for."""
    word = re.compile(r"\w+" if numbers else r"\b[^\W\d_]{2,}\b")
    return Counter(found.lower() for text in texts for found in word.findall(MARKUP.sub(" ", text)))


def matched(counts: Counter[str], words: Collection[str], but: Collection[str]) -> list[str]:
    """For each of these words, the commonest first, another one that occurs about as often.

    Args:
      counts: Of all words.
      words: To be matched.
      but: Words that may not be chosen, besides these.

    Returns: As many as there are, at most; each once.
    """
    free = {word: n for word, n in counts.items() if word not in words and word not in but}
    chosen: list[str] = []
    for word in sorted(words, key=lambda w: (-counts[w], w)):
        if free:
            chosen.append(min(free, key=lambda other: (abs(free[other] - counts[word]), other)))
            del free[chosen[-1]]
    return chosen


def first_ids(tokenizer: Tokenizer, words: Sequence[str]) -> list[int]:
    """Every token id that one of the words can begin with, as it is written in running text.

    That is in small letters, capitalised or in capitals, after a space, a new line or nothing: the first
    token of what the tokenizer makes of it, and every token that is such a word by itself. Other words that
    begin with the same token are met as well; a word that is put together of unusual pieces is not.
    """
    wanted = {word.lower() for word in words}
    ids = {i for i in range(tokenizer.vocab_size) if tokenizer.decode([i]).strip().lower() in wanted}
    for word in words:
        for form in (word.lower(), word.capitalize(), word.upper()):
            for before in ("", " ", "\n"):
                try:
                    pieces = tokenizer.encode(before + form)
                except ValueError:  # the tokenizer cannot write it
                    continue
                while pieces and not tokenizer.decode(pieces[:1]).strip():
                    pieces = pieces[1:]  # space of its own
                ids.update(pieces[:1])
    return sorted(ids)
