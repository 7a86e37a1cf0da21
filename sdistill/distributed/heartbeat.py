"""Which process of a run is behind: each says where it is, and one of them names those that lag.

Every process writes a small file into the run directory again and again, and reads those of the others; from
a thread of its own, so that it can while its main thread waits in a collective operation. A process lags if
its file no longer changes (it was stopped, or its machine is gone), or if no process gets on, they are not
all at the same place, and it has been at its own for longest. Every process measures that time itself: the
clocks of different machines are never compared.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax

from sdistill.distributed.processes import seconds_waited

logger = logging.getLogger(__name__)

BEAT, PATIENCE = 10.0, 120.0  # seconds


class Beat(NamedTuple):
    """What a process says of itself.

    Attributes:
      process: Its index.
      host: The machine it is on.
      number: Of the beat; it changes as long as the process is alive.
      doing: What its main thread is doing, and of which step.
      seconds: That it has been doing it for.
    """

    process: int
    host: str
    number: int
    doing: str
    seconds: float


class Heartbeat:
    """Beats within its `with` block, in a run of several processes. It only looks: no run ends by it."""

    def __init__(
        self,
        workdir: Path,
        doing: Callable[[], tuple[str, float]],
        *,
        every: float = BEAT,
        patience: float = PATIENCE,
    ):
        """Of this process.

        Args:
          workdir: That all processes see.
          doing: Says what the main thread is doing, and for how many seconds; called from another one.
          every: Seconds between beats.
          patience: Seconds after which a process lags.
        """
        self._directory, self._doing = workdir / "heartbeats", doing
        self._every, self._patience = every, patience
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._number = 0
        self._seen: dict[
            int, tuple[Beat, float]
        ] = {}  # the last beat of each, and since when it has been that
        self._named: set[int] = set()

    def __enter__(self) -> Self:
        if jax.process_count() > 1:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=self._every)  # a directory that hangs must not hold the run

    def _run(self) -> None:
        while not self._ended.wait(self._every):
            try:
                self._beat()
                self._look()
            except (OSError, ValueError):  # a file that cannot be written, or read yet: the next beat may
                continue

    def _beat(self) -> None:
        self._number += 1
        doing, seconds = self._doing()
        if waited := seconds_waited():
            doing, seconds = f"{doing}, waiting for others", waited
        own = Beat(jax.process_index(), socket.gethostname(), self._number, doing, seconds)
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / f"{own.process}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(own._asdict()))
        os.replace(temporary, path)

    def _look(self) -> None:
        now = time.monotonic()
        for process in range(jax.process_count()):
            beat = self._read(process)
            if process not in self._seen or (beat is not None and beat != self._seen[process][0]):
                unknown = Beat(process, "a host that has not been heard of", 0, "starting", 0.0)
                self._seen[process] = beat or unknown, now
        silent = {p: now - since for p, (_, since) in self._seen.items() if now - since > self._patience}
        alive = [process for process in self._seen if process not in silent]
        if min(alive, default=-1) != jax.process_index():
            return  # another one speaks
        lagging = self._lagging(silent, alive)
        for process in lagging.keys() - self._named:
            logger.warning("%s", lagging[process])
        for process in self._named - lagging.keys():
            logger.warning("process %d goes on", process)
        self._named = set(lagging)

    def _lagging(self, silent: dict[int, float], alive: list[int]) -> dict[int, str]:
        """Those that lag, and what to say of them."""
        found = {}
        for process, seconds in silent.items():
            host, doing = self._seen[process][0][1::2]
            found[process] = (
                f"process {process} on {host} has given no sign of life for {seconds:.0f} s; its last was "
                f"from {doing}. The others wait for it"
            )
        beats = [self._seen[process][0] for process in alive]
        if min(beat.seconds for beat in beats) > self._patience:  # nobody gets on
            longest = max(beats, key=lambda beat: beat.seconds)
            behind = [beat for beat in beats if beat.doing == longest.doing]
            for beat in behind if len(behind) < len(beats) else ():
                found[beat.process] = (
                    f"process {beat.process} on {beat.host} has been at {beat.doing} for {beat.seconds:.0f} "
                    f"s; {len(beats) - len(behind)} of {len(self._seen)} processes wait for it"
                )
        return found

    def _read(self, process: int) -> Beat | None:
        path = self._directory / f"{process}.json"
        if not path.exists():
            return None
        content: dict[str, Any] = json.loads(path.read_text())
        return Beat(**content)
