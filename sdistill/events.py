"""TensorBoard's file of a run's figures, written by the thread that adds to it.

The usual writer hands figures to a thread of its own. Where that cannot write, on a full disk for instance,
it ends, and the run soon waits for it forever. Here such figures are lost, with a warning, and the run goes
on.
"""

import contextlib
import itertools
import logging
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

logger = logging.getLogger(__name__)


class EventFile:
    """Figures by name and step; on disk at once, so that who looks sees the last step."""

    def __init__(self, directory: Path):
        """Makes the directory; a file is begun with the first figures, and anew after one that failed."""
        self._directory = directory
        self._numbers = itertools.count()
        self._writer: EventsWriter | None = None
        directory.mkdir(parents=True, exist_ok=True)

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Adds the figures of a step, or warns that they could not be written."""
        event = Event(step=step, wall_time=time.time())
        for name, value in figures.items():
            event.summary.value.add(tag=name, simple_value=value)
        try:
            if self._writer is None:
                self._writer = EventsWriter(str(self._directory / "events"), f".{next(self._numbers)}")
            self._writer.write_event(event)
            self._writer.flush()
        except OSError as error:
            logger.warning("%s: step %d is not shown: %s", self._directory, step, error)
            self.close()

    def close(self) -> None:
        """Closes the file; the next figures begin another one."""
        if self._writer is not None:
            with contextlib.suppress(OSError):  # of what was left to write, which was warned of
                self._writer.close()
        self._writer = None
