"""Classes of tokens: epistemic words, digits and operators, and all others."""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from sdistill.analysis.epistemic import word_tokens
from sdistill.tasks.problem import THINK_END, THINK_START
from sdistill.text.spans import touched

CLASSES = ("epistemic", "digits", "other")

MATHEMATICS = re.compile(r"[-\d+*/=<>^%×÷±·√≤≥≠≈−]+")
_HYPHENS = re.compile(r"(?<=[^\W\d_])-(?=[^\W\d_])")  # of words


def token_classes(texts: Sequence[str]) -> Int[np.ndarray, " T"]:
    r"""The class of each token, as its place in `CLASSES`, given the text of each (`text.spans`).

    A token belongs to an epistemic word if it holds any character of it; else to digits and operators if it
    holds one. Thinking tags and the hyphens of words are neither. Names of
    operators, such as `\times`, are other.
    """
    text = _HYPHENS.sub(" ", "".join(texts))
    for tag in (THINK_START, THINK_END):  # made of such characters, and no mathematics
        text = text.replace(tag, " " * len(tag))
    mathematics = touched(texts, (match.span() for match in MATHEMATICS.finditer(text)))
    return np.where(word_tokens(texts), 0, np.where(mathematics, 1, 2))
