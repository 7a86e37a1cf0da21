"""Learning from one batch of the iterator: of examples, or of problems that are answered first.

One on-policy step: (1) the iterator has yielded problems, (2) the engine samples responses, and the task
verifies them, (3) contexts are made from the verdicts, and student and teacher rows are laid out, (4) jitted
steps score, differentiate and update, once for each mini-batch, (5) the teacher's weights follow.
"""

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from sdistill.attribution import attribute
from sdistill.batch import Score, check_sampled, on_policy_batch, row_names
from sdistill.clock import Clock
from sdistill.config import TrainConfig
from sdistill.data.catalogue import task_of
from sdistill.distributed.processes import on_every_host
from sdistill.distributed.rules import place_batch
from sdistill.flops import BACKWARD, forward_flops_of, sampling_flops
from sdistill.losses import OnPolicyBatch, score_rows
from sdistill.model.config import ModelConfig
from sdistill.model.scoring import TokenScores
from sdistill.problem_sampler import OnRound, ProblemSampler, rollout_sampler
from sdistill.rows import Rows, sequences_of
from sdistill.state import TrainState
from sdistill.step import PackedBatch, examples_of
from sdistill.tasks.problem import Problem, Task
from sdistill.teacher import TeacherConfig, first_teacher, next_teacher, on_device
from sdistill.text.chat import Chat
from sdistill.types import Response
from sdistill.updates import (
    Steps,
    compile_steps,
    record_of,
    update_from_examples,
    update_from_rollouts,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What every step of a run needs.

    Attributes:
      config: Of the run.
      model: The model's shape.
      mesh: Where it is.
      chat: How prompts are made.
      problems: To train on; none where examples are learned from.
      task: What judges the responses to them; None where examples are learned from.
      steps: Compiled.
      sampler: Of rollouts; None where examples are learned from.
      reference: The initial weights, for objectives that need them.
      clock: What time and arithmetic of a step go to: generate, reshard, verify, layout, score, train.
    """

    config: TrainConfig
    model: ModelConfig
    mesh: Mesh
    chat: Chat
    problems: Sequence[Problem]
    task: Task | None
    steps: Steps
    sampler: ProblemSampler | None
    reference: nnx.State | None
    clock: Clock


class Learned(NamedTuple):
    """What comes of a step.

    Attributes:
      state: After the last update.
      teacher: What is kept of the teacher; None if nothing is.
      record: The figures of the step.
      generations: Its rollouts.
    """

    state: TrainState
    teacher: nnx.State | None
    record: dict[str, float]
    generations: list[Response]


def prepare(
    config: TrainConfig,
    model: ModelConfig,
    mesh: Mesh,
    chat: Chat,
    problems: Sequence[Problem],
    state: TrainState,
    *,
    on_round: OnRound | None = None,
) -> Run:
    """Everything of a run that its steps do not change.

    Args:
      config: Of the run.
      model: The model's shape.
      mesh: Where it is.
      chat: How prompts are made.
      problems: To train on.
      state: The one before the first step.
      on_round: Called again and again while responses are sampled; may raise.
    """
    _warn_of_positions(config, model)
    clock = Clock()
    with_reference = config.grpo is not None and config.grpo.kl_coefficient is not None
    return Run(
        config,
        model,
        mesh,
        chat,
        problems,
        task=task_of(config.rollouts.split) if config.rollouts else None,
        steps=compile_steps(config, model, mesh, state),
        sampler=rollout_sampler(config, model, mesh, chat, on_round, clock) if config.rollouts else None,
        reference=first_teacher(TeacherConfig("fixed"), state.params) if with_reference else None,
        clock=clock,
    )


def _warn_of_positions(config: TrainConfig, model: ModelConfig) -> None:
    """Says so if a teacher's row may have more tokens than the model has positions.

    The released runs do that (22,528 + 20,480 tokens, where Qwen3-8B has 40,960 positions). Students' rows
    are refused by the engine.
    """
    rollouts = config.rollouts
    if rollouts is None or rollouts.max_teacher_prompt is None:
        return
    longest = rollouts.max_teacher_prompt + rollouts.max_response
    if longest > (most := model.max_position_embeddings):
        logger.warning(
            "teachers' rows may have rollouts.max_teacher_prompt + max_response = %d tokens, and the model "
            "was made for max_position_embeddings=%d; max_teacher_prompt=%d would cut prompts instead",
            longest,
            most,
            most - rollouts.max_response,
        )


def learn_from_examples(
    run: Run,
    state: TrainState,
    teacher: nnx.State | None,
    batch: Mapping[str, Any],
    step: int,
    past: Sequence[Mapping[str, float]],
) -> Learned:
    """A step of pretraining or SFT: one update from a batch of rows."""
    token_weights = batch["weights"] / max(batch["weights"].sum(), 1.0)
    packed = PackedBatch(**{**batch, "weights": token_weights})
    names = [f"row {row}" for row in range(len(token_weights))]
    run.clock.computed("train", (1 + BACKWARD) * forward_flops_of(run.model, examples_of(packed)))
    with run.clock.spent_on("train"):
        state, updates = update_from_examples(run.steps, state, packed)
        record = record_of(updates, names)
    return Learned(state, teacher, record, [])


def learn_from_rollouts(
    run: Run,
    state: TrainState,
    teacher: nnx.State | None,
    batch: Sequence[int],
    step: int,
    past: Sequence[Mapping[str, float]],
) -> Learned:
    """A step of GRPO or SDPO, from problems to the teacher's next weights.

    Args:
      run: Of that objective.
      state: Its buffers are given away.
      teacher: The copy that was kept; None before the first step, and where none is.
      batch: Indices of problems.
      step: Number of the step, from 0.
      past: The records of the steps before.
    """
    config, guide = run.config, run.config.guide
    assert run.sampler is not None and run.task is not None
    problems = [run.problems[i] for i in batch]
    generations, rollouts = run.sampler(state.params, problems, run.task, step)
    check_sampled(generations)
    shown = None  # stands for the student's own weights
    if guide is not None:
        if teacher is None:  # to be copied before the first update takes the buffers
            teacher = first_teacher(guide.teacher, state.params)
        shown = on_device(guide.teacher, teacher)
    score_with = functools.partial(scorer, config=config, model=run.model, mesh=run.mesh, clock=run.clock)
    with run.clock.spent_on("layout"):
        whole, figures = on_policy_batch(
            config,
            problems,
            generations,
            rollouts,
            run.chat,
            teacher=score_with(state.params if shown is None else shown),
            reference=score_with(run.reference),
            past=past,
        )
    note_arithmetic(run, whole)
    with run.clock.spent_on("train"):
        state, updates = update_from_rollouts(run.steps, state, whole, *([shown] if config.sdpo else []))
        record = figures | record_of(updates, row_names(generations))
    if config.attribution:
        with run.clock.spent_on("attribution"):
            taught: Any = whole.has_teacher  # still on the host
            generations, shares = attribute(generations, rollouts, taught, updates, run.chat.tokenizer)
            record |= shares
    if guide is not None:
        teacher = next_teacher(guide.teacher, teacher, state.params)
    generations = [dataclasses.replace(generation, step=step + 1) for generation in generations]
    return Learned(state, teacher, record, generations)


def note_arithmetic(run: Run, batch: OnPolicyBatch) -> None:
    """Tells the clock what sampling and learning from a batch compute; what scores do, `scorer` tells it."""
    assert run.config.rollouts is not None
    student = sequences_of(batch.student)
    run.clock.computed("generate", sampling_flops(run.model, student, run.config.rollouts.samples))
    run.clock.computed("train", (1 + BACKWARD) * forward_flops_of(run.model, student))
    if batch.teacher is not None:
        shown = np.asarray(batch.has_teacher)
        teacher = (rows for rows, counts in zip(sequences_of(batch.teacher), shown, strict=True) if counts)
        run.clock.computed("train", forward_flops_of(run.model, teacher))


def scorer(
    params: nnx.State | None,
    config: TrainConfig,
    model: ModelConfig,
    mesh: Mesh,
    clock: Clock | None = None,
) -> Score:
    """Scores the responses of rows with these weights, so many at a time as gradients are computed for."""
    assert config.rollouts is not None
    size, temperature = config.micro_rows or config.update_rows, config.rollouts.sampling.temperature
    told = clock or Clock()

    def score(rows: Rows) -> TokenScores:
        found = []
        told.computed("score", forward_flops_of(model, sequences_of(rows)))
        with told.spent_on("score"):
            for start in range(0, len(rows.tokens), size):
                part = place_batch(Rows(*(x[start : start + size] for x in rows)), mesh)
                scores = score_rows(params, part, model=model, temperature=temperature, chunk=config.chunk)
                found.append(on_every_host(scores))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *found)

    return score
