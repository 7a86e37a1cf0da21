"""Token divergences between student and teacher (SDPO, arXiv 2601.20802, as released)."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Support = Literal["full", "topk", "sampled"]
Tail = Literal["bucket", "renormalise"]


def token_divergence(
    student_logits_BTV: Float[Array, "B T V"],
    teacher_logits_BTV: Float[Array, "B T V"],
    *,
    alpha: float,
    support: Support,
    top_k: int | None,
    tail: Tail | None,
    sampled_ids_BT: Int[Array, "B T"],
) -> Float[Array, "B T"]:
    """Divergence of each position, in nats, differentiable in the student.

    With S the student and T the teacher on the chosen support:

    - alpha = 0: KL(T‖S); alpha = 1: KL(S‖T);
    - between: (1-alpha) KL(S‖m) + alpha KL(T‖m), m = (1-alpha) S + alpha T. It tends to 0 at both
      ends, where the two definitions above take over: the scale jumps there, as in the released code.

    Supports: `full`, all of V; `topk`, the student's k likeliest ids, with what is left of either
    distribution in one `bucket` more, or both renormalised to the k; `sampled`, the estimator
    sg(log S(y) - log T(y)) · log S(y) of the gradient of KL(S‖T), whose value is no divergence.

    Args:
      student_logits_BTV: Already divided by the rollout temperature, like the teacher's.
      teacher_logits_BTV: Not differentiated.
      alpha: See above.
      support: See above.
      top_k: Size of the `topk` support.
      tail: What `topk` does with the rest.
      sampled_ids_BT: The student's own tokens, for `sampled`.
    """
    log_s = jax.nn.log_softmax(student_logits_BTV.astype(jnp.float32), axis=-1)
    log_t = jax.nn.log_softmax(teacher_logits_BTV.astype(jnp.float32), axis=-1)
    log_t = jax.lax.stop_gradient(log_t)
    if support == "sampled":
        log_s = jnp.take_along_axis(log_s, sampled_ids_BT[..., None], axis=-1)[..., 0]
        log_t = jnp.take_along_axis(log_t, sampled_ids_BT[..., None], axis=-1)[..., 0]
        return jax.lax.stop_gradient(log_s - log_t) * log_s
    if support == "topk":
        assert top_k is not None
        _, top_BTC = jax.lax.top_k(jax.lax.stop_gradient(log_s), top_k)
        log_s, log_t = (jnp.take_along_axis(x, top_BTC, axis=-1) for x in (log_s, log_t))
        if tail == "bucket":
            log_s, log_t = _with_tail(log_s), _with_tail(log_t)
        else:
            log_s, log_t = jax.nn.log_softmax(log_s, axis=-1), jax.nn.log_softmax(log_t, axis=-1)
    if alpha == 0:
        return _kl(log_t, log_s)
    if alpha == 1:
        return _kl(log_s, log_t)
    log_m = jnp.logaddexp(log_s + jnp.log1p(-alpha), log_t + jnp.log(alpha))
    return (1 - alpha) * _kl(log_s, log_m) + alpha * _kl(log_t, log_m)


def _kl(log_p: Float[Array, "B T C"], log_q: Float[Array, "B T C"]) -> Float[Array, "B T"]:
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def _with_tail(log_p: Float[Array, "B T C"]) -> Float[Array, "B T C+1"]:
    """Appends log(1 - Σp). The sum is kept below 1 by 1e-7, since all of V may be in the support."""
    total = jnp.minimum(jax.nn.logsumexp(log_p, axis=-1, keepdims=True), -1e-7)
    return jnp.concatenate([log_p, jnp.log(-jnp.expm1(total))], axis=-1)
