"""Where the training signal falls: what each token of a step's rollouts adds to the gradient.

A token sends its gradient into the network through one place, the final hidden state that predicts it. The
norm of the objective's gradient there is its `signal`; what it counts in the objective, its importance
ratio and its advantage are part of that. The backward pass comes by there anyway. Norms of several tokens do
not add up to that of their sum; a share of the signal is one of the sum of norms.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from sdistill.analysis.token_classes import CLASSES, token_classes
from sdistill.engine.types import Completions
from sdistill.text.spans import of_rows, token_texts
from sdistill.text.tokenizer import Tokenizer
from sdistill.types import Response, TokenAttribution
from sdistill.updates import UpdateReport

DIGITS = 4  # significant ones that are kept
PLACES = 20  # after the point, at most


def attribute(
    generations: Sequence[Response],
    rollouts: Completions,
    has_teacher: Float[np.ndarray, " B"] | None,
    updates: Sequence[UpdateReport],
    tokenizer: Tokenizer,
) -> tuple[list[Response], dict[str, float]]:
    """The rollouts with what is known of each token, and what the step's record says by class of tokens.

    The record has each class' share of the tokens and of the signal, and its tokens' mean divergence in the
    rows that have a teacher.

    Args:
      generations: In the order of the batch.
      rollouts: Their tokens.
      has_teacher: 1 where a row has one; None for objectives without divergence.
      updates: Of a run with `attribution`.
      tokenizer: Of the model.
    """
    arrays, lengths = tokens_of(updates, rollouts.ids.shape), rollouts.lengths.tolist()
    texts = [
        token_texts(tokenizer, ids[:length].tolist())
        for ids, length in zip(rollouts.ids, lengths, strict=True)
    ]
    lists = {name: rounded(values_BT).tolist() for name, values_BT in arrays.items()}
    taught_B = np.zeros(len(texts)) if has_teacher is None else has_teacher
    described = []
    for row, (generation, length) in enumerate(zip(generations, lengths, strict=True)):
        columns: dict[str, Any] = {name: values[row][:length] for name, values in lists.items()}
        if not taught_B[row]:
            columns["divergence"] = None
        described.append(replace(generation, attribution=TokenAttribution(texts[row], **columns)))
    return described, _by_class(arrays, texts, taught_B)


def tokens_of(updates: Sequence[UpdateReport], shape: tuple[int, ...]) -> dict[str, Float[np.ndarray, "B T"]]:
    """What the updates of a step say of each token, in the order of the batch: name → array of this shape."""
    arrays: dict[str, np.ndarray] = {}
    rows = shape[0] // len(updates)
    for number, update in enumerate(updates):
        for numbers, report in update.parts:
            assert report.tokens is not None
            for name, part in jax.device_get(report.tokens)._asdict().items():
                if part is not None:
                    whole = arrays.setdefault(name.removesuffix("_BT"), np.zeros(shape, np.float32))
                    whole[number * rows + numbers, : part.shape[1]] = part
    return arrays


def rounded(values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """To four significant digits, and twenty places: short to write down."""
    values = values.astype(np.float64)
    with np.errstate(divide="ignore"):
        size = np.floor(np.log10(np.abs(values)))
    # A power of ten is exact up to 10^22, and so the quotient is the nearest number to its few digits.
    unit = 10.0 ** np.clip(DIGITS - 1 - size, 0, PLACES)
    return np.rint(values * unit) / unit


def _by_class(
    arrays: dict[str, Float[np.ndarray, "B T"]],
    texts: Sequence[Sequence[str]],
    taught_B: Float[np.ndarray, " B"],
) -> dict[str, float]:
    """What the record says; 0 where there is nothing to share or to average."""
    width = arrays["signal"].shape[1]
    counted_BT = np.arange(width) < np.asarray([len(row) for row in texts])[:, None]
    classes_BT = of_rows(token_classes, texts, width)
    tokens, signal = counted_BT.sum(), arrays["signal"][counted_BT].sum()
    figures = {}
    for index, name in enumerate(CLASSES):
        chosen_BT = (classes_BT == index) & counted_BT
        figures[f"class_tokens_{name}"] = float(chosen_BT.sum() / max(tokens, 1))
        figures[f"class_signal_{name}"] = float(arrays["signal"][chosen_BT].sum() / (signal or 1.0))
        if "divergence" in arrays:
            chosen_BT &= taught_B[:, None] > 0
            total = arrays["divergence"][chosen_BT].sum()
            figures[f"class_divergence_{name}"] = float(total / max(chosen_BT.sum(), 1))
    return figures
