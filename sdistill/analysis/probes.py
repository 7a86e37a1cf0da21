"""Causal probes: what happens to responses whose uncertainty is taken away, forced on them, or moved.

A probe changes something and samples on; its controls change as much of something else, or nothing. Arms
that begin with the same prefix are paired by it.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sdistill.analysis.epistemic import whole_word
from sdistill.tasks.problem import THINK_END

PROBES = "probes"  # the section
PLAIN = "plain"  # a model's responses as they are
EXTRA = "extra"  # forced attempts
REPAIR = "repair"  # the same, of the responses only that were wrong before


@dataclass(frozen=True)
class Probe:
    """A probe.

    Attributes:
      arm: Its name in the results, after that of the model.
      controls: Arms it is compared with, the matched one first.
    """

    arm: str
    controls: tuple[str, ...]


def probes(extra_attempts: int) -> list[Probe]:
    """All that a model is put to, with up to so many forced attempts."""
    forced = range(1, extra_attempts + 1)
    return [
        Probe("forbid_words", ("forbid_neutral", "forbid_half", PLAIN)),
        Probe("doubt_cue", ("doubt_neutral", "doubt_nothing")),
        *(Probe(f"{EXTRA}_cue_{k}", (f"{EXTRA}_neutral_{k}", f"{EXTRA}_nothing_{k}", PLAIN)) for k in forced),
        *(Probe(f"{REPAIR}_cue_{k}", (f"{REPAIR}_neutral_{k}", f"{REPAIR}_nothing_{k}")) for k in forced),
        Probe("shuffle_words", ("shuffle_neutral", "shuffle_nothing")),
    ]


MASKED = Probe("mask_words", ("mask_others", PLAIN))
"""Of the trained model; its arms are models of their own."""


def followed_by(text: str, cue: str) -> str:
    """The text with a word more."""
    return f"{text}{'' if not text or text[-1].isspace() else ' '}{cue}"


def thinking(response: str) -> str | None:
    """What comes before the end of thinking; None if that does not come."""
    return response[: response.find(THINK_END)].rstrip() if THINK_END in response else None


def first_half(response: str) -> str:
    """The first half of the words of the thinking, rounded down."""
    words = list(re.finditer(r"\S+", response.partition(THINK_END)[0]))
    return response[: words[len(words) // 2 - 1].end()] if len(words) > 1 else ""


def shuffled(text: str, words: Sequence[str], rng: random.Random) -> str:
    """The text with these words in each other's places."""
    pattern = whole_word(words)
    found = [match[0] for match in pattern.finditer(text)]
    rng.shuffle(found)
    places = iter(found)
    return pattern.sub(lambda match: next(places), text)


def can_shuffle(text: str, words: Sequence[str]) -> bool:
    """Whether the text has two of these words that differ."""
    return len({match[0].lower() for match in whole_word(words).finditer(text)}) > 1
