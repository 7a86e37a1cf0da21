"""Figures over sampled responses, and their bootstrap intervals over problems."""

import functools
import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

RESAMPLES = 2_000
LEVEL = 0.95


class Estimate(NamedTuple):
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap_mean(strata: Sequence[Float[np.ndarray, " n"]]) -> Estimate:
    """Mean over strata of each stratum's mean, with a percentile bootstrap over its problems.

    A stratum is a seed: problems are resampled within it, and independently in each, so that the interval
    is about these runs and not about other seeds. With one problem the interval is a point. The
    resampling is seeded, so the same figures have the same interval.

    Args:
      strata: One figure a problem, an array for each seed.

    Raises:
      ValueError: if there is nothing to average.
    """
    if not strata or any(len(values) == 0 for values in strata):
        raise ValueError("no values to average")
    means = np.zeros(RESAMPLES)
    for index, values in enumerate(strata):
        means += _resampling_weights(len(values), index) @ np.asarray(values, np.float64) / len(strata)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    value = float(np.mean([np.mean(values) for values in strata]))
    return Estimate(value, float(low), float(high))


@functools.cache  # thousands of figures are about the same few numbers of problems
def _resampling_weights(n: int, stratum: int) -> Float[np.ndarray, "R n"]:
    """Share of each problem in each bootstrap sample."""
    return np.random.default_rng([n, stratum]).multinomial(n, np.full(n, 1 / n), RESAMPLES) / n


def pass_at_k(correct: Sequence[bool], k: int) -> float:
    """Unbiased estimate from n samples of the chance that one of k is right: 1 - C(n-c, k) / C(n, k).

    Raises:
      ValueError: if k exceeds n.
    """
    n, c = len(correct), sum(correct)
    if not 0 < k <= n:
        raise ValueError(f"pass@{k} needs 1 <= k <= n = {n} samples")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def maj_at_k(answers: Sequence[str | None], correct: Sequence[bool], k: int, resamples: int = 100) -> float:
    """Chance that the most frequent answer of k samples is right, over resampled groups of k.

    Ties are split evenly, responses without an answer do not vote, and a group without any is wrong.
    With k = n there is one group only.
    """
    n = len(answers)
    if not 0 < k <= n:
        raise ValueError(f"maj@{k} needs 1 <= k <= n = {n} samples")
    right = {answer: False for answer in answers}
    for answer, success in zip(answers, correct, strict=True):
        right[answer] |= success
    groups = [list(range(n))]
    if k < n:
        shuffled = np.random.default_rng(0).permuted(np.tile(np.arange(n), (resamples, 1)), axis=1)
        groups = shuffled[:, :k].tolist()
    scores = []
    for group in groups:
        votes = Counter(answers[i] for i in group if answers[i] is not None)
        top = max(votes.values(), default=0)
        tied = [answer for answer, count in votes.items() if count == top]
        scores.append(sum(right[answer] for answer in tied) / len(tied) if tied else 0.0)
    return float(np.mean(scores))
