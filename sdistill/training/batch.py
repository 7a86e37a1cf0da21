"""From judged rollouts to the arrays of an on-policy step."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from sdistill.analysis.epistemic import token_mask
from sdistill.analysis.measure import Generation
from sdistill.distill.contexts import sibling_contents
from sdistill.rollout.engine import Rollouts
from sdistill.tasks.problem import Problem
from sdistill.text.chat import Chat, conversation
from sdistill.training.config import TrainConfig
from sdistill.training.objectives import OnPolicyBatch, group_advantages
from sdistill.training.rows import layout


def on_policy_batch(
    config: TrainConfig,
    problems: Sequence[Problem],
    generations: Sequence[Generation],
    rollouts: Rollouts,
    chat: Chat,
) -> tuple[OnPolicyBatch, dict[str, float]]:
    """Lays out judged rollouts for the step, and says how the batch looks."""
    settings = config.rollouts
    assert settings is not None
    groups = [
        list(generations[i : i + settings.samples]) for i in range(0, len(generations), settings.samples)
    ]
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
    # On the host until `place_batch`: hence the cast.
    columns: Any = (rollouts.full_log_probs, token_mask(chat.tokenizer, rollouts.ids))
    batch = OnPolicyBatch(student, *columns)
    if config.grpo is not None:
        advantages = group_advantages(correct.astype(np.float32), config.grpo.divide_by_std)
        return batch._replace(advantages=jnp.asarray(advantages.ravel())), figures
    assert config.sdpo is not None and settings.max_teacher_prompt is not None
    texts = [[g["response"] for g in group] for group in groups]
    contents = [c for row in sibling_contents(config.sdpo.context, problems, texts, verdicts) for c in row]
    has_teacher = np.asarray([c is not None for c in contents], np.float32)
    figures["teacher_fraction"] = float(has_teacher.mean())
    thinking = config.sdpo.context.thinking
    teacher_prompts = [
        prompt
        if content is None
        else chat.prompt(conversation(problems[i // settings.samples], content), thinking=thinking)
        for i, (prompt, content) in enumerate(zip(prompts, contents, strict=True))
    ]
    teacher = layout(teacher_prompts, rollouts.ids, rollouts.lengths, settings.max_teacher_prompt)
    return batch._replace(teacher=teacher, has_teacher=jnp.asarray(has_teacher)), figures
