"""From judged rollouts to the arrays of an on-policy step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from sdistill.analysis.epistemic import token_mask
from sdistill.analysis.measure import Generation
from sdistill.distill.contexts import contrastive_contents, sibling_contents
from sdistill.distill.fixes import (
    AntiSelfDistillation,
    ContrastiveHints,
    anti_advantages,
    contrastive_advantages,
    contrastive_evidence,
    gate_is_open,
    pass_rate_weights,
    without_markers,
)
from sdistill.models.scoring import TokenScores
from sdistill.rollout.engine import Rollouts
from sdistill.tasks.problem import Problem
from sdistill.text.chat import Chat, conversation
from sdistill.training.config import TrainConfig
from sdistill.training.objectives import OnPolicyBatch, group_advantages, token_weights
from sdistill.training.rows import Rows, layout

Score = Callable[[Rows], TokenScores]
"""Scores of the response tokens of rows, on the host, at the temperature of the rollouts."""


def on_policy_batch(
    config: TrainConfig,
    problems: Sequence[Problem],
    generations: Sequence[Generation],
    rollouts: Rollouts,
    chat: Chat,
    *,
    teacher: Score,
    reference: Score,
    past: Sequence[Mapping[str, float]],
) -> tuple[OnPolicyBatch, dict[str, float]]:
    """Lays out judged rollouts for the step, and says how the batch looks.

    What GRPO takes from a teacher or from the initial weights is scored here, once for all that is learned
    from these rollouts, as advantages are: with the weights that sampled them.

    Args:
      config: Of the run.
      problems: One a group.
      generations: Judged responses, the samples of a problem next to each other.
      rollouts: Their tokens.
      chat: How prompts are made.
      teacher: Scores with the teacher's weights.
      reference: Scores with the initial weights.
      past: The records of the steps before this one.
    """
    settings = config.rollouts
    assert settings is not None
    groups = [
        list(generations[i : i + settings.samples]) for i in range(0, len(generations), settings.samples)
    ]
    texts = [[g["response"] for g in group] for group in groups]
    verdicts = [[bool(g["correct"]) for g in group] for group in groups]
    correct = np.asarray(verdicts)
    prompts = [
        chat.prompt(p.messages, thinking=settings.thinking) for p in problems for _ in range(settings.samples)
    ]
    student = layout(prompts, rollouts.ids, rollouts.lengths, settings.max_prompt)
    figures = {
        "train_accuracy": float(correct.mean()),
        "solved_groups": float(correct.any(axis=1).mean()),
        "length": float(rollouts.lengths.mean()),
        "words": float(np.mean([g["words"] for g in generations])),
        "finished": float(rollouts.finished.mean()),
    }
    mask = np.asarray(student.response_mask)
    markers = token_mask(chat.tokenizer, rollouts.ids)
    # On the host until `place_batch`: hence `Any`.
    columns: dict[str, Any] = {"rollout_log_probs": rollouts.full_log_probs, "markers": markers}

    def guided(contents: Sequence[str | None]) -> tuple[Rows, Float[np.ndarray, " B"]]:
        """Rows with a context, and 1 where there is one; elsewhere the row is a filler."""
        assert config.guide is not None and settings.max_teacher_prompt is not None
        thinking = config.guide.context.thinking
        shown = [
            prompt
            if content is None
            else chat.prompt(conversation(problems[i // settings.samples], content), thinking=thinking)
            for i, (prompt, content) in enumerate(zip(prompts, contents, strict=True))
        ]
        rows = layout(shown, rollouts.ids, rollouts.lengths, settings.max_teacher_prompt)
        return rows, np.asarray([content is not None for content in contents], np.float32)

    if config.sdpo is not None:
        loss = config.sdpo.loss
        contents = sibling_contents(config.sdpo.context, problems, texts, verdicts)
        rows, has_teacher = guided(_flat(contents))
        figures["teacher_fraction"] = float(has_teacher.mean())
        taught = mask * has_teacher[:, None]
        if loss.marker_mask:
            taught = without_markers(taught, markers)
        weights = token_weights(taught, loss.aggregation)
        if loss.pass_rate_weight:
            weights = weights * np.repeat(pass_rate_weights(correct), settings.samples)[:, None]
        if loss.rollout_correction_cap is not None:
            kept = np.exp(rollouts.full_log_probs - rollouts.log_probs)
            weights = weights * np.minimum(kept, loss.rollout_correction_cap)
        columns |= {"weights": weights, "teacher": rows, "has_teacher": has_teacher}
        return OnPolicyBatch(student, **columns), figures

    assert config.grpo is not None
    columns["weights"] = token_weights(mask, config.grpo.aggregation)
    if config.grpo.kl_coefficient is not None:
        columns["reference_log_probs"] = np.asarray(reference(student).log_prob_BT)
    advantages = group_advantages(correct.astype(np.float32), config.grpo.divide_by_std).reshape(-1, 1) * mask
    if hints := config.grpo.contrastive_hints:
        turns = _flat(contrastive_contents(hints.context, problems, texts, verdicts, hints.hints))
        hinted = [guided(contents) for contents in zip(*turns, strict=True)]
        advantages, shaping = _contrasted(advantages, hints, hinted, teacher)
        figures |= shaping
    if anti := config.grpo.anti_self_distillation:
        turns = _flat(sibling_contents(anti.context, problems, texts, verdicts))
        sampled = rollouts.full_log_probs
        advantages, shaping = _repelled(advantages, anti, *guided(turns), teacher, sampled, past)
        figures |= shaping
    return OnPolicyBatch(student, advantages=advantages, **columns), figures


def _contrasted(
    advantages_BT: Float[np.ndarray, "B T"],
    config: ContrastiveHints,
    hinted: Sequence[tuple[Rows, Float[np.ndarray, " B"]]],
    teacher: Score,
) -> tuple[Float[np.ndarray, "B T"], dict[str, float]]:
    """Advantages changed by hints; without a correct and a wrong one a rollout keeps its own."""
    log_probs_HBT = np.stack([np.asarray(teacher(rows).log_prob_BT) for rows, _ in hinted])
    shown_HB = np.stack([shown_B for _, shown_B in hinted])
    mask_BT = np.asarray(hinted[0][0].response_mask)
    evidence_BT = contrastive_evidence(log_probs_HBT, shown_HB) * mask_BT
    shaped_BT = contrastive_advantages(advantages_BT, evidence_BT, config).astype(np.float32)
    both_B = shown_HB[0] * shown_HB[1:].max(axis=0)
    return shaped_BT, {
        "teacher_fraction": float(both_B.mean()),
        "shaped": float((shaped_BT != advantages_BT).sum() / mask_BT.sum()),
    }


def _repelled(
    advantages_BT: Float[np.ndarray, "B T"],
    config: AntiSelfDistillation,
    rows: Rows,
    has_teacher_B: Float[np.ndarray, " B"],
    teacher: Score,
    sampled_BT: Float[np.ndarray, "B T"],
    past: Sequence[Mapping[str, float]],
) -> tuple[Float[np.ndarray, "B T"], dict[str, float]]:
    """Advantages turned away from the teacher while the gate is open, in rows that have one.

    The gate's state is the teacher's entropy at every step, which the run records anyway: a run that
    continues reads it back, to the bit, and no checkpoint has to hold it.
    """
    scores = teacher(rows)
    mask_BT = np.asarray(rows.response_mask) * has_teacher_B[:, None]
    entropy = float((np.asarray(scores.entropy_BT) * mask_BT).sum() / max(mask_BT.sum(), 1.0))
    now = {"teacher_fraction": float(has_teacher_B.mean()), "teacher_entropy": entropy}
    entropies = [step["teacher_entropy"] for step in (*past, now) if step["teacher_fraction"] > 0]
    is_open = len(entropies) > 0 and gate_is_open(entropies, config)
    gap_BT = np.asarray(scores.log_prob_BT) - sampled_BT
    shaped_BT = anti_advantages(advantages_BT, gap_BT, config.scale).astype(np.float32)
    shaped_BT = np.where(mask_BT * is_open > 0, shaped_BT, advantages_BT)
    share = float((mask_BT * is_open).sum() / np.asarray(rows.response_mask).sum())
    return shaped_BT, {**now, "shaped": share}


def _flat(groups: Sequence[Sequence[Any]]) -> list[Any]:
    """The items of all groups, one after the other."""
    return [item for group in groups for item in group]
