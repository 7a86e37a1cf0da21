"""Where the time and the arithmetic of a step go."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from sdistill.engine.types import EngineStats


class StepCost(NamedTuple):
    """What a step took.

    Attributes:
      seconds: By stage; no second counts twice.
      flops: Arithmetic of the model over all devices, by stage (`flops`): what has to be computed, without
        padding and rematerialisation.
      engine: What the engine did; None where nothing was sampled.
    """

    seconds: Mapping[str, float]
    flops: Mapping[str, float]
    engine: EngineStats | None


class Clock:
    """Adds up what the stages of a step take."""

    def __init__(self) -> None:
        self._stage = ""
        self._since = time.perf_counter()
        self._seconds: dict[str, float] = defaultdict(float)
        self._flops: dict[str, float] = defaultdict(float)
        self._engine: EngineStats | None = None

    @contextlib.contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Adds the time of the block, without that of blocks inside it."""
        outer = self._stage
        self._switch(stage)
        try:
            yield
        finally:
            self._switch(outer)

    def _switch(self, stage: str) -> None:
        now = time.perf_counter()
        if self._stage:
            self._seconds[self._stage] += now - self._since
        self._stage, self._since = stage, now

    def add_flops(self, stage: str, flops: float) -> None:
        """Adds arithmetic."""
        self._flops[stage] += flops

    def observe(self, stats: EngineStats) -> None:
        """Keeps the engine's latest figures."""
        self._engine = stats

    def read(self) -> StepCost:
        """What was measured since the last reading."""
        seconds = self._seconds
        if self._engine is not None:  # resharding is the first part of generation
            seconds["generate"] -= self._engine.reshard_seconds
            seconds["reshard"] = self._engine.reshard_seconds
        cost = StepCost(seconds, self._flops, self._engine)
        self._seconds, self._flops, self._engine = defaultdict(float), defaultdict(float), None
        return cost
