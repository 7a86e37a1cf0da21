"""Names that only `report` still imports; they go when it reads `types.Measurement`."""

from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]

DIFFERENCES = ("accuracy", "length", "words")

PLAIN = "plain"
REPAIR = "repair"


@dataclass(frozen=True)
class Probe:  # noqa: D101
    arm: str
    controls: tuple[str, ...]


MASKED = Probe("mask_words", ("mask_others", PLAIN))


def probes(extra_attempts: int) -> list[Probe]:  # noqa: D103
    return []
