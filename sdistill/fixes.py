"""Fixes proposed for what self-distillation does to reasoning: one small function each, with its source.

T is the teacher, which sees a context, S the student, y the student's own tokens, A the group-relative
advantage. Two fixes more are contexts (`distill.contexts`): `other_problem` (OP²SD, arXiv 2608.09228) and
`partial`, the paper's own dial (arXiv 2603.24472).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sdistill.contexts import ContextConfig
from sdistill.settings import require, require_positive
from sdistill.teacher import TeacherConfig

# ── Of the distillation loss (SDPO) ──────────────────────────────────────────────────────────────


def clip_pointwise(terms: Float[Array, "..."], cap: float) -> Float[Array, "..."]:
    """What each id adds to a token's divergence, at most `cap`, in nats; no gradient where it is capped.

    OPSD (arXiv 2601.18734): style tokens carry 6 to 15 times the divergence of mathematical ones. Terms
    may be negative and are left alone there, so that a token's loss can become negative.
    """
    return jnp.where(terms < cap, terms, cap)


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


@dataclass(frozen=True)
class ForkAware:
    """Fork-aware weights; see `fork_weights`.

    Attributes:
      threshold: Entropy of the student in nats, above which a token is a fork.
      repulsion: Weight of forks, away from the teacher, where that of other tokens is 1; β.
    """

    threshold: float
    repulsion: float

    def __post_init__(self) -> None:
        require_positive(self, "threshold")
        require(self.repulsion >= 0, f"repulsion={self.repulsion} must be 0 or more; it is subtracted")


def fork_weights(entropy_BT: Float[Array, "B T"], config: ForkAware) -> Float[Array, "B T"]:
    """+1, towards the teacher, at tokens of which the student is sure; -β, away from it, at forks.

    DASD (arXiv 2605.22263): what a privileged teacher says stabilises steps, and suppresses exploration
    where the student is uncertain. Only this rule was available, not the constants of that paper.
    """
    return jnp.where(jax.lax.stop_gradient(entropy_BT) > config.threshold, -config.repulsion, 1.0)


# ── Of advantages (GRPO) ─────────────────────────────────────────────────────────────────────────


def check_guide(teacher: TeacherConfig) -> None:
    """Raises ConfigError for a teacher that has no weights of its own to score rollouts with."""
    require(
        teacher.weights != "trust_region",
        "teacher.weights='trust_region' is for SDPO; use 'live', 'fixed' or 'ema'",
    )


@dataclass(frozen=True)
class ContrastiveHints:
    """Contrastive hints (RLCSD, arXiv 2606.11709, constants as published).

    Attributes:
      context: How a sibling's response is shown as a hint: all of it, or the answer.
      teacher: Whose weights read the hints; the student's own by default.
      hints: Wrong hints of a rollout, at most; K.
      temperature: Evidence that counts as much, in nats; τ.
      scale: What a token's advantage changes by at most; βλ, with β = 1.
      threshold: Smaller changes are left out; δ.
    """

    context: ContextConfig = field(default_factory=lambda: ContextConfig("solution"))
    teacher: TeacherConfig = field(default_factory=lambda: TeacherConfig("live"))
    hints: int = 4
    temperature: float = 0.02
    scale: float = 0.5
    threshold: float = 0.02

    def __post_init__(self) -> None:
        check_guide(self.teacher)
        require(
            self.context.kind in ("solution", "answer"),
            f"context.kind={self.context.kind!r} cannot be right or wrong; use 'solution' or 'answer'",
        )
        require_positive(self, "hints", "temperature", "scale")
        require(
            0 <= self.threshold < self.scale,
            f"threshold={self.threshold} must be 0 or more and below scale={self.scale}, the largest change",
        )


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


@dataclass(frozen=True)
class AntiSelfDistillation:
    """Anti-self-distillation (arXiv 2605.11609).

    Of the constants only `gate` was available; the scale and the length of the warm-up are ours.

    Attributes:
      context: What the teacher sees.
      teacher: Whose weights it has; the student's own by default.
      scale: Weight of the term; λ.
      gate: The term is switched off while the teacher's entropy is below so much of its warm-up mean.
      warmup: Steps with a teacher, from the first on, that the warm-up mean is over.
    """

    context: ContextConfig = field(default_factory=lambda: ContextConfig("solution"))
    teacher: TeacherConfig = field(default_factory=lambda: TeacherConfig("live"))
    scale: float = 0.5
    gate: float = 0.93
    warmup: int = 10

    def __post_init__(self) -> None:
        check_guide(self.teacher)
        require_positive(self, "scale", "gate", "warmup")


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
