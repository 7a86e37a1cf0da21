"""The device mesh: data × fsdp × tensor × context. A laptop is 1×1×1×1, and runs the same code."""

from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh

from sdistill.config import ConfigError, require_positive

AXES = ("data", "fsdp", "tensor", "context")


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; their product must be the number of devices used.

    Attributes:
      data: Replicas of the parameters, each with its own rows of a batch.
      fsdp: Ways the parameters and the batch are split together.
      tensor: Ways heads, feed-forward width and vocabulary are split.
      context: Ways a sequence is split.
    """

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1

    def __post_init__(self) -> None:
        require_positive(self, *AXES)


def make_mesh(config: MeshConfig) -> Mesh:
    """The mesh over this job's first data·fsdp·tensor·context devices.

    Raises:
      ConfigError: if there are fewer devices than that.
    """
    shape = tuple(getattr(config, axis) for axis in AXES)
    needed = int(np.prod(shape))
    if needed > jax.device_count():
        sizes = " × ".join(f"{axis}={size}" for axis, size in zip(AXES, shape, strict=True))
        raise ConfigError(
            f"mesh {sizes} needs {needed} devices, {jax.device_count()} found; make an axis smaller"
        )
    return Mesh(np.asarray(jax.devices()[:needed]).reshape(shape), AXES)
