"""How a batch is made: from scored rollouts to the arrays of an update, and how it is cut.

    rollouts with verdicts
      → contexts          what the teacher sees of the siblings                    contexts.py
      → sequences         student and teacher prompts, the same responses          `layout`
      → token weights     weight of each token in the objective                    `losses.token_weights`
      → mini-batches      one per update                                           `mini_batches`
      → micro-batches     rows whose gradient is computed at a time                `micro_batches`

Arrays stay on the host until `place_batch` puts a micro-batch on the mesh; annotations name what they become.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from sdistill.analysis.epistemic import token_mask
from sdistill.config import (
    Aggregation,
    AntiSelfDistillation,
    ContrastiveHints,
    GRPOConfig,
    OnPolicyConfig,
    SDPOConfig,
    TeacherConfig,
)
from sdistill.contexts import contrastive_turns, teacher_turns
from sdistill.engine.types import Completions
from sdistill.fixes import (
    anti_advantages,
    contrastive_advantages,
    contrastive_evidence,
    gate_is_open,
    pass_rate_weights,
    without_words,
)
from sdistill.losses import (
    GRPOBatch,
    PackedBatch,
    SDPOBatch,
    Sequences,
    group_advantages,
    response_ids,
    token_weights,
)
from sdistill.model.scoring import TokenScores
from sdistill.tasks.problem import Problem
from sdistill.text.chat import Chat, conversation
from sdistill.types import Response

logger = logging.getLogger(__name__)

QUARTERS = 4
"""A micro-batch keeps as many quarters of its columns as its longest row needs: four shapes at most."""

TokenScorer = Callable[[Sequences], TokenScores]
"""Scores the response tokens of sequences, at the temperature of the rollouts; arrays on the host."""

Metrics = dict[str, float]
OnPolicyBatch = SDPOBatch | GRPOBatch
Rows = TypeVar("Rows", bound=NamedTuple)

MicroBatch = tuple[Int[np.ndarray, " b"], Any]
"""Row numbers in the update's batch, and the rows."""

MAX_NAMED_ROWS = 8
"""Rows that an error names one by one."""

# ── Rollouts and sequences ───────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Rollouts:
    """The rollouts of a step: Q problems × G samples = B rows, those of a problem adjacent.

    Attributes:
      problems: One per group.
      responses: Text and verdict of each row.
      completions: Tokens and the sampler's log-probabilities of each row.
      student: Prompts without context, and responses.
    """

    problems: Sequence[Problem]
    responses: Sequence[Response]
    completions: Completions
    student: Sequences

    @classmethod
    def of(
        cls,
        config: OnPolicyConfig,
        problems: Sequence[Problem],
        responses: Sequence[Response],
        completions: Completions,
        chat: Chat,
    ) -> "Rollouts":
        """Lays out what was sampled in response to the problems.

        Raises:
          FloatingPointError: if a response ended because logits were not finite; names the rollouts.
        """
        if errors := [response for response in responses if response.finish == "error"]:
            raise FloatingPointError(f"the student's logits are not finite in {list_rows(row_names(errors))}")
        settings = config.rollouts
        prompts = [
            chat.prompt(problem.messages, thinking=settings.thinking)
            for problem in problems
            for _ in range(settings.num_samples)
        ]
        student = layout(prompts, completions.ids, completions.lengths, settings.max_prompt_length)
        return cls(problems, responses, completions, student)

    @property
    def groups(self) -> list[Sequence[Response]]:
        """The responses by problem."""
        size = len(self.responses) // len(self.problems)
        return [self.responses[i : i + size] for i in range(0, len(self.responses), size)]

    @property
    def correct_QG(self) -> Bool[np.ndarray, "Q G"]:
        """Verdicts."""
        return np.asarray([[response.correct for response in group] for group in self.groups])

    @property
    def mask_BT(self) -> Float[np.ndarray, "B T"]:
        """1 on response tokens."""
        return np.asarray(self.student.response_mask)

    def metrics(self) -> Metrics:
        """How the rollouts look."""
        return {
            "train_accuracy": float(self.correct_QG.mean()),
            "solved_groups": float(self.correct_QG.any(axis=1).mean()),
            "length": float(self.completions.lengths.mean()),
            "num_epistemic": float(np.mean([response.num_epistemic for response in self.responses])),
            "finished": float(self.completions.finished.mean()),
        }


class TeacherSequences(NamedTuple):
    """The rollouts after prompts with a context.

    Attributes:
      sequences: Laid out; where there is no context, with the plain prompt as filler.
      has_teacher_B: 1 where there is a context.
      metrics: How many rollouts have a teacher, and how many of its prompts were cut.
    """

    sequences: Sequences
    has_teacher_B: Float[np.ndarray, " B"]
    metrics: Metrics


def list_rows(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - MAX_NAMED_ROWS} more" if len(names) > MAX_NAMED_ROWS else ""
    return f"{', '.join(names[:MAX_NAMED_ROWS])}{more}"


def row_names(responses: Sequence[Response]) -> list[str]:
    """What an error calls the rollouts."""
    return [f"{response.problem!r} (sample {response.sample})" for response in responses]


def layout(
    prompts: Sequence[Sequence[int]],
    responses: Int[np.ndarray, "B T"],
    lengths: Int[np.ndarray, " B"],
    max_prompt_length: int,
) -> Sequences:
    """Lays out B prompts and the first `lengths` tokens of their responses.

    Raises:
      ValueError: if a prompt is empty or longer than `max_prompt_length`.
    """
    columns = max_prompt_length + responses.shape[1]
    tokens = np.zeros((len(prompts), columns), np.int32)
    for row, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= max_prompt_length:
            raise ValueError(
                f"prompt {row} has {len(prompt)} tokens; it must have 1 to {max_prompt_length} "
                "(raise max_prompt_length)"
            )
        tokens[row, max_prompt_length - len(prompt) : max_prompt_length] = prompt
    mask_BT = np.arange(responses.shape[1]) < lengths[:, None]
    tokens[:, max_prompt_length:] = np.where(mask_BT, responses, 0)
    prompt_lengths_B = np.asarray([len(prompt) for prompt in prompts])
    positions = np.arange(columns) - (max_prompt_length - prompt_lengths_B)[:, None]
    inside = (positions >= 0) & (positions < (prompt_lengths_B + lengths)[:, None])
    arrays: Any = (
        tokens,
        np.where(inside, positions, 0).astype(np.int32),
        inside.astype(np.int32),
        mask_BT.astype(np.float32),
    )
    return Sequences(*arrays)


def teacher_sequences(
    rollouts: Rollouts, contents: Sequence[str | None], teacher: TeacherConfig, chat: Chat
) -> TeacherSequences:
    """The rollouts after the teacher's prompts, whose user turns are `contents`; None for no context.

    Prompts that are too long are cut on the right, as in the released code: counted, with a warning.
    """
    problems = [p for p, group in zip(rollouts.problems, rollouts.groups, strict=True) for _ in group]
    prompts = [
        chat.prompt(conversation(problem, content), thinking=teacher.context.thinking)
        for problem, content in zip(problems, contents, strict=True)
    ]
    limit, longest = teacher.max_prompt_length, max(map(len, prompts))
    if num_cut := sum(len(prompt) > limit for prompt in prompts):
        logger.warning(
            "%d of %d teacher prompts were cut on the right to teacher.max_prompt_length=%d tokens; the "
            "longest has %d",
            num_cut,
            len(prompts),
            limit,
            longest,
        )
    completions = rollouts.completions
    sequences = layout([prompt[:limit] for prompt in prompts], completions.ids, completions.lengths, limit)
    check_same_responses(rollouts.student, sequences)
    has_teacher_B = np.asarray([content is not None for content in contents], np.float32)
    metrics = {"teacher_fraction": float(has_teacher_B.mean()), "cut_teacher_prompts": float(num_cut)}
    return TeacherSequences(sequences, has_teacher_B, metrics)


def check_same_responses(student: Sequences, teacher: Sequences) -> None:
    """Refuses sequences with other responses than the student's: the teacher would score other tokens.

    Raises:
      ValueError: naming the first row and response position that differ.
    """
    ours, theirs = (
        np.where(np.asarray(sequences.response_mask) > 0, response_ids(sequences), -1)
        for sequences in (student, teacher)
    )
    if ours.shape != theirs.shape:
        raise ValueError(f"responses of shape {theirs.shape} beside those of shape {ours.shape}")
    if len(differing := np.argwhere(ours != theirs)):
        row, t = differing[0]
        tokens = [None if ids[row, t] < 0 else int(ids[row, t]) for ids in (ours, theirs)]
        raise ValueError(
            f"row {row}: the student's and the teacher's response differ at position {t}: token {tokens[0]} "
            f"and token {tokens[1]}; lay both rows out from the same rollout"
        )


# ── SDPO ─────────────────────────────────────────────────────────────────────────────────────────


def sdpo_batch(config: SDPOConfig, rollouts: Rollouts, chat: Chat) -> tuple[SDPOBatch, Metrics]:
    """The rollouts with the teacher's view of them, and metrics of both."""
    loss, completions = config.loss, rollouts.completions
    contents = teacher_turns(config.teacher.context, rollouts.problems, rollouts.groups)
    teacher = teacher_sequences(rollouts, contents, config.teacher, chat)
    word_mask = functools.partial(token_mask, chat.tokenizer, completions.ids, completions.lengths)

    # Weight of each token, with fixes and the correction for truncated sampling.
    mask_BT = rollouts.mask_BT * teacher.has_teacher_B[:, None]
    if loss.masked_words:
        mask_BT = without_words(mask_BT, word_mask(loss.masked_words))
    weights_BT = _update_weights(config, mask_BT, loss.aggregation)
    if loss.pass_rate_weight:  # relative to all problems of the step
        rates_Q = pass_rate_weights(rollouts.correct_QG)
        weights_BT = weights_BT * np.repeat(rates_Q, rollouts.correct_QG.shape[1])[:, None]
    if loss.rollout_correction_cap is not None:
        kept_BT = np.exp(completions.full_log_probs - completions.log_probs)
        weights_BT = weights_BT * np.minimum(kept_BT, loss.rollout_correction_cap)

    batch: Any = SDPOBatch(  # arrays on the host
        student=rollouts.student,
        teacher=teacher.sequences,
        has_teacher=teacher.has_teacher_B,  # type: ignore[arg-type]
        token_weights=weights_BT,  # type: ignore[arg-type]
        rollout_log_probs=completions.full_log_probs,  # type: ignore[arg-type]
        epistemic_mask=word_mask(),  # type: ignore[arg-type]
    )
    return batch, rollouts.metrics() | teacher.metrics


def _update_weights(
    config: OnPolicyConfig, mask_BT: Float[np.ndarray, "B T"], mode: Aggregation
) -> Float[np.ndarray, "B T"]:
    """Token weights: each update has an objective of its own, over its own rows."""
    size = config.update_size
    parts = [token_weights(mask_BT[i : i + size], mode) for i in range(0, len(mask_BT), size)]
    return np.concatenate(parts)


# ── GRPO ─────────────────────────────────────────────────────────────────────────────────────────


def grpo_batch(
    config: GRPOConfig,
    rollouts: Rollouts,
    chat: Chat,
    *,
    score_teacher: TokenScorer,
    score_reference: TokenScorer,
    past: Sequence[Mapping[str, float]],
) -> tuple[GRPOBatch, Metrics]:
    """The rollouts with their advantages, and metrics.

    Scores under the teacher or the initial weights are computed here, once for all updates of the step.
    `past` are the metrics of the steps before.

    Raises:
      FloatingPointError: if a score of a response token is not finite; names the rollouts.
    """
    loss, mask_BT = config.loss, rollouts.mask_BT
    reference_log_probs = None
    if loss.kl_coefficient is not None:
        scores = _checked_scores(rollouts, score_reference, rollouts.student, 1.0, "the initial weights")
        reference_log_probs = np.asarray(scores.log_prob_BT)
    advantages_QG = group_advantages(rollouts.correct_QG.astype(np.float32), loss.divide_by_std)
    advantages_BT = advantages_QG.reshape(-1, 1) * mask_BT
    metrics: Metrics = {}
    if hints := loss.contrastive_hints:
        advantages_BT, metrics = _contrastive(advantages_BT, hints, rollouts, chat, score_teacher)
    elif anti := loss.anti_self_distillation:
        advantages_BT, metrics = _anti_distilled(advantages_BT, anti, rollouts, chat, score_teacher, past)
    batch: Any = GRPOBatch(
        student=rollouts.student,
        advantages=advantages_BT,
        token_weights=_update_weights(config, mask_BT, loss.aggregation),  # type: ignore[arg-type]
        rollout_log_probs=rollouts.completions.full_log_probs,  # type: ignore[arg-type]
        reference_log_probs=reference_log_probs,  # type: ignore[arg-type]
    )
    return batch, rollouts.metrics() | metrics


def _contrastive(
    advantages_BT: Float[np.ndarray, "B T"],
    config: ContrastiveHints,
    rollouts: Rollouts,
    chat: Chat,
    score: TokenScorer,
) -> tuple[Float[np.ndarray, "B T"], Metrics]:
    """Advantages changed by hints. A rollout without a correct and a wrong hint keeps its own."""
    contents = contrastive_turns(config.teacher.context, rollouts.problems, rollouts.groups, config.hints)
    hinted = [
        teacher_sequences(rollouts, column, config.teacher, chat) for column in zip(*contents, strict=True)
    ]
    scores = [
        _checked_scores(rollouts, score, each.sequences, each.has_teacher_B, "the teacher") for each in hinted
    ]
    log_probs_HBT = np.stack([np.asarray(each.log_prob_BT) for each in scores])
    has_hint_HB = np.stack([each.has_teacher_B for each in hinted])
    mask_BT = rollouts.mask_BT
    evidence_BT = contrastive_evidence(log_probs_HBT, has_hint_HB) * mask_BT
    shaped_BT = contrastive_advantages(advantages_BT, evidence_BT, config).astype(np.float32)
    has_both_B = has_hint_HB[0] * has_hint_HB[1:].max(axis=0)
    return shaped_BT, {
        "teacher_fraction": float(has_both_B.mean()),
        "cut_teacher_prompts": sum(each.metrics["cut_teacher_prompts"] for each in hinted),
        "shaped": float((shaped_BT != advantages_BT).sum() / mask_BT.sum()),
    }


def _anti_distilled(
    advantages_BT: Float[np.ndarray, "B T"],
    config: AntiSelfDistillation,
    rollouts: Rollouts,
    chat: Chat,
    score: TokenScorer,
    past: Sequence[Mapping[str, float]],
) -> tuple[Float[np.ndarray, "B T"], Metrics]:
    """Advantages moved away from the teacher while the gate is open, in rows that have one.

    The gate's state is the teacher's entropy at every step, which is in the metrics. So a resumed run reads
    it back exactly, and no checkpoint has to hold it.
    """
    contents = teacher_turns(config.teacher.context, rollouts.problems, rollouts.groups)
    teacher = teacher_sequences(rollouts, contents, config.teacher, chat)
    scores = _checked_scores(rollouts, score, teacher.sequences, teacher.has_teacher_B, "the teacher")
    mask_BT = rollouts.mask_BT * teacher.has_teacher_B[:, None]
    entropy = float((np.asarray(scores.entropy_BT) * mask_BT).sum() / max(mask_BT.sum(), 1.0))
    now = teacher.metrics | {"teacher_entropy": entropy}
    entropies = [step["teacher_entropy"] for step in (*past, now) if step["teacher_fraction"] > 0]
    is_open = len(entropies) > 0 and gate_is_open(entropies, config)
    gap_BT = np.asarray(scores.log_prob_BT) - rollouts.completions.full_log_probs
    shaped_BT = anti_advantages(advantages_BT, gap_BT, config.scale).astype(np.float32)
    shaped_BT = np.where(mask_BT * is_open > 0, shaped_BT, advantages_BT)
    return shaped_BT, {**now, "shaped": float((mask_BT * is_open).sum() / rollouts.mask_BT.sum())}


def _checked_scores(
    rollouts: Rollouts, score: TokenScorer, sequences: Sequences, counted_B: Any, whose: str
) -> TokenScores:
    """Scores of sequences, refused if one that counts is not finite."""
    scores = score(sequences)
    counted_BT = np.asarray(sequences.response_mask) * np.reshape(counted_B, (-1, 1)) > 0
    finite_BT = np.isfinite(scores.log_prob_BT) & np.isfinite(scores.entropy_BT)
    bad = np.flatnonzero((counted_BT & ~finite_BT).any(axis=1))
    if len(bad):
        names = list_rows(row_names([rollouts.responses[int(row)] for row in bad]))
        raise FloatingPointError(f"scores under {whose} are not finite in {names}")
    return scores


# ── Mini-batches and micro-batches ───────────────────────────────────────────────────────────────


def take_rows(batch: Rows, rows: slice | Int[np.ndarray, " b"]) -> Rows:
    """A batch of these rows."""
    return jax.tree.map(lambda column: column[rows], batch)


def mini_batches(batch: OnPolicyBatch, size: int) -> Iterator[OnPolicyBatch]:
    """The batch in parts of `size` rows, one per update, in its order, which is shuffled already."""
    for start in range(0, len(batch.token_weights), size):
        yield take_rows(batch, slice(start, start + size))


def micro_batches(batch: OnPolicyBatch | PackedBatch, size: int) -> Iterator[MicroBatch]:
    """The rows of an update in parts of `size`, with their numbers: rollouts by length, the longest first.

    The order of rows does not matter to the objective, since each token carries its weight.

    Args:
      batch: On the host; its number of rows is a multiple of `size`.
    """
    quarters_B = _quarters(batch)
    order_B = np.argsort(-quarters_B, kind="stable")
    for start in range(0, len(order_B), size):
        rows = order_B[start : start + size]
        yield rows, _trim(take_rows(batch, rows), int(quarters_B[rows[0]]))


def _quarters(batch: OnPolicyBatch | PackedBatch) -> Int[np.ndarray, " B"]:
    """Quarters of the columns that a row needs: of responses or of either prompt, whichever needs most."""
    if isinstance(batch, PackedBatch):  # its rows are full
        return np.full(len(batch.tokens), QUARTERS)
    masks, length = [batch.student.response_mask], batch.token_weights.shape[1]
    masks += [x.segment_ids[:, :-length] for x in batch if isinstance(x, Sequences)]
    share_B = np.max([np.asarray(mask).mean(axis=1) for mask in masks], axis=0)
    return np.maximum(1, np.ceil(share_B * QUARTERS)).astype(int)


def _trim(batch: OnPolicyBatch | PackedBatch, quarters: int) -> OnPolicyBatch | PackedBatch:
    """Drops columns beyond so many quarters: the ends of responses, the beginnings of prompts.

    Arrays have P + T columns (sequences), T (figures of response tokens) or none (figures of rows).
    """
    length = batch.token_weights.shape[1]

    def trim(column: np.ndarray) -> np.ndarray:
        if column.ndim == 1:
            return column
        prompt = column.shape[1] - length
        kept_prompt, kept = (-(-columns * quarters // QUARTERS) for columns in (prompt, length))
        return column[:, prompt - kept_prompt : prompt + kept]

    return jax.tree.map(trim, batch)


def packed_batch(rows: Mapping[str, Any]) -> PackedBatch:
    """A batch of `data.pipelines.example_batches` whose token weights sum to 1."""
    weights = rows["weights"] / max(rows["weights"].sum(), 1.0)
    return PackedBatch(token_weights=weights, **{n: x for n, x in rows.items() if n != "weights"})


def sequence_lengths(batch: Sequences) -> list[tuple[int, int]]:
    """Tokens of each sequence, prompt and response together, and of its response."""
    columns = batch.segment_ids, batch.response_mask
    lengths, responses = (np.asarray(x).sum(axis=1).astype(int).tolist() for x in columns)
    return list(zip(lengths, responses, strict=True))


def example_lengths(batch: PackedBatch) -> list[tuple[int, int]]:
    """Tokens of each example in the rows, and how many of them have a weight."""
    found: list[tuple[int, int]] = []
    for segment_ids, weights in zip(
        np.asarray(batch.segment_ids), np.asarray(batch.token_weights), strict=True
    ):
        lengths = np.bincount(segment_ids)
        counted = np.bincount(segment_ids[weights > 0], minlength=len(lengths))
        found += zip(lengths[1:].tolist(), counted[1:].tolist(), strict=True)  # segment 0 is padding
    return found
