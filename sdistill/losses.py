"""The losses: from a batch to a scalar.

    SDPO            mean over tokens of D(S ‖ T), S the student and T the same model with a context
    GRPO            clipped policy gradient with group-relative advantages
    cross-entropy   pretraining and SFT

The objective is Σ weight × token loss. Its weights are made on the host from all rows of an update, so the
gradients of micro-batches add up to that of the whole batch. Metrics are (sum, count) pairs, which add up in
the same way before they are divided.

What a token counts. p is its probability under the student; factors of fixes are 1 unless configured:

    SDPO   token_weights, on the host (`batch.sdpo_batch`)
               response_mask × has_teacher × not in masked_words, normalised by `token_weights`
             × pass-rate weight of its problem                                    fixes.pass_rate_weights
             × min(p_full / p_sampled, rollout_correction_cap): p_full without top-k, top-p, min-p
           in the graph (`sdpo_loss`)
             × min(p / p_old, importance_cap), without a gradient of its own
             × 1, or -repulsion at forks                                          fixes.fork_weights
           token loss: D, each id's term at most `pointwise_clip`                 divergence/
    GRPO   token_weights, on the host (`batch.grpo_batch`): response_mask, normalised by `token_weights`
           token loss (`grpo_loss`): -min(r A, clip(r) A) + kl_coefficient × k3, r = p / p_old
           A: the group's advantage, changed by contrastive_hints or anti_self_distillation
    SFT    token_weights (`batch.packed_batch`): the example's weight / their sum
           token loss: -log p
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from sdistill.config import Aggregation, GRPOLossConfig, SDPOLossConfig
from sdistill.divergence.chunked import chunked_token_divergence
from sdistill.fixes import fork_weights
from sdistill.model.config import ModelConfig
from sdistill.model.decoder import Decoder, bind
from sdistill.model.scoring import TokenScores, summarize

MAX_LOG_RATIO = 20.0  # keeps importance ratios finite

# ── Batches ──────────────────────────────────────────────────────────────────────────────────────


class Sequences(NamedTuple):
    """B sequences of P prompt and T response columns.

    Prompts are padded on the left and end at column P; responses are padded on the right. So response token t
    is predicted at column P - 1 + t. Student and teacher sequences differ in P and share the response
    columns.

    Attributes:
      tokens: Ids; padding is 0.
      positions: Position of each token in its own sequence; 0 on padding.
      segment_ids: 1 on tokens, 0 on padding, which attends to nothing and is attended by nothing.
      response_mask: 1.0 on response tokens, the stop token included; 0.0 on padding.
    """

    tokens: Int[Array, "B P+T"]
    positions: Int[Array, "B P+T"]
    segment_ids: Int[Array, "B P+T"]
    response_mask: Float[Array, "B T"]


class SDPOBatch(NamedTuple):
    """Rollouts with their teacher's view of them.

    Attributes:
      student: Prompts without context, and responses.
      teacher: Prompts with context, and the same responses.
      has_teacher: 1 where there is a context. Elsewhere the teacher's sequence is filler.
      token_weights: Weight of each response token in the objective.
      rollout_log_probs: Log-probabilities of the response tokens under the student that sampled them.
      epistemic_mask: 1 on tokens of epistemic words.
    """

    student: Sequences
    teacher: Sequences
    has_teacher: Float[Array, " B"]
    token_weights: Float[Array, "B T"]
    rollout_log_probs: Float[Array, "B T"]
    epistemic_mask: Float[Array, "B T"]


class GRPOBatch(NamedTuple):
    """Rollouts with their advantages.

    Attributes:
      advantages: Of each response token.
      token_weights: Weight of each response token in the objective.
      rollout_log_probs: Log-probabilities of the response tokens under the student that sampled them.
      reference_log_probs: The same under the initial weights; only with a KL term.
    """

    student: Sequences
    advantages: Float[Array, "B T"]
    token_weights: Float[Array, "B T"]
    rollout_log_probs: Float[Array, "B T"]
    reference_log_probs: Float[Array, "B T"] | None = None


class PackedBatch(NamedTuple):
    """Rows into which one or several examples are packed (`data.pipelines.example_batches`).

    Attributes:
      targets: The id to predict at each column.
      token_weights: Weight of each target in the objective; they sum to 1 over a batch.
      segment_ids: Which example a column belongs to, from 1; 0 on padding.
      positions: Position in the example.
    """

    tokens: Int[Array, "B S"]
    targets: Int[Array, "B S"]
    token_weights: Float[Array, "B S"]
    segment_ids: Int[Array, "B S"]
    positions: Int[Array, "B S"]


def response_ids(sequences: Sequences) -> Int[Array, "B T"]:
    """The response columns."""
    return sequences.tokens[:, -sequences.response_mask.shape[1] :]


def response_hidden(model: Decoder, sequences: Sequences) -> Float[Array, "B T D"]:
    """Final hidden states that predict the response tokens."""
    hidden_BSD = model(sequences.tokens, sequences.positions, sequences.segment_ids)
    response_length = sequences.response_mask.shape[1]
    return hidden_BSD[:, -response_length - 1 : -1]


# ── Reports ──────────────────────────────────────────────────────────────────────────────────────

MetricSums = dict[str, tuple[jax.Array, jax.Array]]
"""Name → (sum, count). The objective of an update is a sum without a count: 0. So is an empty metric."""


class LossReport(NamedTuple):
    """What a loss reports besides its value.

    Attributes:
      finite: Which rows have finite hidden states at all response tokens: the `student`'s, and the
        `teacher`'s where there is a context.
      tokens: Figures of each response token, for runs with `attribution`: `entropy` of the student and
        `divergence` between teacher and student, in nats, at the temperature of the rollouts. The gradient
        adds `signal`, its norm in the final hidden state that predicts the token (`step.compute_gradient`).
    """

    metrics: MetricSums
    finite: dict[str, Bool[Array, " B"]]
    tokens: dict[str, Float[Array, "B T"]] | None = None


def finite_rows(hidden_BTD: Float[Array, "B T D"], mask_BT: Float[Array, "B T"]) -> Bool[Array, " B"]:
    """Whether a row's hidden states are finite wherever the mask is set."""
    return jnp.all(jnp.all(jnp.isfinite(hidden_BTD), axis=-1) | (mask_BT == 0), axis=-1)


def masked_sum(values: Float[Array, "..."], mask: Float[Array, "..."]) -> tuple[jax.Array, jax.Array]:
    """A metric: sum and count of the values where the mask is set."""
    return jnp.sum(jnp.where(mask > 0, values, 0.0)), jnp.sum(mask)


def weighted_sum(values_BT: Float[Array, "B T"], weights_BT: Float[Array, "B T"]) -> Float[Array, ""]:
    """Σ weight × value. A value with weight 0 does not count, even if NaN; its gradient may be NaN."""
    return jnp.sum(weights_BT * jnp.where(weights_BT != 0, values_BT, 0.0))


# ── Weights and advantages, on the host ──────────────────────────────────────────────────────────


def token_weights(mask_BT: Float[np.ndarray, "B T"], mode: Aggregation) -> Float[np.ndarray, "B T"]:
    """Weight of each token in the objective Σ weight × loss of an update of B rows; 0 where masked.

    - `seq_mean_token_mean`: mean over all B rows of each row's mean over its tokens. Empty rows contribute 0
      and stay in the denominator, as in the released code.
    - `token_mean`: mean over all tokens.
    - `seq_mean_token_sum`: mean over all B rows of each row's sum.
    """
    if mode == "token_mean":
        return mask_BT / np.maximum(mask_BT.sum(), 1)
    if mode == "seq_mean_token_mean":
        mask_BT = mask_BT / np.maximum(mask_BT.sum(axis=1, keepdims=True), 1)
    return mask_BT / len(mask_BT)


def group_advantages(rewards_QG: Float[np.ndarray, "Q G"], divide_by_std: bool) -> Float[np.ndarray, "Q G"]:
    """Reward minus the group's mean, over its standard deviation if asked for; 0 where all are equal."""
    advantages = rewards_QG - rewards_QG.mean(axis=1, keepdims=True)
    if divide_by_std:
        advantages = advantages / (rewards_QG.std(axis=1, keepdims=True) + 1e-6)
    return advantages


# ── The losses ───────────────────────────────────────────────────────────────────────────────────


Outputs = tuple[Float[Array, "B T E"], Float[Array, "E V"]]
"""Hidden states and head, whose product are the logits."""


def mix_outputs(initial: Outputs, own: Outputs, mix: float) -> Outputs:
    """The outputs whose logits are (1 - mix) · initial + mix · own: a trust-region teacher.

    Hidden states are concatenated and heads stacked, so that no array of logits is needed for the mixture.
    """
    hidden_BTE = jnp.concatenate([initial[0], own[0]], axis=-1)
    head_EV = jnp.concatenate([(1 - mix) * initial[1], mix * own[1]], axis=0)
    return hidden_BTE, head_EV.astype(hidden_BTE.dtype)


def sdpo_loss(
    params: nnx.State,
    teacher_params: nnx.State | None,
    batch: SDPOBatch,
    perturbation_BTD: Float[Array, "B T D"] | None = None,
    *,
    model: ModelConfig,
    config: SDPOLossConfig,
    mix: float | None = None,
    temperature: float,
    logits_chunk_size: int,
) -> tuple[Float[Array, ""], LossReport]:
    """Divergence between teacher and student on the student's own rollouts (SDPO, arXiv 2601.20802).

    Args:
      params: The student's.
      teacher_params: None takes the student's own (a `live` teacher).
      perturbation_BTD: Zeros added to the student's hidden states, whose gradient is then that of the hidden
        states. Their presence asks for a report of each token.
      model: Shape of both.
      mix: Share of the student's logits in a `trust_region` teacher.
      temperature: Of the rollouts.
      logits_chunk_size: Positions of a row whose logits exist at the same time.
    """
    # Forward passes over the same responses: the student without, the teacher with the context.
    student = bind(model, params)
    teacher = student if teacher_params is None else bind(model, teacher_params)
    student_BTD = response_hidden(student, batch.student)
    if perturbation_BTD is not None:
        student_BTD = student_BTD + perturbation_BTD
    teacher_outputs = response_hidden(teacher, batch.teacher), teacher.head()
    if mix is not None:
        own = response_hidden(student, batch.teacher), student.head()
        teacher_outputs = mix_outputs(teacher_outputs, own, mix)

    # Divergence of each token, in chunks of logits.
    divergence_BT, student_scores, teacher_scores = chunked_token_divergence(
        student_BTD,
        student.head(),
        *teacher_outputs,
        response_ids(batch.student),
        config.divergence,
        temperature=temperature,
        logits_chunk_size=logits_chunk_size,
    )

    # Importance weights and fixes.
    response_BT = batch.student.response_mask
    mask_BT = response_BT * batch.has_teacher[:, None]
    log_ratio_BT = student_scores.log_prob_BT - batch.rollout_log_probs
    ratio_BT = jax.lax.stop_gradient(jnp.exp(jnp.clip(log_ratio_BT, -MAX_LOG_RATIO, MAX_LOG_RATIO)))
    loss_BT, metrics = divergence_BT, {}
    if config.importance_cap is not None:
        loss_BT = divergence_BT * jnp.minimum(ratio_BT, config.importance_cap)
        metrics["is_clipped_frac"] = masked_sum(ratio_BT > config.importance_cap, mask_BT)
    if config.divergence.pointwise_clip is not None:
        metrics["negative"] = masked_sum(divergence_BT < 0, mask_BT)
    if config.fork_aware is not None:
        fork_weights_BT = fork_weights(student_scores.entropy_BT, config.fork_aware)
        loss_BT = loss_BT * fork_weights_BT
        metrics["forks"] = masked_sum(fork_weights_BT < 1, mask_BT)
    loss = weighted_sum(loss_BT, batch.token_weights)

    metrics |= {
        "loss": (loss, jnp.zeros(())),
        "divergence": masked_sum(divergence_BT, mask_BT),
        "divergence_epistemic": masked_sum(divergence_BT, mask_BT * batch.epistemic_mask),
        "divergence_other": masked_sum(divergence_BT, mask_BT * (1 - batch.epistemic_mask)),
        "teacher_entropy": masked_sum(teacher_scores.entropy_BT, mask_BT),
        "teacher_advantage": masked_sum(teacher_scores.log_prob_BT - student_scores.log_prob_BT, mask_BT),
        "entropy": masked_sum(student_scores.entropy_BT, response_BT),
        "logprob_diff": masked_sum(jnp.abs(log_ratio_BT), response_BT),
    }
    finite = {
        "student": finite_rows(student_BTD, response_BT),
        "teacher": finite_rows(teacher_outputs[0], mask_BT),
    }
    tokens = {"entropy": student_scores.entropy_BT, "divergence": divergence_BT}
    return loss, LossReport(metrics, finite, None if perturbation_BTD is None else tokens)


def grpo_loss(
    params: nnx.State,
    teacher_params: nnx.State | None,
    batch: GRPOBatch,
    perturbation_BTD: Float[Array, "B T D"] | None = None,
    *,
    model: ModelConfig,
    config: GRPOLossConfig,
    temperature: float,
    logits_chunk_size: int,
) -> tuple[Float[Array, ""], LossReport]:
    """Clipped policy gradient with the batch's advantages, and a KL penalty if configured.

    Arguments are those of `sdpo_loss`. The teacher's weights are not read: its scores are in the advantages.
    """
    # Log-probabilities of the rollouts under the current weights.
    student = bind(model, params)
    hidden_BTD = response_hidden(student, batch.student)
    if perturbation_BTD is not None:
        hidden_BTD = hidden_BTD + perturbation_BTD
    ids_BT, mask_BT = response_ids(batch.student), batch.student.response_mask
    scores = summarize(
        hidden_BTD, student.head(), ids_BT, logits_chunk_size=logits_chunk_size, temperature=temperature
    ).scores()

    # Clipped surrogate.
    log_ratio_BT = scores.log_prob_BT - batch.rollout_log_probs
    ratio_BT = jnp.exp(jnp.clip(log_ratio_BT, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    clipped_BT = jnp.clip(ratio_BT, 1 - config.clip_low, 1 + config.clip_high)
    gain_BT = jnp.minimum(ratio_BT * batch.advantages, clipped_BT * batch.advantages)
    loss_BT, metrics = -gain_BT, {}
    if config.kl_coefficient is not None and batch.reference_log_probs is not None:
        kl_BT = k3(scores.log_prob_BT, batch.reference_log_probs)
        loss_BT = loss_BT + config.kl_coefficient * kl_BT
        metrics["kl"] = masked_sum(kl_BT, mask_BT)
    loss = weighted_sum(loss_BT, batch.token_weights)

    metrics |= {
        "loss": (loss, jnp.zeros(())),
        "clip_frac": masked_sum(ratio_BT != clipped_BT, mask_BT),
        "entropy": masked_sum(scores.entropy_BT, mask_BT),
        "logprob_diff": masked_sum(jnp.abs(log_ratio_BT), mask_BT),
        "nonzero_advantage": (
            jnp.sum(jnp.any(batch.advantages != 0, axis=1)),
            jnp.full((), float(len(mask_BT))),
        ),
    }
    finite = {"student": finite_rows(hidden_BTD, mask_BT)}
    tokens = None if perturbation_BTD is None else {"entropy": scores.entropy_BT}
    return loss, LossReport(metrics, finite, tokens)


def cross_entropy_loss(
    params: nnx.State, teacher_params: None, batch: PackedBatch, *, model: ModelConfig, logits_chunk_size: int
) -> tuple[Float[Array, ""], LossReport]:
    """Weighted cross-entropy of the targets, in nats. There is no teacher."""
    decoder = bind(model, params)
    hidden_BSD = decoder(batch.tokens, batch.positions, batch.segment_ids)
    head_DV = decoder.head()
    scores = summarize(hidden_BSD, head_DV, batch.targets, logits_chunk_size=logits_chunk_size).scores()
    loss = weighted_sum(-scores.log_prob_BT, batch.token_weights)
    mask_BS = (batch.token_weights > 0).astype(jnp.float32)
    metrics = {"loss": (loss, jnp.zeros(())), "entropy": masked_sum(scores.entropy_BT, mask_BS)}
    return loss, LossReport(metrics, {"student": finite_rows(hidden_BSD, mask_BS)})


def k3(log_prob_BT: Float[Array, "B T"], reference_BT: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """Estimate r - log r - 1 of KL(p ‖ p_reference), r = p_reference/p, for tokens drawn from p; never
    negative.

    Unbiased (Schulman, "Approximating KL divergence", 2020).
    """
    log_r_BT = jnp.clip(reference_BT - log_prob_BT, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    return jnp.expm1(log_r_BT) - log_r_BT


@functools.partial(jax.jit, static_argnames=("model", "temperature", "logits_chunk_size"))
def score_responses(
    params: nnx.State, sequences: Sequences, *, model: ModelConfig, temperature: float, logits_chunk_size: int
) -> TokenScores:
    """Log-probability and entropy at each response token."""
    decoder = bind(model, params)
    hidden_BTD = response_hidden(decoder, sequences)
    ids_BT = response_ids(sequences)
    return summarize(
        hidden_BTD, decoder.head(), ids_BT, logits_chunk_size=logits_chunk_size, temperature=temperature
    ).scores()
