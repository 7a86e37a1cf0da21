"""Causal probes: interventions in responses that remove, add or move epistemic words, and their controls.

An intervention changes a response and samples on. A control makes a change of the same size that leaves
epistemic words alone, or no change. Arms that continue from the same prefix are paired by it.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sdistill.analysis.epistemic import whole_word
from sdistill.tasks.problem import THINK_END
from sdistill.types import Condition

PROBES = "probes"  # the section


@dataclass(frozen=True)
class Arm:
    """One way in which a model responds; the fields are those of `Condition`, `fix` only of another model."""

    intervention: str
    attempts: int | None = None
    fix: str | None = None

    def of(self, model: Condition) -> Condition:
        """This arm of a model."""
        return replace(
            model, fix=self.fix or model.fix, intervention=self.intervention, attempts=self.attempts
        )


@dataclass(frozen=True)
class Probe:
    """An arm and the arms that it is compared with, the closest control first."""

    arm: Arm
    controls: tuple[Arm, ...]


PLAIN = Arm("plain")
"""No intervention."""
MASKED = Probe(Arm("plain", fix="mask_words"), (Arm("plain", fix="mask_others"), PLAIN))
"""Training without loss at epistemic words."""


def probes(extra_attempts: int) -> list[Probe]:
    """The probes of one model, with up to `extra_attempts` forced attempts; all but `MASKED`."""

    def forced(kind: str, attempts: int, *controls: Arm) -> Probe:
        arm, *others = (Arm(f"{kind}_{word}", attempts) for word in ("cue", "neutral", "nothing"))
        return Probe(arm, (*others, *controls))

    attempts = range(1, extra_attempts + 1)
    return [
        Probe(Arm("forbid_words"), (Arm("forbid_neutral"), Arm("forbid_half"), PLAIN)),
        Probe(Arm("doubt_cue"), (Arm("doubt_neutral"), Arm("doubt_nothing"))),
        *(forced("extra", k, PLAIN) for k in attempts),
        *(forced("repair", k) for k in attempts),  # of the responses that were wrong
        Probe(Arm("shuffle_words"), (Arm("shuffle_neutral"), Arm("shuffle_nothing"))),
    ]


def followed_by(text: str, cue: str) -> str:
    """The text with another word after it; an empty cue adds nothing."""
    return f"{text}{'' if not cue or not text or text[-1].isspace() else ' '}{cue}"


def thinking(response: str) -> str | None:
    """The text before the end of thinking; None if the thinking does not end."""
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
