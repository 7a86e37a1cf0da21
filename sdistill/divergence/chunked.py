"""`token_divergence` with the same value and gradient from hidden states, in chunks of the logits.

Its memory does not grow with positions × vocabulary. `topk` and `sampled` supports need only a summary of
each distribution (`model.scoring`); `full` support has a backward pass of its own.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sdistill.divergence.definition import (
    DivergenceConfig,
    check_vocabulary,
    sampled_estimate,
    sum_of_terms,
    terms_and_slopes,
    with_bucket,
)
from sdistill.model.chunked_vocab import ColumnsOf, reduce_logits, sum_ids
from sdistill.model.scoring import Summary, TokenScores, add, summarize, summary_of_logits
from sdistill.settings import require


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
    config: DivergenceConfig,
    *,
    temperature: float | Float[Array, ""] = 1.0,
    logits_chunk_size: int,
) -> Comparison:
    """`token_divergence` of the logits `hidden @ head`, and scores of the sampled ids.

    No array has B·T·V elements. The backward pass computes the student's logits again (five products with a
    head in all), for `full` support the teacher's too (six).

    Args:
      student_hidden_BTD: Final hidden states; bfloat16 or float32.
      teacher_hidden_BTD: The teacher's, which may have another width. Nothing of it is differentiated.
      ids_BT: The student's own tokens, which are scored, and are the support if that is `sampled`.
      temperature: As in `token_divergence`.
      logits_chunk_size: Largest number of positions of each row whose logits exist at the same time.

    Raises:
      ConfigError: if the chunk size is not positive, or the vocabularies differ or are too small.
    """
    require(logits_chunk_size > 0, f"logits_chunk_size={logits_chunk_size} must be positive")
    check_vocabulary(student_head_DV.shape[-1], teacher_head_DV.shape[-1], config)
    teacher = jax.lax.stop_gradient((teacher_hidden_BTD, teacher_head_DV))
    if config.support == "full":
        return reduce_logits(
            functools.partial(_compare, config),
            functools.partial(_compare_gradient, config),
            logits_chunk_size,
            ((student_hidden_BTD, student_head_DV), teacher),
            ids_BT,
            jnp.float32(temperature),
        )
    summary = functools.partial(
        summarize, ids_BT=ids_BT, logits_chunk_size=logits_chunk_size, temperature=temperature
    )
    s = summary(student_hidden_BTD, student_head_DV, top_k=config.top_k or 0)
    t = summary(*teacher, top_ids_BTK=s.ids_BTK)
    student_scores, teacher_scores = s.scores(), t.scores()
    if config.support == "sampled":
        loss_BT = sampled_estimate(student_scores.log_prob_BT, teacher_scores.log_prob_BT)
    else:
        loss_BT = sum_of_terms(_on_support(s, config), _on_support(t, config), config)
    return Comparison(loss_BT, student_scores, teacher_scores)


def _on_support(summary: Summary, config: DivergenceConfig) -> Float[Array, "B T C"]:
    """Log-probabilities of the ids, and of all others in a bucket if there is one."""
    if config.tail == "renormalise":
        return jax.nn.log_softmax(summary.top_BTK, axis=-1)
    log_p = summary.log_probs()
    return with_bucket(log_p[..., :-1], log_p[..., -1])


def _compare(
    config: DivergenceConfig,
    logits: tuple[Float[Array, "b t V"], Float[Array, "b t V"]],
    ids: Int[Array, "b t"],
    temperature: Float[Array, ""],
) -> tuple[Comparison, tuple[Array, ...]]:
    """A chunk with `full` support. Residuals: normalisers (peaks and logarithms) and the sum of slopes."""
    (s, s_peak), (t, t_peak) = (summary_of_logits(x, ids, None, temperature) for x in logits)
    normalisers = s_peak, s.rest_BT, t_peak, t.rest_BT
    log_s, log_t = _log_probs(logits, temperature, normalisers)
    terms, slopes = terms_and_slopes(log_s, log_t, config)
    return Comparison(sum_ids(terms), s.scores(), t.scores()), (*normalisers, sum_ids(slopes))


def _compare_gradient(
    config: DivergenceConfig,
    logits: tuple[Float[Array, "b t v"], Float[Array, "b t v"]],
    ids: Int[Array, "b t"],
    temperature: Float[Array, ""],
    found: tuple[Comparison, tuple[Array, ...]],
    gradient: Comparison,
    columns_of: ColumnsOf,
) -> Float[Array, "b t v"]:
    """Through the softmax: slope - S · Σ slopes for the loss, 1{id} - S for the log-probability."""
    *normalisers, slope_sum = found[1]
    log_s, log_t = _log_probs(logits, temperature, normalisers)
    of_loss, of_log_prob = (
        x[..., None] / temperature for x in (gradient.loss_BT, gradient.student.log_prob_BT)
    )
    p = jnp.exp(log_s)
    _, slopes = terms_and_slopes(log_s, log_t, config)
    logits_gradient = of_loss * (slopes - p * slope_sum[..., None]) - of_log_prob * p
    return add(logits_gradient, columns_of(ids)[..., None], of_log_prob)


def _log_probs(
    logits: tuple[Array, Array], temperature: Array, normalisers: Iterable[Array]
) -> tuple[Array, Array]:
    s_peak, s_rest, t_peak, t_rest = (x[..., None] for x in normalisers)
    return (logits[0] - s_peak) / temperature - s_rest, (logits[1] - t_peak) / temperature - t_rest
