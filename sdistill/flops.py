"""Arithmetic of a decoder from its shape: what any way of computing it has to do.

A multiplication and an addition count two; norms, RoPE and softmax count nothing, as is usual.
"""

from collections import Counter
from collections.abc import Iterable

from sdistill.model.config import ModelConfig

BACKWARD = 2.0
"""Products of a matrix' backward pass, for one of its forward pass."""

ATTENTION_KERNELS = 3.5
"""The same for the attention kernels, which make the weights once more for each of their two passes.

Forward 2 products (QK, PV); backward 3 for queries (QK, dY·V, dS·K), 4 for keys and values (QK, P·dY, dY·V,
dS·Q).
"""


def visible_pairs(length: int, window: int | None) -> float:
    """How many pairs of a query and a key it sees are in a sequence."""
    if window is None or window >= length:
        return length * (length + 1) / 2
    return window * (window + 1) / 2 + (length - window) * window


def attention_flops(model: ModelConfig, length: int) -> float:
    """Forward pass of attention among the tokens of one sequence, in all layers."""
    pairs = sum(
        visible_pairs(length, model.sliding_window if model.layer_type(i) == "sliding_attention" else None)
        for i in range(model.num_hidden_layers)
    )
    return 2 * 2.0 * pairs * model.num_attention_heads * model.head_dim


def matrix_flops(model: ModelConfig, tokens: int) -> float:
    """Forward pass of the layers' matrices."""
    heads = 2 * model.num_attention_heads + 2 * model.num_key_value_heads
    layer = model.hidden_size * (heads * model.head_dim + 3 * model.intermediate_size)
    return 2.0 * tokens * layer * model.num_hidden_layers


def repeated_flops(model: ModelConfig, tokens: int) -> float:
    """What the backward pass computes once more if it keeps a layer's input only.

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


def forward_flops_of(model: ModelConfig, sequences: Iterable[tuple[int, int]]) -> float:
    """Forward pass of many sequences, each given by its length and the number of positions with logits."""
    return sum(count * forward_flops(model, *shape) for shape, count in Counter(sequences).items())


def sampling_flops(model: ModelConfig, sequences: Iterable[tuple[int, int]], samples: int) -> float:
    """Sampling of responses, where so many next to each other share a prompt, which is read once.

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
