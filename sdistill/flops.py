"""FLOPs of a decoder from its shape, and peak FLOP/s of accelerators.

FLOPs are those that any way of computing the model has to make. A multiplication and an addition count two;
norms, RoPE and softmax count nothing, as is usual.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from sdistill.model.config import ModelConfig

BACKWARD = 2.0
"""Matrix products of a backward pass for one of its forward pass."""


def visible_pairs(length: int, window: int | None) -> float:
    """Pairs of a query and a key that it attends to, in one sequence under a causal (windowed) mask."""
    window = min(length, window or length)
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


def head_flops(model: ModelConfig, positions: int) -> float:
    """From hidden states to logits."""
    return 2.0 * positions * model.hidden_size * model.vocab_size


def forward_flops(model: ModelConfig, length: int, positions: int) -> float:
    """Forward pass of one sequence, with the logits of some positions."""
    return matrix_flops(model, length) + attention_flops(model, length) + head_flops(model, positions)


def forward_flops_of(model: ModelConfig, sequences: Iterable[tuple[int, int]]) -> float:
    """Forward pass of many sequences, each given by its length and the number of positions with logits."""
    return sum(count * forward_flops(model, *shape) for shape, count in Counter(sequences).items())


def sampling_flops(model: ModelConfig, sequences: Iterable[tuple[int, int]], samples: int) -> float:
    """Sampling of responses, `samples` consecutive ones of which share a prompt, which is read once.

    Args:
      sequences: Tokens of prompt and response together, and of the response, of each.
    """
    sequences = list(sequences)
    # The last token of a response is never read, and the last one of a prompt with each response.
    prompts = [(max(length - response - 1, 0), 0) for length, response in sequences]
    answered = forward_flops_of(model, ((length - 1, response) for length, response in sequences))
    return answered - forward_flops_of(model, prompts) + forward_flops_of(model, prompts[::samples])


DEVICE_FLOPS: Mapping[str, float] = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
}
"""FLOP/s of dense bfloat16 matrix products, by the start of JAX's `device_kind`.

Sources: https://docs.cloud.google.com/tpu/docs, the page of each version; the data sheet of each GPU,
https://www.nvidia.com/en-us/data-center.
"""


def peak_flops(kind: str) -> float | None:
    """Peak FLOP/s of a device, by its `device_kind`; None where that is not known, as for CPUs."""
    fitting = [name for name in DEVICE_FLOPS if kind.startswith(name)]
    return DEVICE_FLOPS[max(fitting, key=len)] if fitting else None
