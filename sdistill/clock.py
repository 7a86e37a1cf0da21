"""What a step takes: seconds and arithmetic, by what for, and what the engine did meanwhile."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from sdistill.engine.types import EngineStats


class Spent(NamedTuple):
    """What something took.

    Attributes:
      seconds: By what for; no second is in two of them.
      flops: Arithmetic of the model over all devices, by the same names (see `parallel.flops`): what there
        is to compute, not what padding and rematerialisation make of it.
      usage: What the engine did; None where nothing was sampled.
    """

    seconds: Mapping[str, float]
    flops: Mapping[str, float]
    usage: EngineStats | None


class Clock:
    """Adds up what a step takes.

    Attributes:
      doing: What time goes to at this moment; "" outside of all blocks.
    """

    def __init__(self) -> None:
        self.doing = ""
        self._since = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._flops: dict[str, float] = {}
        self._usage: EngineStats | None = None

    @contextlib.contextmanager
    def spent_on(self, what: str) -> Iterator[None]:
        """Adds the time of the block, without that of blocks within it."""
        outer = self.doing
        self._turn_to(what)
        try:
            yield
        finally:
            self._turn_to(outer)

    def _turn_to(self, what: str) -> None:
        now = time.perf_counter()
        if self.doing:
            self._seconds[self.doing] = self._seconds.get(self.doing, 0.0) + now - self._since
        self.doing, self._since = what, now

    @property
    def seconds(self) -> float:
        """For how long it has been doing that."""
        return time.perf_counter() - self._since

    def computed(self, what: str, flops: float) -> None:
        """Adds arithmetic."""
        self._flops[what] = self._flops.get(what, 0.0) + flops

    def see(self, usage: EngineStats) -> None:
        """Takes note of what the engine has done so far; the last note of a step counts."""
        self._usage = usage

    def read(self) -> Spent:
        """What was spent since the last reading."""
        seconds = self._seconds
        if self._usage is not None:  # the engine begins with it
            seconds["generate"] -= self._usage.reshard_seconds
            seconds["reshard"] = self._usage.reshard_seconds
        spent = Spent(seconds, self._flops, self._usage)
        self._seconds, self._flops, self._usage = {}, {}, None
        return spent
