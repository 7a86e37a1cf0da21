"""Checkpoints of everything that decides a run's future, the way back from damaged ones, and preemption."""

import logging
import shutil
import signal
import threading
from pathlib import Path
from typing import Any, Self

import jax
import orbax.checkpoint as ocp

from sdistill.distributed.processes import any_process
from sdistill.model.folders import first_line

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run, at most two kept, each written whole or not at all.

    A checkpoint holds `arrays` (a tree: parameters, optimizer state, teacher, step) and `position`
    (JSON: where the data iterator is). Random numbers need no state: they are functions of the seed and
    the step.
    """

    def __init__(self, directory: Path):
        self._directory = directory.resolve()
        self._manager = self._open()
        self._writing = 0

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
        return ocp.CheckpointManager(self._directory, options=options)

    def save(self, step: int, arrays: Any, position: dict[str, Any]) -> None:
        """Starts to write a checkpoint; training may go on meanwhile.

        One that cannot be written, for instance because the disk is full, is given up with a warning: the
        ones before it stay.
        """
        self.wait()
        self._writing = step
        parts = {"arrays": ocp.args.StandardSave(arrays), "position": ocp.args.JsonSave(position)}
        try:
            self._manager.save(step, args=ocp.args.Composite(**parts))
        except Exception as error:  # of disk, network or permissions: many classes, one way out
            self._give_up(error)

    def wait(self) -> None:
        """Until what is being written is on disk, or given up."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # see `save`
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._manager = self._open()  # which removes what was written of it
        logger.warning(
            "checkpoint of step %d could not be written to %s (%s); the run goes on, and could be continued "
            "from step %s; make room, the next checkpoint is tried as usual",
            self._writing,
            self._directory,
            first_line(error),
            self._manager.latest_step(),
        )

    def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """The newest checkpoint that can be read, as (step, arrays, position); None if there is none.

        Damaged ones are reported and put aside, into `damaged_checkpoints`, and so made again on the way.

        Args:
          like: A tree of the shapes, types and shardings that `arrays` must have.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        parts = {"arrays": ocp.args.StandardRestore(abstract), "position": ocp.args.JsonRestore()}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._manager.restore(step, args=ocp.args.Composite(**parts))
                return step, restored.arrays, restored.position
            except Exception as error:  # whatever a damaged file makes of the reader
                logger.warning(
                    "checkpoint of step %d in %s cannot be read (%s); falling back to the one before",
                    step,
                    self._directory,
                    first_line(error),
                )
                self._manager.close()
                aside = self._directory.parent / "damaged_checkpoints" / str(step)
                shutil.rmtree(aside, ignore_errors=True)
                aside.parent.mkdir(exist_ok=True)
                shutil.move(self._directory / str(step), aside)
                self._manager = self._open()
        return None

    def close(self) -> None:
        """Waits until everything is on disk."""
        self.wait()
        self._manager.close()


class Preempted(Exception):
    """The run was told to end. What it had is kept: the same command resumes it."""


class PreemptionNotice:
    """Whether SIGTERM has arrived, inside its `with` block: TPU VMs and schedulers send it before they take a
    machine.

    Several processes get it at different times, and must act on it at the same point: all of them must call
    `check` equally often, and get the same answer. (JAX's `reached_preemption_sync_point` does not serve:
    Orbax calls it as well, with counters of its own.)
    """

    def __init__(self) -> None:
        self._arrived = False
        self._previous: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # others cannot handle signals
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, *_: object) -> None:
        self._arrived = True

    def check(self, *_: object) -> None:
        """Raises `Preempted` if it has arrived at any process. Arguments of callbacks are ignored."""
        if any_process(self._arrived):
            raise Preempted
