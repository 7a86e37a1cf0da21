"""Where the training signal falls: what each token of a step's rollouts adds to the gradient.

A token sends its gradient into the network through one place, the final hidden state that predicts it. The
norm of the objective's gradient there is the token's `signal`; its weight in the objective, its importance
ratio and its advantage are part of it. Norms of several tokens do not add up to that of their sum: a share of
the signal is a share of the sum of norms.
"""

from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np
from jaxtyping import Float

from sdistill.analysis.epistemic import CLASSES, token_classes
from sdistill.engine.types import Completions
from sdistill.step import UpdateReport
from sdistill.text.tokenizer import Tokenizer
from sdistill.text.words import map_rows, token_texts
from sdistill.types import Response, TokenAttribution

SIGNIFICANT_DIGITS = 4
DECIMAL_PLACES = 20  # at most


def attribute(
    responses: Sequence[Response],
    completions: Completions,
    has_teacher: Float[np.ndarray, " B"] | None,
    updates: Sequence[UpdateReport],
    tokenizer: Tokenizer,
) -> tuple[list[Response], dict[str, float]]:
    """The rollouts with their token attribution, and metrics by class of tokens.

    The metrics are each class' share of the tokens and of the signal, and its tokens' mean divergence in the
    rows that have a teacher.

    Args:
      responses: In the order of the batch.
      has_teacher: 1 where a row has a teacher; None for objectives without a divergence.
      updates: Of a run with `attribution`.
    """
    arrays, lengths = token_arrays(updates, completions.ids.shape), completions.lengths.tolist()
    texts = [
        token_texts(tokenizer, ids[:length].tolist())
        for ids, length in zip(completions.ids, lengths, strict=True)
    ]
    lists = {name: rounded(values_BT).tolist() for name, values_BT in arrays.items()}
    has_teacher_B = np.zeros(len(texts)) if has_teacher is None else has_teacher
    attributed = [
        replace(
            response,
            attribution=TokenAttribution(
                tokens=texts[row],
                signal=lists["signal"][row][:length],
                entropy=lists["entropy"][row][:length],
                divergence=lists["divergence"][row][:length] if has_teacher_B[row] else None,
            ),
        )
        for row, (response, length) in enumerate(zip(responses, lengths, strict=True))
    ]
    return attributed, _by_class(arrays, texts, has_teacher_B)


def token_arrays(
    updates: Sequence[UpdateReport], shape: tuple[int, ...]
) -> dict[str, Float[np.ndarray, "B T"]]:
    """The per-token figures of a step's updates, in the order of the batch: name → array of this shape."""
    arrays: dict[str, np.ndarray] = {}
    size = shape[0] // len(updates)
    for number, update in enumerate(updates):
        for rows, report in update.micro:
            for name, part in jax.device_get(report.tokens).items():
                whole = arrays.setdefault(name, np.zeros(shape, np.float32))
                whole[number * size + rows, : part.shape[1]] = part
    return arrays


def rounded(values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """To four significant digits, and twenty decimal places at most: short to write down."""
    values = values.astype(np.float64)
    with np.errstate(divide="ignore"):
        size = np.floor(np.log10(np.abs(values)))
    # Powers of ten are exact up to 10^22, so the quotient is the nearest number with these digits.
    unit = 10.0 ** np.clip(SIGNIFICANT_DIGITS - 1 - size, 0, DECIMAL_PLACES)
    return np.rint(values * unit) / unit


def _by_class(
    arrays: dict[str, Float[np.ndarray, "B T"]],
    texts: Sequence[Sequence[str]],
    has_teacher_B: Float[np.ndarray, " B"],
) -> dict[str, float]:
    """The metrics; 0 where there is nothing to share or to average."""
    width = arrays["signal"].shape[1]
    counted_BT = np.arange(width) < np.asarray([len(row) for row in texts])[:, None]
    classes_BT = map_rows(token_classes, texts, width)
    tokens, signal = counted_BT.sum(), arrays["signal"][counted_BT].sum()
    metrics = {}
    for index, name in enumerate(CLASSES):
        chosen_BT = (classes_BT == index) & counted_BT
        metrics[f"class_tokens_{name}"] = float(chosen_BT.sum() / max(tokens, 1))
        metrics[f"class_signal_{name}"] = float(arrays["signal"][chosen_BT].sum() / (signal or 1.0))
        if "divergence" in arrays:
            chosen_BT &= has_teacher_B[:, None] > 0
            total = arrays["divergence"][chosen_BT].sum()
            metrics[f"class_divergence_{name}"] = float(total / max(chosen_BT.sum(), 1))
    return metrics
