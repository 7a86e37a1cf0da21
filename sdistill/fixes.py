"""Fixes proposed for what self-distillation does to reasoning: one small function each, with its source.

T is the teacher, which sees a context, S the student, y the student's own tokens, A the group-relative
advantage. Two fixes more are contexts (`contexts`): `other_problem` (OP²SD, arXiv 2608.09228) and
`partial`, the paper's own dial (arXiv 2603.24472).
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sdistill.config import AntiSelfDistillation, ContrastiveHints, ForkAware

# ── Of the distillation loss (SDPO) ──────────────────────────────────────────────────────────────


def without_words(
    mask_BT: Float[np.ndarray, "B T"], words_BT: Float[np.ndarray, "B T"]
) -> Float[np.ndarray, "B T"]:
    """The mask without the tokens of some words, which then count neither in the loss nor in its means.

    The paper (arXiv 2603.24472) holds that losing the epistemic words is what costs accuracy; other words
    that are as frequent are the control.
    """
    return mask_BT * (1 - words_BT)


def pass_rate_weights(correct_QG: Bool[np.ndarray, "Q G"]) -> Float[np.ndarray, " Q"]:
    """√(p̂(1 - p̂)) of each problem's pass rate p̂, over its mean: the weights of a batch have mean 1.

    SC-SDPO (arXiv 2605.27765): problems solved half the time teach most. All 0 where every problem is
    solved always or never.
    """
    rate_Q = correct_QG.mean(axis=1)
    weights_Q = np.sqrt(rate_Q * (1 - rate_Q)).astype(np.float32)
    return weights_Q / weights_Q.mean() if weights_Q.any() else weights_Q


def fork_weights(entropy_BT: Float[Array, "B T"], config: ForkAware) -> Float[Array, "B T"]:
    """+1, towards the teacher, at tokens of which the student is sure; -β, away from it, at forks.

    DASD (arXiv 2605.22263): what a privileged teacher says stabilises steps, and suppresses exploration
    where the student is uncertain. Only this rule was available, not the constants of that paper.
    """
    return jnp.where(jax.lax.stop_gradient(entropy_BT) > config.threshold, -config.repulsion, 1.0)


# ── Of advantages (GRPO) ─────────────────────────────────────────────────────────────────────────


def contrastive_evidence(
    log_probs_HBT: Float[np.ndarray, "H B T"], shown_HB: Float[np.ndarray, "H B"]
) -> Float[np.ndarray, "B T"]:
    """e_t = log p_T(y_t | x, correct hint) - log mean_k p_T(y_t | x, wrong hint k), in nats.

    Args:
      log_probs_HBT: Of the tokens under each hint, the correct one first.
      shown_HB: 1 where a rollout has that hint. Without a correct or without any wrong one e_t is 0.
    """
    shown_HB1 = shown_HB[:, :, None] > 0
    correct_BT = log_probs_HBT[0]
    wrong_HBT = np.where(shown_HB1[1:], log_probs_HBT[1:], -np.inf)
    usable_B1 = shown_HB1[0] & shown_HB1[1:].any(axis=0)
    wrong_HBT = np.where(usable_B1, wrong_HBT, 0.0)  # any number will do
    count_B1 = np.maximum(shown_HB1[1:].sum(axis=0), 1)
    mean_BT = np.logaddexp.reduce(wrong_HBT, axis=0) - np.log(count_B1)
    return np.where(usable_B1, correct_BT - mean_BT, 0.0)


def contrastive_advantages(
    advantages_BT: Float[np.ndarray, "B T"], evidence_BT: Float[np.ndarray, "B T"], config: ContrastiveHints
) -> Float[np.ndarray, "B T"]:
    """A + r where |r| > δ, r = βλ · tanh(e/τ); 0 where that would flip the sign of A.

    RLCSD (arXiv 2606.11709): what a hint changes whether right or wrong, such as style, cancels in e.
    """
    change_BT = config.scale * np.tanh(evidence_BT / config.temperature)
    change_BT = np.where(np.abs(change_BT) > config.threshold, change_BT, 0.0)
    sign_BT = np.sign(advantages_BT)
    return sign_BT * np.maximum(sign_BT * (advantages_BT + change_BT), 0.0)


def anti_advantages(
    advantages_BT: Float[np.ndarray, "B T"], gap_BT: Float[np.ndarray, "B T"], scale: float
) -> Float[np.ndarray, "B T"]:
    """A - λ φ(u), u = log p_T(y) - log p_S(y), φ(u) = (softplus(u) - log 2) / 2.

    Anti-self-distillation (arXiv 2605.11609): away from the teacher instead of towards it. Where both
    agree nothing changes, and what a token can gain is bounded by λ log(2) / 2.
    """
    return advantages_BT - scale * (np.logaddexp(0.0, gap_BT) - math.log(2)) / 2


def gate_is_open(entropies: Sequence[float], config: AntiSelfDistillation) -> bool:
    """Whether the teacher has kept its entropy; the last of `entropies`, one a step, is this step's.

    During the warm-up the mean is over the steps so far.
    """
    return entropies[-1] >= config.gate * float(np.mean(entropies[: config.warmup]))
