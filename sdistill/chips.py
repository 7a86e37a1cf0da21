"""TPU chips as their makers describe them, and the least time that a program can take on one."""

from collections.abc import Mapping
from dataclasses import dataclass

from launch.hlo import Totals
from sdistill.settings import ConfigError


@dataclass(frozen=True)
class Chip:
    """What one chip does at best (https://docs.cloud.google.com/tpu/docs, the page of each version).

    Attributes:
      flops: Of bfloat16 matrix products, a second.
      memory: Bytes a second between HBM and the core.
      links: Bytes a second that it sends to its neighbours, over all of its links.
      slices: Shapes in which chips are rented, that the compiler knows by `VERSION:SHAPE`.
    """

    flops: float
    memory: float
    links: float
    slices: tuple[str, ...]


_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
_SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")

CHIPS: Mapping[str, Chip] = {
    "v4": Chip(275e12, 1228e9, 300e9, _CUBES),
    "v5e": Chip(197e12, 819e9, 200e9, _SQUARES),
    "v5p": Chip(459e12, 2765e9, 600e9, _CUBES),
    "v6e": Chip(918e12, 1638e9, 400e9, _SQUARES),
}
"""By the version in a topology's name."""


DEVICE_FLOPS: Mapping[str, float] = {
    "TPU v4": CHIPS["v4"].flops,
    "TPU v5 lite": CHIPS["v5e"].flops,
    "TPU v5e": CHIPS["v5e"].flops,
    "TPU v5": CHIPS["v5p"].flops,
    "TPU v6 lite": CHIPS["v6e"].flops,
    "TPU v6e": CHIPS["v6e"].flops,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
}
"""FLOP/s of dense bfloat16 matrix products, by how the names begin that JAX gives devices (GPUs: the data
sheet of each, https://www.nvidia.com/en-us/data-center)."""


def peak_flops(kind: str) -> float | None:
    """FLOP/s of a device at best, by its `device_kind`; None where that is not known, as for CPUs."""
    fitting = [name for name in DEVICE_FLOPS if kind.startswith(name)]
    return DEVICE_FLOPS[max(fitting, key=len)] if fitting else None


def chip_of(topology: str) -> Chip:
    """The chip of a slice such as `v5p:2x2x2`.

    Raises:
      ConfigError: for other names; lists those that are known.
    """
    version, _, shape = topology.partition(":")
    if version not in CHIPS or shape not in CHIPS[version].slices:
        known = "; ".join(f"{name}: {', '.join(chip.slices)}" for name, chip in CHIPS.items())
        raise ConfigError(f"topology={topology!r} is not known; give VERSION:SHAPE, one of {known}")
    return CHIPS[version]


def least_seconds(chip: Chip, work: Totals, kernel_flops: float) -> dict[str, float]:
    """Seconds that a program takes if nothing but one thing held it up: the largest is a lower bound.

    Args:
      chip: That runs it.
      work: What it does on one chip.
      kernel_flops: What its custom kernels add to the arithmetic, on one chip.
    """
    sent = sum(size * (2 if kind == "all-reduce" else 1) for kind, size in work.collectives.items())
    return {
        "arithmetic": (work.flops + kernel_flops) / chip.flops,
        "memory": work.bytes / chip.memory,
        "links": sent / chip.links,
    }
