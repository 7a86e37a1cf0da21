"""FLOPs of a decoder from its shape, and what accelerators do at best.

FLOPs are those that any way of computing the model has to make. A multiplication and an addition count two;
norms, RoPE and softmax count nothing, as is usual.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sdistill.model.config import ModelConfig
from sdistill.settings import ConfigError

BACKWARD = 2.0
"""Matrix products of a backward pass for one of its forward pass."""

ATTENTION_BACKWARD = 3.5
"""The same for the attention kernels, which recompute the weights in each of their two backward passes.

Forward 2 products (QK, PV); backward 3 for queries (QK, dY·V, dS·K), 4 for keys and values (QK, P·dY, dY·V,
dS·Q).
"""


def visible_pairs(length: int, window: int | None) -> float:
    """Pairs of a query and a key that it attends to, in one sequence under a causal (windowed) mask."""
    if window is None or window >= length:
        return length * (length + 1) / 2
    return window * (window + 1) / 2 + (length - window) * window


def attention_pairs(model: ModelConfig, length: int) -> float:
    """Visible pairs of one sequence, summed over layers."""
    return sum(
        visible_pairs(length, model.sliding_window if model.layer_type(i) == "sliding_attention" else None)
        for i in range(model.num_hidden_layers)
    )


def attention_flops(model: ModelConfig, length: int) -> float:
    """Forward pass of attention among the tokens of one sequence, in all layers."""
    return 2 * 2.0 * attention_pairs(model, length) * model.num_attention_heads * model.head_dim


def matrix_flops(model: ModelConfig, tokens: int) -> float:
    """Forward pass of the layers' matrices."""
    heads = 2 * model.num_attention_heads + 2 * model.num_key_value_heads
    layer = model.hidden_size * (heads * model.head_dim + 3 * model.intermediate_size)
    return 2.0 * tokens * layer * model.num_hidden_layers


def recomputed_flops(model: ModelConfig, tokens: int) -> float:
    """Matrix products that the backward pass recomputes where only a layer's input is kept (`remat="full"`).

    Not the last product where its result is only added to the residual stream: no gradient needs that.
    """
    last = 2.0 * tokens * model.hidden_size * model.intermediate_size * model.num_hidden_layers
    return matrix_flops(model, tokens) - (last if model.norm == "input" else 0.0)


def head_flops(model: ModelConfig, positions: int) -> float:
    """From hidden states to logits."""
    return 2.0 * positions * model.hidden_size * model.vocab_size


def forward_flops(model: ModelConfig, length: int, positions: int) -> float:
    """Forward pass of one sequence, with the logits of some positions."""
    return matrix_flops(model, length) + attention_flops(model, length) + head_flops(model, positions)


def gradient_flops(model: ModelConfig, length: int, positions: int) -> float:
    """Gradient of one sequence as it is computed: forward, what is recomputed, and backward pass.

    Assumes the attention kernels, and that the logits, which are never kept, are computed twice.
    """
    remat = model.compute.remat == "full"
    matrices = (1 + BACKWARD) * matrix_flops(model, length) + remat * recomputed_flops(model, length)
    attention = (1 + remat + ATTENTION_BACKWARD) * attention_flops(model, length)
    return matrices + attention + (2 + BACKWARD) * head_flops(model, positions)


def forward_flops_of(model: ModelConfig, sequences: Iterable[tuple[int, int]]) -> float:
    """Forward pass of many sequences, each given by its length and the number of positions with logits."""
    return sum(count * forward_flops(model, *shape) for shape, count in Counter(sequences).items())


def sampling_flops(model: ModelConfig, sequences: Iterable[tuple[int, int]], samples: int) -> float:
    """Sampling of responses, `samples` consecutive ones of which share a prompt, which is read once.

    Args:
      model: That samples.
      sequences: Tokens of prompt and response together, and of the response, of each.
      samples: Responses to a prompt.
    """
    sequences = list(sequences)
    # The last token of a response is never read, and the last one of a prompt with each response.
    prompts = [(max(length - response - 1, 0), 0) for length, response in sequences]
    answered = forward_flops_of(model, ((length - 1, response) for length, response in sequences))
    return answered - forward_flops_of(model, prompts) + forward_flops_of(model, prompts[::samples])


@dataclass(frozen=True)
class Chip:
    """A TPU chip at best (https://docs.cloud.google.com/tpu/docs, the page of each version).

    Attributes:
      flops: Of bfloat16 matrix products, a second.
      bandwidth: Bytes a second between HBM and the core.
      slices: Shapes in which chips are rented, that the compiler knows by `VERSION:SHAPE`.
    """

    flops: float
    bandwidth: float
    slices: tuple[str, ...]


_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
_SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")

CHIPS: Mapping[str, Chip] = {
    "v4": Chip(275e12, 1228e9, _CUBES),
    "v5e": Chip(197e12, 819e9, _SQUARES),
    "v5p": Chip(459e12, 2765e9, _CUBES),
    "v6e": Chip(918e12, 1638e9, _SQUARES),
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
