"""What a run shows while it goes on: TensorBoard always, Weights & Biases where it is installed and wanted.

Times are shown here and kept nowhere else: `metrics.jsonl` is the same, to the bit, however long a step took.
"""

import contextlib
import importlib.util
import itertools
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from sdistill.clock import StepCost
from sdistill.distributed.processes import is_writer
from sdistill.flops import peak_flops

logger = logging.getLogger(__name__)


class Monitor:
    """Shows the figures of every step. In a run of several processes only the first one does."""

    def __init__(self, workdir: Path, config: Mapping[str, Any], mesh: Mesh):
        """Opens the log in `workdir`/tensorboard; W&B takes WANDB_PROJECT, and shows nothing without it."""
        self._devices = mesh.size
        self._peak = peak_flops(mesh.devices.flat[0].device_kind)
        self._tensorboard = EventFile(workdir / "tensorboard") if is_writer() else None
        self._wandb: Any = None
        if is_writer() and os.environ.get("WANDB_PROJECT") and importlib.util.find_spec("wandb"):
            import wandb

            self._wandb = wandb.init(dir=str(workdir), name=workdir.name, config=dict(config), resume="allow")

    def show(self, step: int, record: Mapping[str, float], cost: StepCost) -> None:
        """Adds the figures of a step, what it took, and the most memory that a device has had in use.

        Model FLOPs utilisation, `mfu`, is the arithmetic of the model that a step, or a part of it, has to do
        (`flops`), over what its devices do at best in the same time: FLOPs / (seconds × devices ×
        peak of bfloat16). Where the peak is not known, as of CPUs, there is the rate only.
        """
        if self._tensorboard is None:
            return
        total = sum(cost.seconds.values())
        seconds = {**cost.seconds, "step": total}
        shown = {f"train/{name}": value for name, value in record.items()}
        shown |= {f"seconds/{name}": value for name, value in seconds.items()}
        for name, flops in {**cost.flops, "step": sum(cost.flops.values())}.items():
            rate = flops / seconds[name] / self._devices
            shown[f"teraflops_per_second_and_device/{name}"] = rate / 1e12
            if self._peak is not None:
                shown[f"mfu/{name}"] = rate / self._peak
        if (stats := cost.engine) is not None:
            shown["speed/sampled_tokens_per_second_and_device"] = stats.tokens / total / self._devices
            if stats.occupancy:  # 0 where no response has ever waited for a slot
                shown["speed/slots_busy"] = stats.occupancy
        if peak := (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"):
            shown["memory/peak_gb"] = peak / 1e9
        self._tensorboard.add(step, shown)
        if self._wandb is not None:
            self._wandb.log(shown, step=step)

    def close(self) -> None:
        """Writes what is left."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


class Profiler:
    """Records chosen steps with JAX's profiler: TensorBoard and Perfetto show what it leaves."""

    def __init__(self, workdir: Path, steps: tuple[int, int] | None):
        """Of the first and the last step to record; None for none. Every process records its own devices."""
        self._directory = workdir / "profile"
        self._steps = range(steps[0], steps[1] + 1) if steps else range(0)
        self._recording = False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around each step, which has this number, from 1."""
        if number not in self._steps:
            yield
            return
        if not self._recording:
            jax.profiler.start_trace(str(self._directory))
            self._recording = True
        is_last = True  # also where the step raises
        try:
            with jax.profiler.StepTraceAnnotation("step", step_num=number):
                yield
            is_last = number == self._steps[-1]
        finally:
            if is_last:
                jax.profiler.stop_trace()
                self._recording = False


class EventFile:
    """TensorBoard's file of metrics, written by the thread that adds to it, and on disk at once.

    The usual writer hands metrics to a thread of its own. If that cannot write, on a full disk for instance,
    it ends, and the run waits for it forever. Here such metrics are lost, with a warning, and the run goes
    on.
    """

    def __init__(self, directory: Path):
        """Makes the directory; a file is begun with the first figures, and anew after one that failed."""
        self._directory = directory
        self._numbers = itertools.count()
        self._writer: Any = None
        directory.mkdir(parents=True, exist_ok=True)

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Adds the figures of a step, or warns that they could not be written."""
        # Imported here: tensorboardX imports torch where there is one, which takes seconds.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event

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
