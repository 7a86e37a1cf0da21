"""From judged rollouts to the arrays of an on-policy step."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from sdistill.analysis.epistemic import token_mask
from sdistill.config import TrainConfig
from sdistill.contexts import contrastive_contents, sibling_contents
from sdistill.engine.types import Completions
from sdistill.fixes import (
    AntiSelfDistillation,
    ContrastiveHints,
    anti_advantages,
    contrastive_advantages,
    contrastive_evidence,
    gate_is_open,
    pass_rate_weights,
    without_words,
)
from sdistill.losses import (
    Aggregation,
    DistillationConfig,
    GRPOConfig,
    OnPolicyBatch,
    SDPOConfig,
    group_advantages,
    token_weights,
)
from sdistill.model.scoring import TokenScores
from sdistill.rows import Rows, check_same_responses, layout, listed
from sdistill.tasks.problem import Problem
from sdistill.text.chat import Chat, conversation
from sdistill.types import Response

logger = logging.getLogger(__name__)

Score = Callable[[Rows], TokenScores]
"""Scores of the response tokens of rows, on the host, at the temperature of the rollouts."""

Figures = dict[str, float]


@dataclass(frozen=True)
class Judged:
    """The rollouts of a step, as both objectives need them: B of them, G a problem.

    Attributes:
      config: Of the run.
      chat: How prompts are made.
      problems: One a group.
      texts: The responses, groups × samples.
      feedback: What their verifier says of them.
      correct_QG: Verdicts on them.
      prompts: The student's, one a rollout.
      student: Its rows.
      rollouts: The tokens, and what the sampler says of them.
      names: What an error calls a rollout.
    """

    config: TrainConfig
    chat: Chat
    problems: Sequence[Problem]
    texts: list[list[str]]
    feedback: list[list[str]]
    correct_QG: Bool[np.ndarray, "Q G"]
    prompts: list[list[int]]
    student: Rows
    rollouts: Completions
    names: list[str]

    @property
    def mask_BT(self) -> Float[np.ndarray, "B T"]:
        """1 on response tokens."""
        return np.asarray(self.student.response_mask)


class Taught(NamedTuple):
    """The rollouts of a step, each after a prompt with its context.

    Attributes:
      rows: Laid out; where there is no context, fillers.
      shown_B: 1 where there is one.
      cut: How many prompts were longer than `rollouts.max_teacher_prompt`.
    """

    rows: Rows
    shown_B: Float[np.ndarray, " B"]
    cut: int

    def figures(self) -> Figures:
        """What the record of a step says of them."""
        return {"teacher_fraction": float(self.shown_B.mean()), "cut_teacher_prompts": float(self.cut)}


def on_policy_batch(
    config: TrainConfig,
    problems: Sequence[Problem],
    generations: Sequence[Response],
    rollouts: Completions,
    chat: Chat,
    *,
    teacher: Score,
    reference: Score,
    past: Sequence[Mapping[str, float]],
) -> tuple[OnPolicyBatch, Figures]:
    """Lays out judged rollouts for the step, and says how the batch looks.

    What GRPO takes from a teacher or from the initial weights is scored here, once for all that is learned
    from these rollouts, as advantages are: with the weights that sampled them. Only what a token counts in
    the objective is made for each mini-batch by itself, since each has an objective of its own.

    Args:
      config: Of the run.
      problems: One a group.
      generations: Judged responses, the samples of a problem next to each other.
      rollouts: Their tokens.
      chat: How prompts are made.
      teacher: Scores with the teacher's weights.
      reference: Scores with the initial weights.
      past: The records of the steps before this one.

    Raises:
      FloatingPointError: if a score of a response token is not finite; names the rollouts.
    """
    judged = _judged(config, problems, generations, rollouts, chat)
    figures = {
        "train_accuracy": float(judged.correct_QG.mean()),
        "solved_groups": float(judged.correct_QG.any(axis=1).mean()),
        "length": float(rollouts.lengths.mean()),
        "num_epistemic": float(np.mean([g.num_epistemic for g in generations])),
        "finished": float(rollouts.finished.mean()),
    }
    # On the host until `place_batch`: hence `Any`.
    columns: dict[str, Any] = {
        "student": judged.student,
        "rollout_log_probs": rollouts.full_log_probs,
        "markers": token_mask(chat.tokenizer, rollouts.ids, rollouts.lengths),
    }
    if config.sdpo is not None:
        more, shaping = _for_sdpo(config.sdpo, judged)
    else:
        assert config.grpo is not None
        more, shaping = _for_grpo(config.grpo, judged, teacher, reference, past)
    return OnPolicyBatch(**columns, **more), figures | shaping


def row_names(generations: Sequence[Response]) -> list[str]:
    """What an error calls the rollouts."""
    return [f"{g.problem!r} (sample {g.sample})" for g in generations]


def check_sampled(generations: Sequence[Response]) -> None:
    """Raises FloatingPointError, naming the rollouts, if some ended because logits were not numbers."""
    errors = [g for g in generations if g.finish == "error"]
    if errors:
        raise FloatingPointError(f"the student's logits are not finite in {listed(row_names(errors))}")


def _judged(
    config: TrainConfig,
    problems: Sequence[Problem],
    generations: Sequence[Response],
    rollouts: Completions,
    chat: Chat,
) -> Judged:
    settings = config.rollouts
    assert settings is not None
    starts = range(0, len(generations), settings.samples)
    groups = [generations[i : i + settings.samples] for i in starts]
    prompts = [
        chat.prompt(p.messages, thinking=settings.thinking) for p in problems for _ in range(settings.samples)
    ]
    return Judged(
        config,
        chat,
        problems,
        texts=[[g.text for g in group] for group in groups],
        feedback=[[g.feedback for g in group] for group in groups],
        correct_QG=np.asarray([[g.correct for g in group] for group in groups]),
        prompts=prompts,
        student=layout(prompts, rollouts.ids, rollouts.lengths, settings.max_prompt),
        rollouts=rollouts,
        names=row_names(generations),
    )


def _guided(judged: Judged, contents: Sequence[str | None]) -> Taught:
    """The rollouts again, each after the prompt with its context.

    Prompts that are too long are cut on the right, as in the released code: counted, with a warning.
    """
    config, problems = judged.config, judged.problems
    assert config.guide is not None and config.rollouts is not None
    assert config.rollouts.max_teacher_prompt is not None
    samples, thinking = config.rollouts.samples, config.guide.context.thinking
    shown = [
        prompt
        if content is None
        else judged.chat.prompt(conversation(problems[i // samples], content), thinking=thinking)
        for i, (prompt, content) in enumerate(zip(judged.prompts, contents, strict=True))
    ]
    limit = config.rollouts.max_teacher_prompt
    lengths = [len(prompt) for prompt in shown]
    if cut := sum(length > limit for length in lengths):
        logger.warning(
            "%d of %d teacher prompts were cut on the right to rollouts.max_teacher_prompt=%d tokens; the "
            "longest has %d",
            cut,
            len(shown),
            limit,
            max(lengths),
        )
    shown = [prompt[:limit] for prompt in shown]
    rows = layout(shown, judged.rollouts.ids, judged.rollouts.lengths, limit)
    check_same_responses(judged.student, rows)
    return Taught(rows, np.asarray([content is not None for content in contents], np.float32), cut)


def _scored(judged: Judged, score: Score, rows: Rows, counted_B: Any, whose: str) -> TokenScores:
    """Scores of rows, refused if one that counts is not finite."""
    scores = score(rows)
    counted_BT = np.asarray(rows.response_mask) * np.reshape(counted_B, (-1, 1)) > 0
    finite_BT = np.isfinite(scores.log_prob_BT) & np.isfinite(scores.entropy_BT)
    bad = np.flatnonzero((counted_BT & ~finite_BT).any(axis=1))
    if len(bad):
        names = listed([judged.names[row] for row in bad])
        raise FloatingPointError(f"scores under {whose} are not finite in {names}")
    return scores


def _weights(
    config: TrainConfig, mask_BT: Float[np.ndarray, "B T"], mode: Aggregation
) -> Float[np.ndarray, "B T"]:
    """What each token counts, in the objective of its own mini-batch."""
    rows = config.update_rows
    parts = [token_weights(mask_BT[i : i + rows], mode) for i in range(0, len(mask_BT), rows)]
    return np.concatenate(parts)


def _for_sdpo(config: SDPOConfig, judged: Judged) -> tuple[dict[str, Any], Figures]:
    """The columns of SDPO: teacher rows, and what each token counts."""
    turns = sibling_contents(
        config.context, judged.problems, judged.texts, judged.correct_QG.tolist(), judged.feedback
    )
    taught = _guided(judged, _flat(turns))
    taught_BT = judged.mask_BT * taught.shown_B[:, None]
    weights_BT = _sdpo_weights(config.loss, judged, taught_BT)
    columns = {"weights": weights_BT, "teacher": taught.rows, "has_teacher": taught.shown_B}
    return columns, taught.figures()


def _sdpo_weights(
    config: DistillationConfig,
    judged: Judged,
    taught_BT: Float[np.ndarray, "B T"],
) -> Float[np.ndarray, "B T"]:
    """Token weights with what the fixes and the correction for truncated sampling make of them.

    Pass rates are compared over all problems of the step.
    """
    rollouts = judged.rollouts
    if config.masked_words:
        words_BT = token_mask(judged.chat.tokenizer, rollouts.ids, rollouts.lengths, config.masked_words)
        taught_BT = without_words(taught_BT, words_BT)
    weights_BT = _weights(judged.config, taught_BT, config.aggregation)
    if config.pass_rate_weight:
        samples = judged.correct_QG.shape[1]
        weights_BT = weights_BT * np.repeat(pass_rate_weights(judged.correct_QG), samples)[:, None]
    if config.rollout_correction_cap is not None:
        kept_BT = np.exp(rollouts.full_log_probs - rollouts.log_probs)
        weights_BT = weights_BT * np.minimum(kept_BT, config.rollout_correction_cap)
    return weights_BT


def _for_grpo(
    config: GRPOConfig,
    judged: Judged,
    teacher: Score,
    reference: Score,
    past: Sequence[Mapping[str, float]],
) -> tuple[dict[str, Any], Figures]:
    """The columns of GRPO: advantages, what each token counts, and the reference's scores."""
    mask_BT, correct_QG = judged.mask_BT, judged.correct_QG
    columns: dict[str, Any] = {"weights": _weights(judged.config, mask_BT, config.aggregation)}
    figures: Figures = {}
    if config.kl_coefficient is not None:
        scores = _scored(judged, reference, judged.student, 1.0, "the initial weights")
        columns["reference_log_probs"] = np.asarray(scores.log_prob_BT)
    plain_QG = group_advantages(correct_QG.astype(np.float32), config.divide_by_std)
    advantages_BT = plain_QG.reshape(-1, 1) * mask_BT
    texts, verdicts = judged.texts, correct_QG.tolist()
    if hints := config.contrastive_hints:
        turns = _flat(contrastive_contents(hints.context, judged.problems, texts, verdicts, hints.hints))
        hinted = [_guided(judged, contents) for contents in zip(*turns, strict=True)]
        advantages_BT, figures = _contrasted(advantages_BT, hints, judged, hinted, teacher)
    if anti := config.anti_self_distillation:
        turns = _flat(sibling_contents(anti.context, judged.problems, texts, verdicts, judged.feedback))
        advantages_BT, figures = _repelled(advantages_BT, anti, judged, _guided(judged, turns), teacher, past)
    return columns | {"advantages": advantages_BT}, figures


def _contrasted(
    advantages_BT: Float[np.ndarray, "B T"],
    config: ContrastiveHints,
    judged: Judged,
    hinted: Sequence[Taught],
    teacher: Score,
) -> tuple[Float[np.ndarray, "B T"], Figures]:
    """Advantages changed by hints; without a correct and a wrong one a rollout keeps its own."""
    scores = [_scored(judged, teacher, turn.rows, turn.shown_B, "the teacher") for turn in hinted]
    log_probs_HBT = np.stack([np.asarray(found.log_prob_BT) for found in scores])
    shown_HB = np.stack([turn.shown_B for turn in hinted])
    mask_BT = judged.mask_BT
    evidence_BT = contrastive_evidence(log_probs_HBT, shown_HB) * mask_BT
    shaped_BT = contrastive_advantages(advantages_BT, evidence_BT, config).astype(np.float32)
    both_B = shown_HB[0] * shown_HB[1:].max(axis=0)
    return shaped_BT, {
        "teacher_fraction": float(both_B.mean()),
        "cut_teacher_prompts": float(sum(turn.cut for turn in hinted)),
        "shaped": float((shaped_BT != advantages_BT).sum() / mask_BT.sum()),
    }


def _repelled(
    advantages_BT: Float[np.ndarray, "B T"],
    config: AntiSelfDistillation,
    judged: Judged,
    taught: Taught,
    teacher: Score,
    past: Sequence[Mapping[str, float]],
) -> tuple[Float[np.ndarray, "B T"], Figures]:
    """Advantages turned away from the teacher while the gate is open, in rows that have one.

    The gate's state is the teacher's entropy at every step, which the run records anyway: a run that
    continues reads it back, to the bit, and no checkpoint has to hold it.
    """
    scores = _scored(judged, teacher, taught.rows, taught.shown_B, "the teacher")
    mask_BT = judged.mask_BT * taught.shown_B[:, None]
    entropy = float((np.asarray(scores.entropy_BT) * mask_BT).sum() / max(mask_BT.sum(), 1.0))
    now = taught.figures() | {"teacher_entropy": entropy}
    entropies = [step["teacher_entropy"] for step in (*past, now) if step["teacher_fraction"] > 0]
    is_open = len(entropies) > 0 and gate_is_open(entropies, config)
    gap_BT = np.asarray(scores.log_prob_BT) - judged.rollouts.full_log_probs
    shaped_BT = anti_advantages(advantages_BT, gap_BT, config.scale).astype(np.float32)
    shaped_BT = np.where(mask_BT * is_open > 0, shaped_BT, advantages_BT)
    share = float((mask_BT * is_open).sum() / judged.mask_BT.sum())
    return shaped_BT, {**now, "shaped": share}


def _flat(groups: Sequence[Sequence[Any]]) -> list[Any]:
    """The items of all groups, one after the other."""
    return [item for group in groups for item in group]
