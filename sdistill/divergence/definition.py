"""Token divergences between student and teacher (SDPO, arXiv 2601.20802, as released), defined on logits."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sdistill.model.chunked_vocab import sum_ids
from sdistill.model.scoring import LOG_ZERO, put, take, top_ids_of
from sdistill.settings import require, require_fraction, require_positive

LOG_FLOOR = math.log(-math.expm1(-1e-7))
"""A tail bucket holds at least this, as released: it bounds what an id outside the support can cost."""


@dataclass(frozen=True)
class DivergenceConfig:
    """Which divergence, over which ids. Defaults as released.

    With S the student and T the teacher on the support:

    - alpha = 0: KL(T‖S); alpha = 1: KL(S‖T);
    - between: (1-alpha) KL(S‖m) + alpha KL(T‖m), m = (1-alpha) S + alpha T. It tends to 0 at both
      ends, where the two definitions above take over: the scale jumps there, as in the released code.

    Attributes:
      alpha: Kind of divergence: 0 is KL(T‖S), 1 is KL(S‖T), between them a generalised Jensen-Shannon.
      support: Ids it is summed over. `full`: all. `topk`: the student's likeliest (of equals the lowest).
        `sampled`: the student's own token, with the estimator sg(log S(y) - log T(y)) · log S(y) of the
        gradient of KL(S‖T), whose value is no divergence.
      top_k: Size of the `topk` support.
      tail: What `topk` does with the other ids: `bucket` adds them up as one more id, `renormalise` leaves
        them out. A bucket holds at least 1e-7, and has no gradient where it would hold less.
      pointwise_clip: Largest term of one id (or the bucket) in nats; None for no limit. See `clip_pointwise`.
    """

    alpha: float = 0.5
    support: Literal["full", "topk", "sampled"] = "topk"
    top_k: int | None = 100
    tail: Literal["bucket", "renormalise"] | None = "bucket"
    pointwise_clip: float | None = None

    def __post_init__(self) -> None:
        require_fraction(self, "alpha")
        require_positive(self, "top_k", "pointwise_clip")
        alpha, support, top_k, tail, clip = dataclasses.astuple(self)
        topk = support == "topk"
        require(support in ("full", "topk", "sampled"), f"support={support!r} must be full, topk or sampled")
        require(topk == (top_k is not None), f"top_k={top_k} goes with support='topk' and only with it")
        require(topk == (tail is not None), f"tail={tail!r} goes with support='topk' and only with it")
        require(tail in (None, "bucket", "renormalise"), f"tail={tail!r} must be bucket or renormalise")
        require(
            support != "sampled" or alpha == 1,
            f"alpha={alpha}: support='sampled' estimates KL(S‖T), alpha=1, only",
        )
        require(
            support != "sampled" or clip is None,
            f"pointwise_clip={clip}: support='sampled' has no sum over ids to clip; use another",
        )


def token_divergence(
    student_logits_BTV: Float[Array, "B T V"],
    teacher_logits_BTV: Float[Array, "B T V"],
    config: DivergenceConfig,
    *,
    temperature: float | Float[Array, ""] = 1.0,
    sampled_ids_BT: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T"]:
    """Divergence of each position, in nats, differentiable in the student.

    Args:
      student_logits_BTV: Any float type; compared in float32.
      teacher_logits_BTV: Not differentiated.
      config: The divergence. With `pointwise_clip` the value may be negative.
      temperature: Of the rollout; divides the logits of both. Not differentiated.
      sampled_ids_BT: The student's own tokens, for `sampled` support.

    Raises:
      ConfigError: if `sampled_ids_BT` contradicts the support, or vocabularies differ or are too small.
    """
    check_vocabulary(student_logits_BTV.shape[-1], teacher_logits_BTV.shape[-1], config)
    require(
        (config.support == "sampled") == (sampled_ids_BT is not None),
        f"sampled_ids_BT goes with support='sampled' and only with it; support={config.support!r}",
    )
    teacher_logits_BTV = jax.lax.stop_gradient(teacher_logits_BTV)
    both = student_logits_BTV.astype(jnp.float32), teacher_logits_BTV.astype(jnp.float32)
    if config.top_k is not None:
        ids = top_ids_of(jax.lax.stop_gradient(both[0]), config.top_k)
        log_s, log_t = (_on_support(x, ids, config, temperature) for x in both)
    else:
        log_s, log_t = (_log_softmax(x, temperature) for x in both)
    if sampled_ids_BT is not None:
        log_s, log_t = (take(x, sampled_ids_BT[..., None])[..., 0] for x in (log_s, log_t))
        return sampled_estimate(log_s, log_t)
    return sum_of_terms(log_s, log_t, config)


def check_vocabulary(student: int, teacher: int, config: DivergenceConfig) -> None:
    """Raises ConfigError unless both have the same number of ids, and no fewer than the support."""
    require(
        student == teacher,
        f"the student has {student} ids and the teacher {teacher}; both must have the same vocabulary "
        "(cut or pad the head with more)",
    )
    require(
        (config.top_k or 0) <= student,
        f"top_k={config.top_k} is above the {student} ids of the vocabulary; lower it, or use 'full'",
    )


# ── Distributions on the support ─────────────────────────────────────────────────────────────────


def _log_softmax(logits: Float[Array, "B T V"], temperature: float | Array) -> Float[Array, "B T V"]:
    """Of logits divided by the temperature, after the largest is subtracted: it would cost digits."""
    logits = logits.astype(jnp.float32)
    peak = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    return jax.nn.log_softmax((logits - peak) / jax.lax.stop_gradient(temperature), axis=-1)


def _on_support(
    logits: Float[Array, "B T V"],
    ids: Int[Array, "B T K"],
    config: DivergenceConfig,
    temperature: float | Array,
) -> Float[Array, "B T C"]:
    """Log-probabilities of the ids, and of all others in a bucket if there is one."""
    if config.tail == "renormalise":
        return _log_softmax(take(logits, ids), temperature)
    log_p = _log_softmax(logits, temperature)
    rest = jax.nn.logsumexp(put(log_p, ids, LOG_ZERO), axis=-1)
    return with_bucket(take(log_p, ids), rest)


def with_bucket(top: Float[Array, "B T K"], rest: Float[Array, "B T"]) -> Float[Array, "B T K+1"]:
    """Appends the log-probability of all other ids, at least `LOG_FLOOR`."""
    return jnp.concatenate([top, jnp.maximum(rest, LOG_FLOOR)[..., None]], axis=-1)


# ── Divergences of distributions, from log-probabilities ─────────────────────────────────────────


def sampled_estimate(log_s: Float[Array, "B T"], log_t: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """sg(log S - log T) · log S of the sampled ids: on average, its gradient is that of KL(S‖T)."""
    return jax.lax.stop_gradient(log_s - log_t) * log_s


def sum_of_terms(
    log_s: Float[Array, "B T C"], log_t: Float[Array, "B T C"], config: DivergenceConfig
) -> Float[Array, "B T"]:
    """The divergence of distributions that sum to 1."""
    whole = sum_ids(terms_and_slopes(log_s, log_t, config)[0])
    if config.alpha != 1 or config.pointwise_clip is not None:
        return whole
    # Counted from its own value, it keeps the digits of its gradient S (log S/T - KL): a small difference
    # where S is almost sure of an id that T finds unlikely.
    center = jax.lax.stop_gradient(whole)[..., None]
    return center[..., 0] + sum_ids(jnp.exp(log_s) * (log_s - log_t - center))


def terms_and_slopes(
    log_s: Float[Array, "B T C"], log_t: Float[Array, "B T C"], config: DivergenceConfig
) -> tuple[Float[Array, "B T C"], Float[Array, "B T C"]]:
    """The term of each id, clipped if configured, and its derivative in log S.

    The derivative of log m is left out: it cancels between the two halves of a term.
    """
    alpha, cap = config.alpha, config.pointwise_clip
    s, t = jnp.exp(log_s), jnp.exp(log_t)
    if alpha == 0:
        terms, slopes = t * (log_t - log_s), -t
    elif alpha == 1:
        terms, slopes = s * (log_s - log_t), s * (log_s - log_t + 1)
    else:
        log_ms, log_mt = _log_mixture_over(log_s, log_t, alpha)
        slopes = -(1 - alpha) * s * log_ms
        terms = slopes - alpha * t * log_mt
    if cap is None:
        return terms, slopes
    return clip_pointwise(terms, cap), jnp.where(terms < cap, slopes, 0)


def clip_pointwise(terms: Float[Array, "..."], cap: float) -> Float[Array, "..."]:
    """Caps the term of each id in a token's divergence, in nats; a capped term has no gradient.

    OPSD (arXiv 2601.18734): style tokens carry 6 to 15 times the divergence of mathematical ones. Negative
    terms are left alone, so that a token's loss can become negative.
    """
    return jnp.where(terms < cap, terms, cap)


def _log_mixture_over(
    log_s: Float[Array, "B T C"], log_t: Float[Array, "B T C"], alpha: float
) -> tuple[Float[Array, "B T C"], Float[Array, "B T C"]]:
    """The mixture m = (1-alpha) S + alpha T, as log m/S and log m/T.

    With r = log T/S they are log(1-alpha + alpha e^r) and that less r; written so that small ones keep their
    digits and large ones stay finite.
    """
    r = log_t - log_s
    above = r > 0
    excess = jnp.expm1(jnp.where(above, -r, r))
    common = jnp.log1p(jnp.where(above, 1 - alpha, alpha) * excess)
    return common + jnp.where(above, r, 0), common + jnp.where(above, 0, -r)
