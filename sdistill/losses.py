"""On-policy objectives: SDPO and GRPO, from hidden states to a scalar."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from sdistill.contexts import ContextConfig
from sdistill.divergence.chunked import Support, Tail, check_divergence, chunked_token_divergence
from sdistill.fixes import AntiSelfDistillation, ContrastiveHints, ForkAware, fork_weights
from sdistill.model.config import ModelConfig
from sdistill.model.decoder import bind
from sdistill.model.scoring import TokenScores, score_tokens
from sdistill.rows import Rows, response_hidden, response_ids
from sdistill.settings import require
from sdistill.teacher import Outputs, TeacherConfig, mixed

Aggregation = Literal["seq_mean_token_mean", "token_mean", "seq_mean_token_sum"]


@dataclass(frozen=True)
class DistillationConfig:
    """The loss of SDPO (arXiv 2601.20802, defaults as released).

    Attributes:
      alpha: Divergence: 0 is KL(T‖S), 1 is KL(S‖T), between them a generalised Jensen-Shannon.
      support: Ids the divergence is summed over.
      top_k: Size of the `topk` support.
      tail: What `topk` does with the other ids.
      pointwise_clip: What each id adds to a divergence at most; see `fixes.clip_pointwise`.
      importance_cap: Largest weight S/S_old of a token, S_old being the student that sampled it; None for
        no weights.
      rollout_correction_cap: Largest weight S_old/S_rollout of a token, S_rollout being the distribution
        that top-k, top-p and min-p left to the sampler, which never gives a token less; None for no weights.
      aggregation: From tokens to the objective. Rows without a teacher count as zero in
        `seq_mean_*` and not at all in `token_mean`.
      masked_words: No loss at the tokens of these words; with the epistemic ones see `fixes.without_words`.
      pass_rate_weight: Weigh problems by their pass rate; see `fixes.pass_rate_weights`.
      fork_aware: Away from the teacher where the student is uncertain; see `fixes.fork_weights`.
    """

    alpha: float = 0.5
    support: Support = "topk"
    top_k: int | None = 100
    tail: Tail | None = "bucket"
    pointwise_clip: float | None = None
    importance_cap: float | None = 2.0
    rollout_correction_cap: float | None = None
    aggregation: Aggregation = "seq_mean_token_mean"
    masked_words: tuple[str, ...] = ()
    pass_rate_weight: bool = False
    fork_aware: ForkAware | None = None

    def __post_init__(self) -> None:
        check_divergence(
            alpha=self.alpha,
            support=self.support,
            top_k=self.top_k,
            tail=self.tail,
            pointwise_clip=self.pointwise_clip,
        )
        for name in ("importance_cap", "rollout_correction_cap"):
            cap = getattr(self, name)
            require(cap is None or cap > 0, f"{name}={cap} must be positive, or None")
        require(all(self.masked_words), f"masked_words={self.masked_words}: a word must not be empty")


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
    """Group-relative policy optimisation, defaults as the paper's comparison runs; see also `PRESETS`.

    Attributes:
      clip_low: The probability ratio is clipped to [1 - clip_low, 1 + clip_high].
      clip_high: See `clip_low`.
      divide_by_std: Divide advantages by the group's standard deviation.
      aggregation: From tokens to the objective.
      kl_coefficient: Weight of the divergence from the initial weights (`k3`); None for no such term.
      contrastive_hints: Advantages by token, from right and wrong hints; see `fixes`.
      anti_self_distillation: Advantages by token, away from a teacher; see `fixes`.
    """

    clip_low: float = 0.2
    clip_high: float = 0.28
    divide_by_std: bool = False
    aggregation: Aggregation = "seq_mean_token_mean"
    kl_coefficient: float | None = None
    contrastive_hints: ContrastiveHints | None = None
    anti_self_distillation: AntiSelfDistillation | None = None

    def __post_init__(self) -> None:
        require(
            self.kl_coefficient is None or self.kl_coefficient > 0,
            f"kl_coefficient={self.kl_coefficient} must be positive, or None",
        )
        require(
            self.contrastive_hints is None or self.anti_self_distillation is None,
            "contrastive_hints and anti_self_distillation each need the one teacher; remove one of them",
        )


PRESETS: Mapping[str, GRPOConfig] = {
    "dr_grpo": GRPOConfig(clip_high=0.2, aggregation="seq_mean_token_sum"),
    "dapo": GRPOConfig(divide_by_std=True, aggregation="token_mean"),
}
"""Named settings of GRPO, as `configs/signs/grpo.py:NAME` takes them.

- `dr_grpo` (arXiv 2503.20783): neither the group's standard deviation nor the response's length divides.
- `dapo` (arXiv 2503.14476): its clip-higher, 0.2 and 0.28, and its mean over tokens. Its dynamic sampling,
  which samples on until no group is all right or all wrong, and its overlong shaping, which punishes
  responses near the limit, are not included.
"""


class OnPolicyBatch(NamedTuple):
    """Rollouts laid out for a step.

    Attributes:
      student: Prompts without context, and the responses.
      rollout_log_probs: Log-probabilities that the student that sampled them gave the response tokens.
      markers: 1 on response tokens that are epistemic words.
      weights: What each response token counts in the objective; see `token_weights`.
      advantages: Of each response token (GRPO).
      teacher: Prompts with context, and the same responses (SDPO).
      has_teacher: 1 where there is a context; the teacher row is a filler elsewhere (SDPO).
      reference_log_probs: Log-probabilities of the response tokens under the initial weights (GRPO with a
        KL term).
    """

    student: Rows
    rollout_log_probs: Float[Array, "B T"]
    markers: Float[Array, "B T"]
    weights: Float[Array, "B T"]
    advantages: Float[Array, "B T"] | None = None
    teacher: Rows | None = None
    has_teacher: Float[Array, " B"] | None = None
    reference_log_probs: Float[Array, "B T"] | None = None


Metrics = dict[str, tuple[jax.Array, jax.Array]]


class Finite(NamedTuple):
    """Which rows of a batch have finite hidden states at all response tokens.

    Attributes:
      student_B: Under the student.
      teacher_B: Under the teacher, which has a say only where there is a context; None without a teacher.
    """

    student_B: Bool[Array, " B"]
    teacher_B: Bool[Array, " B"] | None = None


class PerToken(NamedTuple):
    """What is known of each response token of a batch, where a run asks for it (`TrainConfig.attribution`).

    Attributes:
      entropy_BT: Of the student, in nats, at the temperature of the rollouts.
      divergence_BT: Between teacher and student, in nats; None without a teacher.
      signal_BT: Size of what the token sends back into the network: the norm of the gradient of the objective
        in the final hidden state that predicts it. The loss leaves it to the gradient (`steps`).
    """

    entropy_BT: Float[Array, "B T"]
    divergence_BT: Float[Array, "B T"] | None = None
    signal_BT: Float[Array, "B T"] | None = None


class Report(NamedTuple):
    """What a loss says about its batch, besides its value; of each token only where that is asked for."""

    metrics: Metrics
    finite: Finite
    tokens: PerToken | None = None


def finite_rows(hidden_BTD: Float[Array, "B T D"], mask_BT: Float[Array, "B T"]) -> Bool[Array, " B"]:
    """Whether a row's hidden states are finite wherever the mask is set."""
    return jnp.all(jnp.all(jnp.isfinite(hidden_BTD), axis=-1) | (mask_BT == 0), axis=-1)


def masked_sum(values: Float[Array, "..."], mask: Float[Array, "..."]) -> tuple[jax.Array, jax.Array]:
    """A metric: the sum of the values where the mask is set, and how many there are."""
    return jnp.sum(jnp.where(mask > 0, values, 0.0)), jnp.sum(mask)


def objective(value: Float[Array, ""]) -> tuple[jax.Array, jax.Array]:
    """A metric that is a mean already: it adds up over the parts of an update, and so has no count."""
    return value, jnp.zeros(())


def token_weights(mask_BT: Float[np.ndarray, "B T"], mode: Aggregation) -> Float[np.ndarray, "B T"]:
    """What each token counts in the objective, which is the sum of weights × losses; 0 where masked.

    Made once from the masks of all rows of an update: so parts of them can be computed one after the
    other, and the sum of their gradients is the gradient of the whole. Where rollouts are learned from in
    several updates, the rows are those of one mini-batch: each has an objective of its own.

    - `seq_mean_token_mean`: mean over all B rows of each row's mean over its unmasked tokens. Rows with
      none contribute 0 and stay in the denominator: what the released code in fact computes.
    - `token_mean`: mean over all unmasked tokens.
    - `seq_mean_token_sum`: mean over all B rows of each row's sum.
    """
    if mode == "token_mean":
        return mask_BT / np.maximum(mask_BT.sum(), 1)
    if mode == "seq_mean_token_mean":
        mask_BT = mask_BT / np.maximum(mask_BT.sum(axis=1, keepdims=True), 1)
    return mask_BT / len(mask_BT)


def weighted_sum(values_BT: Float[Array, "B T"], weights_BT: Float[Array, "B T"]) -> Float[Array, ""]:
    """Sum of weights × values; a value without weight may be anything, NaN too."""
    return jnp.sum(weights_BT * jnp.where(weights_BT != 0, values_BT, 0.0))


def group_advantages(rewards_QG: Float[np.ndarray, "Q G"], divide_by_std: bool) -> Float[np.ndarray, "Q G"]:
    """Reward minus the group's mean, over its standard deviation if asked; 0 where all are equal."""
    advantages = rewards_QG - rewards_QG.mean(axis=1, keepdims=True)
    if divide_by_std:
        advantages = advantages / (rewards_QG.std(axis=1, keepdims=True) + 1e-6)
    return advantages


@functools.partial(jax.jit, static_argnames=("model", "temperature", "chunk"))
def score_rows(
    params: nnx.State, rows: Rows, *, model: ModelConfig, temperature: float, chunk: int
) -> TokenScores:
    """Scores of the response tokens, compiled: for what is scored once for all updates of a step."""
    decoder = bind(model, params)
    hidden_BTD = response_hidden(decoder, rows)
    return score_tokens(hidden_BTD, decoder.head(), response_ids(rows), chunk=chunk, temperature=temperature)


def k3(log_prob_BT: Float[Array, "B T"], reference_BT: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """KL(p ‖ p_reference) by token, r - log r - 1 with r = p_reference/p, which is never negative.

    Unbiased for tokens drawn from p (Schulman, "Approximating KL divergence", 2020).
    """
    log_r_BT = jnp.clip(reference_BT - log_prob_BT, -20.0, 20.0)
    return jnp.expm1(log_r_BT) - log_r_BT


def sdpo_loss(
    params: nnx.State,
    teacher_params: nnx.State | None,
    batch: OnPolicyBatch,
    nudge_BTD: Float[Array, "B T D"] | None = None,
    *,
    model: ModelConfig,
    config: DistillationConfig,
    mix: float | None = None,
    temperature: float,
    chunk: int,
) -> tuple[Float[Array, ""], Report]:
    """Divergence from the teacher on the student's own rollouts, as configured; and its report.

    No `teacher_params` means the student's own (a `live` teacher); `mix` is that of a `trust_region`. Zeros
    to add to the student's hidden states, whose gradient is that of the hidden states, ask for a report of
    each token.
    """
    assert batch.teacher is not None and batch.has_teacher is not None
    student = bind(model, params)
    teacher = student if teacher_params is None else bind(model, teacher_params)
    student_BTD = _nudged(response_hidden(student, batch.student), nudge_BTD)
    shown = Outputs(response_hidden(teacher, batch.teacher), teacher.head())
    if mix is not None:
        shown = mixed(shown, Outputs(response_hidden(student, batch.teacher), student.head()), mix)
    divergence_BT, student_scores, teacher_scores = chunked_token_divergence(
        student_BTD,
        student.head(),
        *jax.lax.stop_gradient(shown),
        response_ids(batch.student),
        alpha=config.alpha,
        support=config.support,
        top_k=config.top_k,
        tail=config.tail,
        pointwise_clip=config.pointwise_clip,
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
    if config.pointwise_clip is not None:
        metrics["negative"] = masked_sum(divergence_BT < 0, mask_BT)
    if config.fork_aware is not None:
        signs_BT = fork_weights(student_scores.entropy_BT, config.fork_aware)
        weighted_BT = weighted_BT * signs_BT
        metrics["forks"] = masked_sum(signs_BT < 1, mask_BT)
    loss = weighted_sum(weighted_BT, batch.weights)
    metrics |= {
        "loss": objective(loss),
        "divergence": masked_sum(divergence_BT, mask_BT),
        "divergence_epistemic": masked_sum(divergence_BT, mask_BT * batch.markers),
        "divergence_other": masked_sum(divergence_BT, mask_BT * (1 - batch.markers)),
        "teacher_entropy": masked_sum(teacher_scores.entropy_BT, mask_BT),
        "teacher_advantage": masked_sum(teacher_scores.log_prob_BT - student_scores.log_prob_BT, mask_BT),
        "entropy": masked_sum(student_scores.entropy_BT, response_BT),
        "sampler_gap": masked_sum(jnp.abs(log_ratio_BT), response_BT),
    }
    finite = Finite(finite_rows(student_BTD, response_BT), finite_rows(shown.hidden_BTE, mask_BT))
    tokens = None if nudge_BTD is None else PerToken(student_scores.entropy_BT, divergence_BT)
    return loss, Report(metrics, finite, tokens)


def _nudged(
    hidden_BTD: Float[Array, "B T D"], nudge_BTD: Float[Array, "B T D"] | None
) -> Float[Array, "B T D"]:
    return hidden_BTD if nudge_BTD is None else hidden_BTD + nudge_BTD


def grpo_loss(
    params: nnx.State,
    batch: OnPolicyBatch,
    nudge_BTD: Float[Array, "B T D"] | None = None,
    *,
    model: ModelConfig,
    config: GRPOConfig,
    temperature: float,
    chunk: int,
) -> tuple[Float[Array, ""], Report]:
    """Clipped policy gradient with the batch's advantages, and what it may cost to leave the reference.

    `nudge_BTD` is as in `sdpo_loss`.
    """
    assert batch.advantages is not None
    student = bind(model, params)
    hidden_BTD = _nudged(response_hidden(student, batch.student), nudge_BTD)
    ids_BT = response_ids(batch.student)
    scores = score_tokens(hidden_BTD, student.head(), ids_BT, chunk=chunk, temperature=temperature)
    mask_BT = batch.student.response_mask
    log_ratio_BT = scores.log_prob_BT - batch.rollout_log_probs
    ratio_BT = jnp.exp(jnp.clip(log_ratio_BT, -20.0, 20.0))
    clipped_BT = jnp.clip(ratio_BT, 1 - config.clip_low, 1 + config.clip_high)
    gain_BT = jnp.minimum(ratio_BT * batch.advantages, clipped_BT * batch.advantages)
    loss_BT, metrics = -gain_BT, {}
    if config.kl_coefficient is not None:
        assert batch.reference_log_probs is not None
        kl_BT = k3(scores.log_prob_BT, batch.reference_log_probs)
        loss_BT = loss_BT + config.kl_coefficient * kl_BT
        metrics["kl"] = masked_sum(kl_BT, mask_BT)
    loss = weighted_sum(loss_BT, batch.weights)
    metrics |= {
        "loss": objective(loss),
        "clipped": masked_sum(ratio_BT != clipped_BT, mask_BT),
        "entropy": masked_sum(scores.entropy_BT, mask_BT),
        "sampler_gap": masked_sum(jnp.abs(log_ratio_BT), mask_BT),
        "signal": (jnp.sum(jnp.any(batch.advantages != 0, axis=1)), jnp.full((), float(len(mask_BT)))),
    }
    tokens = None if nudge_BTD is None else PerToken(scores.entropy_BT)
    return loss, Report(metrics, Finite(finite_rows(hidden_BTD, mask_BT)), tokens)
