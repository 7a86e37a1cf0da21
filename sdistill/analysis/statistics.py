"""Figures over sampled responses, and their bootstrap intervals over problems."""

import functools
import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

RESAMPLES = 2_000
LEVEL = 0.95
POWER = 0.8


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
    return _estimate(float(np.mean([np.mean(values) for values in strata])), means)


def paired_bootstrap(differences_SP: Float[np.ndarray, "S P"]) -> Estimate:
    """Mean of paired differences between two models, with an interval about other problems and other seeds.

    Both models answered the same P problems under the same S seeds. A hard problem is hard under every
    seed, so that seeds do not make up for few problems: the two are crossed, and the percentile bootstrap
    draws seeds and problems independently, each with replacement (the pigeonhole bootstrap of Owen 2007,
    doi:10.1214/07-AOAS122). It overestimates the variance of the interaction between problem and seed. It
    divides the variance of the seeds by S and not by S - 1, so that with three seeds that part of the
    interval is too short by a factor of 0.82. With one seed the interval is about this seed only.

    Raises:
      ValueError: if there is nothing to average.
    """
    differences_SP = np.asarray(differences_SP, np.float64)
    if differences_SP.ndim != 2 or not differences_SP.size:
        raise ValueError(f"pairs need an array of seeds × problems, not {differences_SP.shape}")
    seeds, problems = differences_SP.shape
    by_problem_RP = _resampling_weights(seeds, problems) @ differences_SP
    means_R = np.einsum("rp,rp->r", by_problem_RP, _resampling_weights(problems, 0))
    return _estimate(float(differences_SP.mean()), means_R)


def bootstrap_ratio(strata: Sequence[Float[np.ndarray, "2 n"]]) -> Estimate | None:
    """Mean over strata of a ratio of sums, with a percentile bootstrap over problems as in `bootstrap_mean`.

    Numerator and denominator of a problem are drawn together. A draw in which nothing is left of a
    denominator has no ratio, and does not count.

    Args:
      strata: What each problem adds to the numerator and to the denominator, for each seed.

    Returns: None if a denominator is 0.
    """
    if not strata or any(below.sum() == 0 for _, below in strata):
        return None
    ratios, value = np.zeros(RESAMPLES), 0.0
    for index, (above, below) in enumerate(strata):
        weights = _resampling_weights(len(above), index)
        with np.errstate(invalid="ignore"):
            ratios += (weights @ above) / (weights @ below) / len(strata)
        value += float(above.sum() / below.sum()) / len(strata)
    return _estimate(value, ratios[np.isfinite(ratios)])


def sign_flip_p_values(differences_PW: Float[np.ndarray, "P W"], flips: int = 9_999) -> list[float]:
    """Two-sided p-values of the means of W columns of paired differences, by flipping signs of whole rows.

    Where nothing has changed, a problem's difference is as likely to have the other sign. The draws of signs
    are the same for all columns, and seeded; the smallest possible value is 1 / (flips + 1).
    """
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (flips, len(differences_PW)))
    found_W, drawn_FW = differences_PW.sum(axis=0), signs @ differences_PW
    as_large_W = (np.abs(drawn_FW) >= np.abs(found_W) - 1e-9).sum(axis=0)
    return [float(p) for p in (as_large_W + 1) / (flips + 1)]


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: the false discovery rate at which each would just be called a discovery.

    Benjamini & Hochberg (1995): of what is called a discovery at q, a share of q is false on average. It
    holds for independent tests and for those that depend on each other positively.
    """
    order = np.argsort(p_values)[::-1]
    count = len(order)
    scaled = np.asarray(p_values, np.float64)[order] * count / np.arange(count, 0, -1)
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(1.0, np.minimum.accumulate(scaled))
    return adjusted.tolist()


def minimum_detectable(low: float, high: float) -> float:
    """The true difference that a comparison with this 95 % interval finds with a probability of 80 %.

    Finding it means that the interval excludes zero. With the standard error from the interval's width,
    (high - low) / (2 z(0.975)), it is (z(0.975) + z(0.8)) standard errors, about 1.43 times half the width
    (Bloom 1995, doi:10.1177/0193841X9501900504, two-sided). What is smaller may well be there and not be
    found: "not told apart" is no proof of "the same".
    """
    normal = NormalDist()
    margin = normal.inv_cdf((1 + LEVEL) / 2)
    return (margin + normal.inv_cdf(POWER)) * (high - low) / (2 * margin)


def _estimate(value: float, means: Float[np.ndarray, " R"]) -> Estimate:
    """The percentile interval of resampled means."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return Estimate(value, float(low), float(high))


@functools.cache  # thousands of figures are about the same few numbers of problems
def _resampling_weights(n: int, stream: int) -> Float[np.ndarray, "R n"]:
    """Share of each of n problems, or seeds, in each bootstrap sample; every stream draws others."""
    return np.random.default_rng([n, stream]).multinomial(n, np.full(n, 1 / n), RESAMPLES) / n


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
