"""The device mesh: data × fsdp × tensor × context. A laptop is 1×1×1×1, and runs the same code."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import jax
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import Mesh

from sdistill.settings import ConfigError, require_positive

AXES = ("data", "fsdp", "tensor", "context")


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; their product must be the number of devices used.

    Attributes:
      data: Replicas of the parameters, each with its own rows of a batch.
      fsdp: Shards of the parameters, each with its own rows of a batch.
      tensor: Shards of heads, feed-forward width and vocabulary.
      context: Shards of each sequence, and of the parameters.
    """

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1

    def __post_init__(self) -> None:
        require_positive(self, *AXES)

    def __str__(self) -> str:
        return " × ".join(f"{axis}={getattr(self, axis)}" for axis in AXES)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over the first data·fsdp·tensor·context devices, neighbours next to each other.

    Args:
      devices: Where to take them from. None takes this job's.

    Raises:
      ConfigError: if there are fewer devices than that.
    """
    devices = jax.devices() if devices is None else devices
    shape = tuple(getattr(config, axis) for axis in AXES)
    needed = math.prod(shape)
    if needed > len(devices):
        raise ConfigError(f"mesh {config} needs {needed} devices, {len(devices)} found; make an axis smaller")
    if jax.process_count() > 1 and needed < len(devices):
        raise ConfigError(
            f"mesh leaves {len(devices) - needed} of {len(devices)} devices out; with several processes it "
            "must cover all, or some process would have none: make an axis larger"
        )
    # An axis may run along several of a TPU slice's own, or along a part of one.
    arranged = create_device_mesh(shape, devices[:needed], allow_split_physical_axes=True)
    return Mesh(arranged, AXES)


def device_memory() -> int:
    """Bytes that one device of this process has; on a CPU they are shared by all of its devices."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return int(statistics["bytes_limit"])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()
