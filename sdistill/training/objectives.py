"""On-policy objectives: SDPO and GRPO, from hidden states to a scalar."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from sdistill.config import require
from sdistill.distill.contexts import ContextConfig
from sdistill.distill.divergence import Support, Tail, check_divergence, chunked_token_divergence
from sdistill.distill.teacher import TeacherConfig
from sdistill.models.config import ModelConfig
from sdistill.models.decoder import bind
from sdistill.models.scoring import score_tokens
from sdistill.training.rows import Rows, response_hidden, response_ids

Aggregation = Literal["seq_mean_token_mean", "token_mean", "seq_mean_token_sum"]


@dataclass(frozen=True)
class DistillationConfig:
    """The loss of SDPO (arXiv 2601.20802, defaults as released).

    Attributes:
      alpha: Divergence: 0 is KL(T‖S), 1 is KL(S‖T), between them a generalised Jensen-Shannon.
      support: Ids the divergence is summed over.
      top_k: Size of the `topk` support.
      tail: What `topk` does with the other ids.
      importance_cap: Largest weight S/S_rollout of a token; None for no weights.
      aggregation: From tokens to the objective. Rows without a teacher count as zero in
        `seq_mean_*` and not at all in `token_mean`.
    """

    alpha: float = 0.5
    support: Support = "topk"
    top_k: int | None = 100
    tail: Tail | None = "bucket"
    importance_cap: float | None = 2.0
    aggregation: Aggregation = "seq_mean_token_mean"

    def __post_init__(self) -> None:
        check_divergence(alpha=self.alpha, support=self.support, top_k=self.top_k, tail=self.tail)
        require(
            self.importance_cap is None or self.importance_cap > 0,
            f"importance_cap={self.importance_cap} must be positive, or None",
        )


@dataclass(frozen=True)
class SDPOConfig:
    """Self-distillation policy optimisation.

    Attributes:
      context: What the teacher sees.
      teacher: Whose weights it has.
      loss: How far the student is from it.
    """

    context: ContextConfig
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    loss: DistillationConfig = field(default_factory=DistillationConfig)


@dataclass(frozen=True)
class GRPOConfig:
    """Group-relative policy optimisation, defaults as the paper's comparison runs.

    Attributes:
      clip_low: The probability ratio is clipped to [1 - clip_low, 1 + clip_high].
      clip_high: See `clip_low`.
      divide_by_std: Divide advantages by the group's standard deviation. Without it, as in the released
        scripts, the method is also known as Dr. GRPO.
      aggregation: From tokens to the objective.
    """

    clip_low: float = 0.2
    clip_high: float = 0.28
    divide_by_std: bool = False
    aggregation: Aggregation = "seq_mean_token_mean"


class OnPolicyBatch(NamedTuple):
    """Rollouts laid out for a step.

    Attributes:
      student: Prompts without context, and the responses.
      rollout_log_probs: Log-probabilities that the sampler gave the response tokens.
      markers: 1 on response tokens that are epistemic words.
      advantages: Group-relative rewards (GRPO).
      teacher: Prompts with context, and the same responses (SDPO).
      has_teacher: 1 where there is a context; the teacher row is a filler elsewhere (SDPO).
    """

    student: Rows
    rollout_log_probs: Float[Array, "B T"]
    markers: Float[Array, "B T"]
    advantages: Float[Array, " B"] | None = None
    teacher: Rows | None = None
    has_teacher: Float[Array, " B"] | None = None


Metrics = dict[str, tuple[jax.Array, jax.Array]]


def masked_sum(values: Float[Array, "..."], mask: Float[Array, "..."]) -> tuple[jax.Array, jax.Array]:
    """A metric: the sum of the values where the mask is set, and how many there are."""
    return jnp.sum(jnp.where(mask > 0, values, 0.0)), jnp.sum(mask)


def aggregate(
    loss_BT: Float[Array, "B T"], mask_BT: Float[Array, "B T"], mode: Aggregation
) -> Float[Array, ""]:
    """From token losses to the objective; an all-masked batch gives 0.

    - `seq_mean_token_mean`: mean over all B rows of each row's mean over its unmasked tokens. Rows with
      none contribute 0 and stay in the denominator: what the released code in fact computes.
    - `token_mean`: mean over all unmasked tokens.
    - `seq_mean_token_sum`: mean over all B rows of each row's sum.
    """
    loss_BT = jnp.where(mask_BT > 0, loss_BT, 0.0)
    if mode == "token_mean":
        return jnp.sum(loss_BT) / jnp.maximum(jnp.sum(mask_BT), 1.0)
    row_B = jnp.sum(loss_BT, axis=1)
    if mode == "seq_mean_token_mean":
        row_B = row_B / jnp.maximum(jnp.sum(mask_BT, axis=1), 1.0)
    return jnp.mean(row_B)


def group_advantages(rewards_QG: Float[np.ndarray, "Q G"], divide_by_std: bool) -> Float[np.ndarray, "Q G"]:
    """Reward minus the group's mean, over its standard deviation if asked; 0 where all are equal."""
    advantages = rewards_QG - rewards_QG.mean(axis=1, keepdims=True)
    if divide_by_std:
        advantages = advantages / (rewards_QG.std(axis=1, keepdims=True) + 1e-6)
    return advantages


def sdpo_loss(
    params: nnx.State,
    teacher_params: nnx.State | None,
    batch: OnPolicyBatch,
    *,
    model: ModelConfig,
    config: DistillationConfig,
    temperature: float,
    chunk: int,
) -> tuple[Float[Array, ""], Metrics]:
    """Divergence from the teacher on the student's own rollouts, as configured; and its metrics.

    No `teacher_params` means the student's own (a `live` teacher).
    """
    assert batch.teacher is not None and batch.has_teacher is not None
    student = bind(model, params)
    teacher = student if teacher_params is None else bind(model, teacher_params)
    student_BTD = response_hidden(student, batch.student)
    teacher_BTD = response_hidden(teacher, batch.teacher)
    divergence_BT, student_scores, teacher_scores = chunked_token_divergence(
        student_BTD,
        student.head(),
        teacher_BTD,
        teacher.head(),
        response_ids(batch.student),
        alpha=config.alpha,
        support=config.support,
        top_k=config.top_k,
        tail=config.tail,
        temperature=temperature,
        chunk_size=chunk * len(student_BTD),
    )
    response_BT = batch.student.response_mask
    mask_BT = response_BT * batch.has_teacher[:, None]
    log_ratio_BT = student_scores.log_prob_BT - batch.rollout_log_probs
    ratio_BT = jax.lax.stop_gradient(jnp.exp(jnp.clip(log_ratio_BT, -20.0, 20.0)))
    weighted_BT = divergence_BT
    metrics = {}
    if config.importance_cap is not None:
        weighted_BT = divergence_BT * jnp.minimum(ratio_BT, config.importance_cap)
        metrics["capped"] = masked_sum(ratio_BT > config.importance_cap, mask_BT)
    loss = aggregate(weighted_BT, mask_BT, config.aggregation)
    metrics |= {
        "loss": (loss, jnp.ones(())),
        "divergence": masked_sum(divergence_BT, mask_BT),
        "divergence_epistemic": masked_sum(divergence_BT, mask_BT * batch.markers),
        "divergence_other": masked_sum(divergence_BT, mask_BT * (1 - batch.markers)),
        "teacher_entropy": masked_sum(teacher_scores.entropy_BT, mask_BT),
        "teacher_advantage": masked_sum(teacher_scores.log_prob_BT - student_scores.log_prob_BT, mask_BT),
        "entropy": masked_sum(student_scores.entropy_BT, response_BT),
        "sampler_gap": masked_sum(jnp.abs(log_ratio_BT), response_BT),
    }
    return loss, metrics


def grpo_loss(
    params: nnx.State,
    batch: OnPolicyBatch,
    *,
    model: ModelConfig,
    config: GRPOConfig,
    temperature: float,
    chunk: int,
) -> tuple[Float[Array, ""], Metrics]:
    """Clipped policy gradient with group-relative advantages; and its metrics."""
    assert batch.advantages is not None
    student = bind(model, params)
    scores = score_tokens(
        response_hidden(student, batch.student),
        student.head(),
        response_ids(batch.student),
        chunk=chunk,
        temperature=temperature,
    )
    mask_BT = batch.student.response_mask
    log_ratio_BT = scores.log_prob_BT - batch.rollout_log_probs
    ratio_BT = jnp.exp(jnp.clip(log_ratio_BT, -20.0, 20.0))
    clipped_BT = jnp.clip(ratio_BT, 1 - config.clip_low, 1 + config.clip_high)
    advantages_B1 = batch.advantages[:, None]
    gain_BT = jnp.minimum(ratio_BT * advantages_B1, clipped_BT * advantages_B1)
    loss = aggregate(-gain_BT, mask_BT, config.aggregation)
    metrics = {
        "loss": (loss, jnp.ones(())),
        "clipped": masked_sum(ratio_BT != clipped_BT, mask_BT),
        "entropy": masked_sum(scores.entropy_BT, mask_BT),
        "sampler_gap": masked_sum(jnp.abs(log_ratio_BT), mask_BT),
        "signal": masked_sum(batch.advantages != 0, jnp.ones_like(batch.advantages)),
    }
    return loss, metrics
