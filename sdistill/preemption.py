"""The notice that a machine is about to be taken away: SIGTERM, as TPU VMs and schedulers send it."""

import signal
import threading
from types import FrameType
from typing import Any, Self

from sdistill.distributed.processes import any_process


class Preempted(Exception):
    """The run has been told to end. What it had is kept: the same command continues."""


class PreemptionNotice:
    """Knows, inside its `with` block, whether the notice has come.

    Several processes get it at different times, and have to act on it at the same point: all of them must
    ask equally often, and are told the same. (JAX has `reached_preemption_sync_point` for that; Orbax calls
    it, too, with counters of its own, and then it holds for neither.)
    """

    def __init__(self) -> None:
        self._arrived = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # others cannot handle signals
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._arrived = True

    def check(self, *_: object) -> None:
        """Raises `Preempted` if it has come to any process.

        Takes, and ignores, what those say who call back.
        """
        if any_process(self._arrived):
            raise Preempted
