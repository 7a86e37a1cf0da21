"""One training run: pretraining, SFT, GRPO or SDPO, as the config says.

    python -m sdistill.train --config configs/signs/sdpo.py --workdir runs/sdpo

One on-policy step (`on_policy_step`):

    1. sample      the student responds to a batch of problems, G times each     sample.py, engine/
    2. verify      the task judges every response                                tasks/
    3. context     the teacher sees a sibling's success                          contexts.py
    4. batch       student and teacher sequences with token weights              batch.py
    5. loss        divergence from the teacher, or clipped policy gradient       losses.py
    6. update      AdamW, once per mini-batch, from gradients of micro-batches   step.py
    7. teacher     its weights follow: fixed, EMA, live or trust region          step.py

Steps 4 and 5 depend on the objective: the section "The objectives" below is the one place that tells them
apart, and says how to add another. `train` lists what is written, and when. Random streams are functions of
seed, step, problem and sample, so a run killed at any moment resumes to the same bits.
"""

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import cycle, islice, takewhile
from pathlib import Path
from typing import Any, assert_never

import grain
import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from rich.progress import Progress

from sdistill import batch as batches
from sdistill import command, losses, storage
from sdistill import step as steps
from sdistill.attribution import attribute
from sdistill.checkpoints import Checkpoints, Preempted, PreemptionNotice
from sdistill.clock import Clock
from sdistill.config import AnyTrainConfig, GRPOConfig, OnPolicyConfig, RolloutsConfig, SDPOConfig, SFTConfig
from sdistill.data.catalogue import open_corpus, open_problems, task_of
from sdistill.data.pipelines import example_batches, problem_batches
from sdistill.distributed.processes import any_process, check_agreement, is_writer, on_every_host
from sdistill.distributed.rules import TRAINING, place, place_batch
from sdistill.flops import BACKWARD, forward_flops_of, sampling_flops
from sdistill.losses import SDPOBatch, Sequences
from sdistill.mesh_choice import training_mesh
from sdistill.model import folders, weights
from sdistill.model.config import ModelConfig
from sdistill.model.decoder import Decoder, bind
from sdistill.model.hugging_face import from_hugging_face
from sdistill.model.scoring import TokenScores
from sdistill.monitor import Monitor, Profiler
from sdistill.sample import Sampler, queries_for
from sdistill.settings import ConfigError, parse, to_json
from sdistill.tasks.problem import Problem, Task
from sdistill.text.chat import Chat
from sdistill.text.tokenizer import Tokenizer, check_vocabulary
from sdistill.types import Response

logger = logging.getLogger(__name__)

PLACEMENT = (
    "mesh",
    "micro_batch_size",
    "logits_chunk_size",
    "rollouts.slots",
    "evaluation.slots",
    "profile_steps",
)
"""Settings of how a run is computed, not of what: a run may resume under others, on another slice."""
STEPS_WITHOUT_SUCCESS = 20
"""Warn after this many steps without a correct rollout."""
TRAINED = "trained"
"""The name of the run's own training problems as an evaluation data set."""
WAY_OUT = (
    "lower optimizer.learning_rate or clip_norm, or look at the weights of init_from. Nothing of this step "
    "was kept: the last checkpoint is from before"
)


# ── The run ──────────────────────────────────────────────────────────────────────────────────────


def train(config: AnyTrainConfig, workdir: Path, *, progress: Progress | None = None) -> Decoder:
    """Runs, or resumes, the training that `config` describes; returns the trained model.

    Into `workdir` it writes (docs/files.md):

        at the start                   config.json
        before a step, where due       DATASET-STEP.jsonl.gz, one for each evaluation data set
        after every step               tensorboard/
        every `checkpoint_every` steps train-STEP.jsonl.gz, metrics.jsonl, checkpoints/STEP, in this order
        at the end                     model/, whose config.json is the last file: then the run is finished

    Raises:
      ConfigError: before anything is written, if the settings cannot be used or `workdir` holds another run.
      FloatingPointError: naming step, metrics and rows, if the loss or the gradient is not finite.
      OSError: at the end, if metrics or rollouts cannot be written.
      Preempted: after everything was kept, if the process received SIGTERM.
    """
    # Refuse what cannot work, before anything is written.
    check_agreement(to_json(config))
    storage.check_workdir(workdir, to_json(config), may_differ=PLACEMENT)
    mesh = training_mesh(config)
    if (workdir / "model" / folders.CONFIG_FILE).exists():
        finished = weights.load_pretrained(workdir / "model", mesh=mesh, dtype=config.param_dtype)
        return bind(replace(finished.config, compute=config.compute), nnx.state(finished, nnx.Param))
    chat = folders.load_chat(config.tokenizer or config.init_from)
    check_thinking(config, chat)

    # Data: an iterator whose position is part of every checkpoint.
    problems = () if isinstance(config, SFTConfig) else training_problems(config.rollouts, config.data_dir)
    iterator = open_iterator(config, problems, chat.tokenizer)

    # The model, from init_from or drawn, and what all steps share.
    model, state = initial_state(config, mesh, chat.tokenizer)
    notice = PreemptionNotice()
    run: Run
    if isinstance(config, SFTConfig):
        run = Run(config, model, mesh, chat, on_round=notice.check)
    else:
        run = OnPolicyRun(config, model, mesh, chat, problems, state.params, on_round=notice.check)

    # All checks passed: the directory is ours. A checkpoint in it replaces the state.
    storage.write_atomically(workdir / storage.CONFIG_FILE, to_json(config).encode())
    checkpoints = Checkpoints(workdir / "checkpoints")
    step, state, teacher, metrics = resume(config, workdir, checkpoints, state, iterator)
    records = Records(workdir, config.checkpoint_every, checkpoints, step, metrics)
    monitor, profiler = Monitor(workdir, asdict(config), mesh), Profiler(workdir, config.profile_steps)
    progress = progress or Progress(disable=True)
    bar = progress.add_task(workdir.name, total=config.steps, completed=step)

    position = iterator.get_state()
    with jax.set_mesh(mesh), notice, contextlib.closing(monitor), contextlib.closing(checkpoints):
        try:
            while step < config.steps:
                notice.check()
                run.evaluate(state.params, step, workdir)
                with profiler.step(step + 1):
                    responses: list[Response] = []
                    if isinstance(run, OnPolicyRun):
                        state, teacher, record, responses = on_policy_step(
                            run, state, teacher, next(iterator), step, records.metrics
                        )
                    else:
                        state, record = example_step(run, state, next(iterator))
                step, position = step + 1, iterator.get_state()
                records.add(step, record, responses)
                if isinstance(run, OnPolicyRun):
                    warn_if_nothing_is_solved(run.config, workdir, records.metrics)
                monitor.show(step, record, run.clock.read())
                if step % config.checkpoint_every == 0 or step == config.steps:
                    records.save(step, (state, teacher), position)
                shown = "train_accuracy" if "train_accuracy" in record else "loss"
                name = f"{workdir.parent.name}/{workdir.name}"
                progress.update(bar, completed=step, description=f"{name} {shown} {record[shown]:.3f}")
            run.evaluate(state.params, config.steps, workdir)
            records.save(step, (state, teacher), position, final=True)
        except FloatingPointError as error:
            raise FloatingPointError(f"step {step + 1}: {error}; {WAY_OUT}") from error
        except Preempted:
            records.save(step, (state, teacher), position, final=True)
            raise

    # The final weights are written last: a run that has them is finished.
    final = bind(model, state.params)
    if is_writer() and (source := config.tokenizer or config.init_from):
        folders.copy_text_files(source, workdir / "model")
    weights.save_pretrained(final, workdir / "model")
    progress.remove_task(bar)
    return final


class Records:
    """Metrics, rollouts and checkpoints of a run, which are written together.

    Attributes:
      metrics: The metrics of all steps so far.
    """

    def __init__(
        self, workdir: Path, every: int, checkpoints: Checkpoints, saved: int, metrics: list[dict[str, Any]]
    ):
        """Those of a run in `workdir` that has saved `saved` steps, and saves after `every` more."""
        self.metrics = metrics
        self._workdir, self._every, self._checkpoints, self._saved = workdir, every, checkpoints, saved
        self._rollouts: dict[int, list[Response]] = {}  # not yet on disk, by the step that names their file

    def add(self, step: int, record: Mapping[str, float], responses: Sequence[Response]) -> None:
        """Adds what a step reports."""
        self.metrics.append({"step": step, **record})
        if responses:
            last = math.ceil(step / self._every) * self._every
            self._rollouts.setdefault(last, []).extend(responses)

    def save(self, step: int, arrays: Any, position: dict[str, Any], *, final: bool = False) -> None:
        """Writes what is not on disk yet, then a checkpoint. What cannot be written is tried again next time.

        Raises:
          OSError: if this is the last time, and records cannot be written.
        """
        if step == self._saved:
            return
        failed = False
        try:
            for last in sorted(self._rollouts):
                path = storage.responses_file(self._workdir, "train", min(last, step))
                storage.write_responses(path, self._rollouts[last])
                del self._rollouts[last]
            storage.write_records(self._workdir / "metrics.jsonl", self.metrics)
        except OSError as error:
            failed = True
            logger.warning("step %d is not kept: %s; make room, it is tried again", step, error)
        if not any_process(failed):  # a run cannot resume from a checkpoint without its records
            self._checkpoints.save(step, arrays, position)
            self._saved = step
        elif final:
            raise OSError(
                f"{self._workdir}: the records of step {step} cannot be written; make room, and run the same "
                f"command again: it goes on from step {self._saved}"
            )


# ── One step ─────────────────────────────────────────────────────────────────────────────────────


class Run:
    """What all steps of a run share.

    Attributes:
      gradient: The compiled gradient of one micro-batch.
      update: The compiled optimizer update.
      evaluator: Samples evaluations; None if there are none.
      datasets: Problems and verifier of each evaluation data set.
      clock: Times the stages generate, reshard, verify, layout, score, train, attribution.
    """

    def __init__(
        self,
        config: AnyTrainConfig,
        model: ModelConfig,
        mesh: Mesh,
        chat: Chat,
        problems: Sequence[Problem] = (),
        *,
        on_round: Callable[..., None] | None = None,
    ):
        """Opens the data sets and compiles what steps need.

        Args:
          problems: Training problems; none for examples.
          on_round: Called after every round of decoding; may raise.
        """
        self.config, self.model, self.mesh, self.chat = config, model, mesh, chat
        self.problems, self.on_round, self.clock = problems, on_round, Clock()
        self.gradient = compiled_gradient(config, model, mesh)
        self.update = steps.jit_update(model, mesh, config.optimizer)
        self.evaluator = Sampler(model, mesh, chat, config.evaluation) if config.evaluation else None
        self.datasets = evaluation_datasets(config, problems)

    def evaluate(self, params: nnx.State, step: int, workdir: Path) -> None:
        """Writes the evaluations that are due at this step."""
        settings, last = self.config.evaluation, self.config.steps
        if settings is None or self.evaluator is None or (step % settings.every and step != last):
            return
        for name in settings.at_start if step == 0 else settings.datasets:
            path = storage.responses_file(workdir, name, step)
            if not path.exists():
                problems, task = self.datasets[name]
                queries = queries_for(problems, settings.num_samples)
                responses, _ = self.evaluator(
                    params, queries, task, seed=self.config.seed, step=step, on_round=self.on_round
                )
                storage.write_responses(path, responses)


class OnPolicyRun(Run):
    """What all steps of GRPO or SDPO share.

    Attributes:
      sampler: Samples rollouts.
      task: Verifies rollouts.
      reference: A copy of the initial weights, for a KL term; None without one.
    """

    config: GRPOConfig | SDPOConfig

    def __init__(
        self,
        config: GRPOConfig | SDPOConfig,
        model: ModelConfig,
        mesh: Mesh,
        chat: Chat,
        problems: Sequence[Problem],
        initial: nnx.State,
        *,
        on_round: Callable[..., None] | None = None,
    ):
        """See `Run`; `initial` are the weights before the first step."""
        super().__init__(config, model, mesh, chat, problems, on_round=on_round)
        warn_of_positions(config, model)
        self.sampler = Sampler(model, mesh, chat, config.rollouts, self.clock)
        self.task = task_of(config.rollouts.split)
        has_reference = isinstance(config, GRPOConfig) and config.loss.kl_coefficient is not None
        self.reference = steps.copy_params(initial, config.param_dtype) if has_reference else None


def update(
    run: Run, state: steps.TrainState, batch: Any, teacher_params: nnx.State | None = None
) -> tuple[steps.TrainState, steps.UpdateReport]:
    """One update from the gradients of micro-batches. The state is donated."""
    micro = batches.micro_batches(batch, run.config.micro_batch_size or run.config.update_size)
    gradient, reports = steps.accumulate_gradients(
        run.gradient, run.mesh, micro, state.params, teacher_params
    )
    state, metrics = run.update(state, gradient)
    return state, steps.UpdateReport(reports, metrics)


def example_step(
    run: Run, state: steps.TrainState, rows: Mapping[str, Any]
) -> tuple[steps.TrainState, dict[str, float]]:
    """A step of pretraining or SFT: one update. The state is donated."""
    batch = batches.packed_batch(rows)
    run.clock.add_flops("train", (1 + BACKWARD) * forward_flops_of(run.model, batches.example_lengths(batch)))
    with run.clock.measure("train"):
        state, report = update(run, state, batch)
        return state, steps.summarize([report], [f"row {row}" for row in range(len(batch.tokens))])


def on_policy_step(
    run: OnPolicyRun,
    state: steps.TrainState,
    teacher: nnx.State | None,
    indices: Sequence[int],
    step: int,
    past: Sequence[Mapping[str, float]],
) -> tuple[steps.TrainState, nnx.State | None, dict[str, float], list[Response]]:
    """A step of GRPO or SDPO: state, teacher, metrics and rollouts after it.

    Args:
      state: Donated.
      teacher: Its weights (`init_teacher`); None without a teacher, and for one with the student's own.
      indices: Numbers of the step's problems.
      step: Number of the step, from 0.
      past: Metrics of the steps before.
    """
    config = run.config
    # 1. Sample. 2. Verify.
    problems = [run.problems[i] for i in indices]
    queries = queries_for(problems, config.rollouts.num_samples)
    responses, completions = run.sampler(
        state.params, queries, run.task, seed=config.seed, step=step, on_round=run.on_round
    )

    # 3. Contexts. 4. Batch.
    teacher_params = steps.on_device(config.teacher, teacher)
    with run.clock.measure("layout"):
        rollouts = batches.Rollouts.of(config, problems, responses, completions, run.chat)
        batch, metrics = make_batch(run, rollouts, state.params, teacher_params, past)
    add_flops(run, batch)

    # 5. Loss and gradient of each micro-batch. 6. One update per mini-batch.
    reports = []
    with run.clock.measure("train"):
        for mini_batch in batches.mini_batches(batch, config.update_size):
            state, report = update(run, state, mini_batch, teacher_params)
            reports.append(report)
        metrics |= steps.summarize(reports, batches.row_names(responses))

    # 7. The teacher's next weights.
    teacher = steps.update_teacher(config.teacher, teacher, state.params)

    # Where the training signal falls, for analysis.
    if config.attribution:
        with run.clock.measure("attribution"):
            has_teacher = np.asarray(batch.has_teacher) if isinstance(batch, SDPOBatch) else None
            responses, shares = attribute(responses, completions, has_teacher, reports, run.chat.tokenizer)
            metrics |= shares
    return state, teacher, metrics, [replace(response, step=step + 1) for response in responses]


def scorer(run: OnPolicyRun, params: nnx.State | None) -> batches.TokenScorer:
    """Scores responses with these weights, as many at a time as gradients are computed for."""
    config = run.config
    size = config.micro_batch_size or config.update_size
    score_part = functools.partial(
        losses.score_responses,
        model=run.model,
        temperature=config.rollouts.sampling.temperature,
        logits_chunk_size=config.logits_chunk_size,
    )

    def score(sequences: Sequences) -> TokenScores:
        run.clock.add_flops("score", forward_flops_of(run.model, batches.sequence_lengths(sequences)))
        found = []
        with run.clock.measure("score"):
            for start in range(0, len(sequences.tokens), size):
                part = batches.take_rows(sequences, slice(start, start + size))
                found.append(on_every_host(score_part(params, place_batch(part, run.mesh))))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *found)

    return score


def add_flops(run: OnPolicyRun, batch: batches.OnPolicyBatch) -> None:
    """Records the arithmetic of sampling and training on a batch; `scorer` records its own."""
    student = batches.sequence_lengths(batch.student)
    run.clock.add_flops("generate", sampling_flops(run.model, student, run.config.rollouts.num_samples))
    run.clock.add_flops("train", (1 + BACKWARD) * forward_flops_of(run.model, student))
    if isinstance(batch, SDPOBatch):
        lengths = zip(batches.sequence_lengths(batch.teacher), np.asarray(batch.has_teacher), strict=True)
        run.clock.add_flops("train", forward_flops_of(run.model, (row for row, has in lengths if has)))


# ── The objectives ───────────────────────────────────────────────────────────────────────────────

# To add one: its settings and a subclass of OnPolicyConfig in config.py, its loss and the NamedTuple of its
# batch in losses.py, the function that makes this batch in batch.py, and a case in each function here.


def compiled_gradient(config: AnyTrainConfig, model: ModelConfig, mesh: Mesh) -> Callable[..., Any]:
    """The compiled gradient of the run's loss."""
    settings: dict[str, Any] = {"logits_chunk_size": config.logits_chunk_size}
    if isinstance(config, OnPolicyConfig):
        settings["temperature"] = config.rollouts.sampling.temperature
        settings["attribution"] = config.attribution
    loss: steps.Loss
    match config:
        case SFTConfig():
            loss = losses.cross_entropy_loss
        case SDPOConfig():
            loss, settings = losses.sdpo_loss, settings | {"config": config.loss, "mix": config.teacher.mix}
        case GRPOConfig():
            loss, settings = losses.grpo_loss, settings | {"config": config.loss}
        case _:
            assert_never(config)
    return steps.jit_gradient(loss, model, mesh, **settings)


def make_batch(
    run: OnPolicyRun,
    rollouts: batches.Rollouts,
    params: nnx.State,
    teacher_params: nnx.State | None,
    past: Sequence[Mapping[str, float]],
) -> tuple[batches.OnPolicyBatch, dict[str, float]]:
    """The batch of the run's loss, and metrics of it; arguments are those of `on_policy_step`."""
    match config := run.config:
        case SDPOConfig():
            return batches.sdpo_batch(config, rollouts, run.chat)
        case GRPOConfig():
            return batches.grpo_batch(
                config,
                rollouts,
                run.chat,
                score_teacher=scorer(run, params if teacher_params is None else teacher_params),
                score_reference=scorer(run, run.reference),
                past=past,
            )
        case _:
            assert_never(config)


# ── Data ─────────────────────────────────────────────────────────────────────────────────────────


def open_iterator(
    config: AnyTrainConfig, problems: Sequence[Problem], tokenizer: Tokenizer
) -> grain.DatasetIterator:
    """Endless batches of examples, or of indices into `problems`."""
    if not isinstance(config, SFTConfig):
        return problem_batches(problems, batch_size=config.rollouts.num_prompts, seed=config.seed)
    settings = config.examples
    source: Sequence[Mapping[str, Any]]
    if settings.source == "signs_corpus":
        source = open_corpus("train", config.data_dir)
    else:
        source = storage.read_records(Path(settings.source))
    if len(source) == 0:
        raise ConfigError(f"config.examples.source={settings.source!r} holds no examples")
    return example_batches(
        source,
        tokenizer,
        batch_size=settings.batch_size,
        sequence_length=settings.sequence_length,
        packed=settings.packed,
        seed=config.seed,
    )


def training_problems(config: RolloutsConfig, data_dir: str | None) -> Sequence[Problem]:
    """The |D| problems to train on."""
    problems = open_problems(config.split, data_dir)
    if config.num_problems is not None and config.num_problems > len(problems):
        raise ConfigError(
            f"config.rollouts.num_problems={config.num_problems}: {config.split} has only {len(problems)}"
        )
    return problems[: config.num_problems]


def evaluation_datasets(
    config: AnyTrainConfig, problems: Sequence[Problem]
) -> dict[str, tuple[Sequence[Problem], Task]]:
    """Problems and verifier of each evaluation data set; `problems` are those trained on."""
    if (settings := config.evaluation) is None:
        return {}
    datasets: dict[str, tuple[Sequence[Problem], Task]] = {}
    for name in {*settings.datasets, *settings.at_start}:
        if name == TRAINED and isinstance(config, OnPolicyConfig):
            split, chosen = config.rollouts.split, list(islice(cycle(problems), settings.num_problems))
        else:
            split, chosen = name, list(open_problems(name, config.data_dir)[: settings.num_problems])
        datasets[name] = chosen, task_of(split)
    return datasets


# ── Model and state ──────────────────────────────────────────────────────────────────────────────


def initial_state(
    config: AnyTrainConfig, mesh: Mesh, tokenizer: Tokenizer
) -> tuple[ModelConfig, steps.TrainState]:
    """The model's shape and the state before training; nothing else refers to the initial weights.

    Raises:
      ConfigError: before loading, if the tokenizer has more tokens than the model.
    """
    if config.model is not None:
        check_vocabulary(tokenizer, config.model.vocab_size)
        model = weights.new_model(config.model, config.seed)
        drawn = jax.tree.map(lambda x: x.astype(config.param_dtype), nnx.state(model, nnx.Param))
        params = place(drawn, mesh, TRAINING)
    else:
        folder = folders.find_model(str(config.init_from))
        check_vocabulary(tokenizer, from_hugging_face(folder / folders.CONFIG_FILE).vocab_size)
        model = weights.load_model(folder, mesh=mesh, dtype=config.param_dtype)
        params = nnx.state(model, nnx.Param)
    shape = replace(model.config, compute=config.compute)
    return shape, steps.init_state(params, shape, config.optimizer, mesh)


def resume(
    config: AnyTrainConfig,
    workdir: Path,
    checkpoints: Checkpoints,
    state: steps.TrainState,
    iterator: grain.DatasetIterator,
) -> tuple[int, steps.TrainState, nnx.State | None, list[dict[str, Any]]]:
    """Step, state, teacher and metrics of the newest checkpoint; the iterator is moved to its position.

    Without a checkpoint, those of a run that starts.

    Raises:
      ConfigError: if the metrics of the steps made are not all there.
    """
    teacher = steps.teacher_shapes(config.teacher, state.params)
    restored = checkpoints.restore((state, teacher))
    if restored is None:
        return 0, state, steps.init_teacher(config.teacher, state.params), []
    start, (state, teacher), position = restored
    iterator.set_state(position)
    metrics = [r for r in storage.read_records(workdir / "metrics.jsonl") if r["step"] <= start]
    if len(metrics) < start:
        raise ConfigError(f"{workdir}/metrics.jsonl lacks steps before {start}; remove checkpoints/")
    logger.info("%s: continuing from step %d", workdir, start)
    return start, state, teacher, metrics


# ── Checks and messages ──────────────────────────────────────────────────────────────────────────


def check_thinking(config: AnyTrainConfig, chat: Chat) -> None:
    """Refuses settings of thinking that the model's prompts cannot express."""
    settings: dict[str, Any] = {"evaluation": config.evaluation}
    if isinstance(config, OnPolicyConfig):
        settings["rollouts"] = config.rollouts
    if config.teacher is not None:
        settings["teacher.context"] = config.teacher.context
    for name, where in settings.items():
        if where is not None:
            try:
                chat.render([{"role": "user", "content": ""}], thinking=where.thinking)
            except ConfigError as error:
                raise ConfigError(f"config.{name}.thinking: {error}") from error


def warn_of_positions(config: GRPOConfig | SDPOConfig, model: ModelConfig) -> None:
    """Warns if a teacher's sequence may have more tokens than the model has positions.

    The released runs do that (22,528 + 20,480 tokens, where Qwen3-8B has 40,960 positions). The engine
    refuses student sequences that are too long.
    """
    if config.teacher is None:
        return
    response = config.rollouts.max_response_length
    longest, most = config.teacher.max_prompt_length + response, model.max_position_embeddings
    if longest > most:
        logger.warning(
            "teacher sequences may have teacher.max_prompt_length + max_response_length = %d tokens, and the "
            "model was made for max_position_embeddings=%d; max_prompt_length=%d would cut prompts instead",
            longest,
            most,
            most - response,
        )


def warn_if_nothing_is_solved(
    config: OnPolicyConfig, workdir: Path, metrics: Sequence[Mapping[str, float]]
) -> None:
    """Warns, once, when no rollout has been correct for `STEPS_WITHOUT_SUCCESS` steps."""
    barren = list(takewhile(lambda record: record["train_accuracy"] == 0, reversed(metrics)))
    if len(barren) == STEPS_WITHOUT_SUCCESS:
        logger.warning(
            "%s: no rollout was correct for %d steps, so there is nothing to learn from; look at "
            "rollouts.max_response_length=%s, at optimizer.learning_rate=%s, or start from a better model",
            workdir,
            len(barren),
            config.rollouts.max_response_length,
            config.optimizer.learning_rate,
        )


def main(values: dict[str, Any], workdir: Path) -> None:
    """Trains."""
    try:
        with Progress() as progress:
            train(parse(AnyTrainConfig, values), workdir, progress=progress)
    except Preempted:
        print(f"told to end; everything is kept, and the same command continues: {workdir}")
        return
    print(f"trained model: {workdir / 'model'}")


if __name__ == "__main__":
    command.run(main, AnyTrainConfig)
