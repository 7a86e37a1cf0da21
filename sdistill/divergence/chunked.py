"""Token divergences between student and teacher (SDPO, arXiv 2601.20802, as released).

`token_divergence` is the definition, on logits. `chunked_token_divergence` has the same value and gradient,
from hidden states, in memory that does not grow with the vocabulary times the positions.
"""

import functools
import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sdistill.model.chunks import PlacesOf, read_by_chunks, total
from sdistill.model.scoring import (
    NOTHING,
    Summary,
    TokenScores,
    add,
    put,
    summarise,
    summary_of_logits,
    take,
    top_ids_of,
)
from sdistill.settings import require

Support = Literal["full", "topk", "sampled"]
Tail = Literal["bucket", "renormalise"]

LOG_FLOOR = math.log(-math.expm1(-1e-7))
"""A tail bucket holds at least this, as released: it bounds what an id outside the support can cost."""


def check_divergence(
    *, alpha: float, support: Support, top_k: int | None, tail: Tail | None, pointwise_clip: float | None
) -> None:
    """Raises ConfigError where the options of a divergence contradict each other."""
    topk = support == "topk"
    require(0 <= alpha <= 1, f"alpha={alpha} must be 0 to 1")
    require(support in ("full", "topk", "sampled"), f"support={support!r} must be full, topk or sampled")
    require(topk == (top_k is not None), f"top_k={top_k} goes with support='topk' and only with it")
    require(topk == (tail is not None), f"tail={tail!r} goes with support='topk' and only with it")
    require(tail in (None, "bucket", "renormalise"), f"tail={tail!r} must be bucket or renormalise")
    require(top_k is None or top_k > 0, f"top_k={top_k} must be positive")
    require(
        support != "sampled" or alpha == 1,
        f"alpha={alpha}: support='sampled' estimates KL(S‖T), alpha=1, only",
    )
    require(
        pointwise_clip is None or pointwise_clip > 0,
        f"pointwise_clip={pointwise_clip} must be positive, or None",
    )
    require(
        support != "sampled" or pointwise_clip is None,
        f"pointwise_clip={pointwise_clip}: support='sampled' has no sum over ids to clip; use another",
    )


def token_divergence(
    student_logits_BTV: Float[Array, "B T V"],
    teacher_logits_BTV: Float[Array, "B T V"],
    *,
    alpha: float,
    support: Support,
    top_k: int | None = None,
    tail: Tail | None = None,
    pointwise_clip: float | None = None,
    temperature: float | Float[Array, ""] = 1.0,
    sampled_ids_BT: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T"]:
    """Divergence of each position, in nats, differentiable in the student.

    With S the student and T the teacher on the chosen support:

    - alpha = 0: KL(T‖S); alpha = 1: KL(S‖T);
    - between: (1-alpha) KL(S‖m) + alpha KL(T‖m), m = (1-alpha) S + alpha T. It tends to 0 at both
      ends, where the two definitions above take over: the scale jumps there, as in the released code.

    Supports: `full`, all of V; `topk`, the student's k likeliest ids (of equals the lowest), with what is
    left of either distribution in one `bucket` more, or both renormalised to the k; `sampled`, the estimator
    sg(log S(y) - log T(y)) · log S(y) of the gradient of KL(S‖T), whose value is no divergence. A bucket
    holds at least 1e-7, and has no gradient where it would hold less.

    Args:
      student_logits_BTV: Any float type; compared in float32.
      teacher_logits_BTV: Not differentiated.
      alpha: See above.
      support: See above.
      top_k: Size of the `topk` support.
      tail: What `topk` does with the rest.
      pointwise_clip: What each id, or the bucket, adds at most, in nats; see `fixes.clip_pointwise`. The
        divergence may then be negative.
      temperature: Of the rollout; divides the logits of both. Not differentiated.
      sampled_ids_BT: The student's own tokens, for `sampled`.

    Raises:
      ConfigError: if the options contradict each other.
      ValueError: if the shapes do.
    """
    check_divergence(alpha=alpha, support=support, top_k=top_k, tail=tail, pointwise_clip=pointwise_clip)
    _check_vocabulary(student_logits_BTV.shape[-1], teacher_logits_BTV.shape[-1], top_k)
    require(
        (support == "sampled") == (sampled_ids_BT is not None),
        f"sampled_ids_BT goes with support='sampled' and only with it; support={support!r}",
    )
    teacher_logits_BTV = jax.lax.stop_gradient(teacher_logits_BTV)
    both = student_logits_BTV.astype(jnp.float32), teacher_logits_BTV.astype(jnp.float32)
    if top_k is not None:
        ids = top_ids_of(jax.lax.stop_gradient(both[0]), top_k)
        log_s, log_t = (_on_support(x, ids, tail, temperature) for x in both)
    else:
        log_s, log_t = (_log_softmax(x, temperature) for x in both)
    if sampled_ids_BT is not None:
        log_s, log_t = (take(x, sampled_ids_BT[..., None])[..., 0] for x in (log_s, log_t))
        return _sampled(log_s, log_t)
    return _divergence(log_s, log_t, alpha, pointwise_clip)


def clip_pointwise(terms: Float[Array, "..."], cap: float) -> Float[Array, "..."]:
    """What each id adds to a token's divergence, at most `cap`, in nats; no gradient where it is capped.

    OPSD (arXiv 2601.18734): style tokens carry 6 to 15 times the divergence of mathematical ones. Terms
    may be negative and are left alone there, so that a token's loss can become negative.
    """
    return jnp.where(terms < cap, terms, cap)


class Comparison(NamedTuple):
    """Student and teacher at each position.

    Attributes:
      loss_BT: Their divergence, in nats; differentiable in the student.
      student: Scores of the sampled ids; the log-probability is differentiable, the entropy is not.
      teacher: The same under the teacher, without any gradient.
    """

    loss_BT: Float[Array, "B T"]
    student: TokenScores
    teacher: TokenScores


def chunked_token_divergence(
    student_hidden_BTD: Float[Array, "B T D"],
    student_head_DV: Float[Array, "D V"],
    teacher_hidden_BTD: Float[Array, "B T E"],
    teacher_head_DV: Float[Array, "E V"],
    ids_BT: Int[Array, "B T"],
    *,
    alpha: float,
    support: Support,
    top_k: int | None = None,
    tail: Tail | None = None,
    pointwise_clip: float | None = None,
    temperature: float | Float[Array, ""] = 1.0,
    chunk_size: int,
) -> Comparison:
    """`token_divergence` of the logits `hidden @ head`, and scores of the sampled ids, by chunks.

    Nothing of B·T·V elements is ever made. The backward pass makes the student's logits once more (five
    products with a head in all), for `full` support the teacher's too (six).

    Args:
      student_hidden_BTD: Final hidden states; bfloat16 or float32.
      student_head_DV: From hidden states to logits.
      teacher_hidden_BTD: The teacher's, which may have another width. Not differentiated.
      teacher_head_DV: Not differentiated.
      ids_BT: The student's own tokens: what is scored, and the support if that is `sampled`.
      alpha: As in `token_divergence`, like all that follow but the last.
      support: See `alpha`.
      top_k: See `alpha`.
      tail: See `alpha`.
      pointwise_clip: See `alpha`.
      temperature: See `alpha`.
      chunk_size: Largest number of positions whose logits exist at the same time.

    Raises:
      ConfigError: if the options contradict each other.
      ValueError: if the shapes do.
    """
    check_divergence(alpha=alpha, support=support, top_k=top_k, tail=tail, pointwise_clip=pointwise_clip)
    require(chunk_size > 0, f"chunk_size={chunk_size} must be positive")
    _check_vocabulary(student_head_DV.shape[-1], teacher_head_DV.shape[-1], top_k)
    teacher = jax.lax.stop_gradient((teacher_hidden_BTD, teacher_head_DV))
    if support == "full":
        return read_by_chunks(
            functools.partial(_compare, alpha, pointwise_clip),
            functools.partial(_compare_gradient, alpha, pointwise_clip),
            chunk_size,
            student_hidden_BTD,
            student_head_DV,
            (teacher,),
            ids_BT,
            jnp.float32(temperature),
        )
    walk: Any = functools.partial(summarise, chunk_size=chunk_size, temperature=temperature)
    s = walk(student_hidden_BTD, student_head_DV, ids_BT, top_k=top_k or 0)
    t = walk(*teacher, ids_BT, top_ids_BTK=s.ids_BTK)
    student, teacher_scores = s.scores(), t.scores()
    if support == "sampled":
        loss_BT = _sampled(student.log_prob_BT, teacher_scores.log_prob_BT)
    else:
        both = _summary_on_support(s, tail), _summary_on_support(t, tail)
        loss_BT = _divergence(*both, alpha, pointwise_clip)
    return Comparison(loss_BT, student, teacher_scores)


def _compare(
    alpha: float,
    clip: float | None,
    logits: tuple[Float[Array, "b t V"], Float[Array, "b t V"]],
    ids: Int[Array, "b t"],
    temperature: Float[Array, ""],
) -> tuple[Comparison, tuple[Array, ...]]:
    """`full` support on a chunk; saves peaks and logarithms of normalisers, and the sum of slopes."""
    (s, s_peak), (t, t_peak) = (summary_of_logits(0, x, (ids, None), temperature) for x in logits)
    saved = s_peak, s.rest_BT, t_peak, t.rest_BT
    log_s, log_t = _both_log_probs(logits, temperature, saved)
    loss = total(_clipped_terms(log_s, log_t, alpha, clip))
    drift = total(_slopes_of_clipped_terms(log_s, log_t, alpha, clip))
    return Comparison(loss, s.scores(), t.scores()), (*saved, drift)


def _compare_gradient(
    alpha: float,
    clip: float | None,
    logits: tuple[Float[Array, "b t v"], Float[Array, "b t v"]],
    ids: Int[Array, "b t"],
    temperature: Float[Array, ""],
    found: tuple[Comparison, tuple[Array, ...]],
    gradient: Comparison,
    places_of: PlacesOf,
) -> Float[Array, "b t v"]:
    *normalisers, drift = found[1]
    log_s, log_t = _both_log_probs(logits, temperature, normalisers)
    of_loss, of_log_prob = (
        x[..., None] / temperature for x in (gradient.loss_BT, gradient.student.log_prob_BT)
    )
    p = jnp.exp(log_s)
    slopes = _slopes_of_clipped_terms(log_s, log_t, alpha, clip)
    logits_gradient = of_loss * (slopes - p * drift[..., None]) - of_log_prob * p
    return add(logits_gradient, places_of(ids)[..., None], of_log_prob)


def _both_log_probs(
    logits: tuple[Array, Array], temperature: Array, normalisers: Iterable[Array]
) -> tuple[Array, Array]:
    s_peak, s_rest, t_peak, t_rest = (x[..., None] for x in normalisers)
    return (logits[0] - s_peak) / temperature - s_rest, (logits[1] - t_peak) / temperature - t_rest


def _check_vocabulary(student: int, teacher: int, top_k: int | None) -> None:
    if student != teacher:
        raise ValueError(
            f"the student has {student} ids and the teacher {teacher}; both must have the same vocabulary "
            "(cut or pad the head with more)"
        )
    if top_k is not None and top_k > student:
        raise ValueError(
            f"top_k={top_k} is above the {student} ids of the vocabulary; lower it, or use 'full'"
        )


def _log_softmax(logits: Float[Array, "B T V"], temperature: float | Array) -> Float[Array, "B T V"]:
    """Of logits divided by the temperature, after the largest went: it would cost digits."""
    logits = logits.astype(jnp.float32)
    peak = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    return jax.nn.log_softmax((logits - peak) / jax.lax.stop_gradient(temperature), axis=-1)


def _on_support(
    logits: Float[Array, "B T V"], ids: Int[Array, "B T K"], tail: Tail | None, temperature: float | Array
) -> Float[Array, "B T C"]:
    """Log-probabilities of the ids, and of all others in a bucket if there is one."""
    if tail == "renormalise":
        return _log_softmax(take(logits, ids), temperature)
    log_p = _log_softmax(logits, temperature)
    rest = jax.nn.logsumexp(put(log_p, ids, NOTHING), axis=-1)
    return _with_bucket(take(log_p, ids), rest)


def _summary_on_support(summary: Summary, tail: Tail | None) -> Float[Array, "B T C"]:
    """The same of a summary."""
    if tail == "renormalise":
        return jax.nn.log_softmax(summary.top_BTK, axis=-1)
    log_p = summary.log_probs()
    return _with_bucket(log_p[..., :-1], log_p[..., -1])


def _with_bucket(top: Float[Array, "B T K"], rest: Float[Array, "B T"]) -> Float[Array, "B T K+1"]:
    return jnp.concatenate([top, jnp.maximum(rest, LOG_FLOOR)[..., None]], axis=-1)


def _sampled(log_s: Float[Array, "B T"], log_t: Float[Array, "B T"]) -> Float[Array, "B T"]:
    return jax.lax.stop_gradient(log_s - log_t) * log_s


def _divergence(
    log_s: Float[Array, "B T C"], log_t: Float[Array, "B T C"], alpha: float, clip: float | None
) -> Float[Array, "B T"]:
    """Of distributions that sum to 1."""
    whole = total(_clipped_terms(log_s, log_t, alpha, clip))
    if alpha != 1 or clip is not None:
        return whole
    # Counted from its own value, it keeps the digits of its gradient S (log S/T - KL): a small difference
    # where S is almost sure of an id that T finds unlikely.
    center = jax.lax.stop_gradient(whole)[..., None]
    return center[..., 0] + total(jnp.exp(log_s) * (log_s - log_t - center))


def _clipped_terms(
    log_s: Float[Array, "B T C"], log_t: Float[Array, "B T C"], alpha: float, clip: float | None
) -> Float[Array, "B T C"]:
    terms = _terms(log_s, log_t, alpha)
    return terms if clip is None else clip_pointwise(terms, clip)


def _terms(log_s: Float[Array, "B T C"], log_t: Float[Array, "B T C"], alpha: float) -> Float[Array, "B T C"]:
    """What each id adds to the divergence."""
    if alpha == 0:
        return jnp.exp(log_t) * (log_t - log_s)
    if alpha == 1:
        return jnp.exp(log_s) * (log_s - log_t)
    log_ms, log_mt = _log_mixture_over(log_s, log_t, alpha)
    return -(1 - alpha) * jnp.exp(log_s) * log_ms - alpha * jnp.exp(log_t) * log_mt


def _slopes_of_clipped_terms(
    log_s: Float[Array, "B T C"], log_t: Float[Array, "B T C"], alpha: float, clip: float | None
) -> Float[Array, "B T C"]:
    """The derivative of each term in its log S. That of log m cancels between the two halves of a term."""
    if alpha == 0:
        slopes = -jnp.exp(log_t)
    elif alpha == 1:
        slopes = jnp.exp(log_s) * (log_s - log_t + 1)
    else:
        slopes = -(1 - alpha) * jnp.exp(log_s) * _log_mixture_over(log_s, log_t, alpha)[0]
    return slopes if clip is None else jnp.where(_terms(log_s, log_t, alpha) < clip, slopes, 0)


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
