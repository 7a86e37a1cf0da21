"""One training run: pretrain, SFT, GRPO or SDPO, as the config says.

    python -m sdistill.train --config configs/signs/sdpo.py --workdir runs/sdpo

What a step does is in `training.learning`. What a run directory holds:

    config.json                    resolved settings; a run is only continued under the same ones, but for
                                   those of how it is laid out (`PLACEMENT`)
    metrics.jsonl                  one record a step
    train-000020.jsonl.gz          the rollouts up to that step, with verdicts
    k3_test-000020.jsonl.gz        the responses of the evaluation at that step
    checkpoints/                   state, teacher and iterator position
    tensorboard/                   the same figures, times, speed and memory, while it runs
    heartbeats/                    where each process is, if there are several
    profile/                       what JAX's profiler recorded of `profile_steps`
    model/                         the final weights, written last: a run that has them is finished
"""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import grain
import jax
from flax import nnx
from jax.sharding import Mesh
from rich.progress import Progress

from sdistill import command
from sdistill.checkpoints import Checkpoints
from sdistill.config import RolloutsConfig, TrainConfig
from sdistill.data.catalogue import open_corpus, open_problems
from sdistill.data.pipelines import example_batches, problem_batches
from sdistill.distributed.heartbeat import Heartbeat
from sdistill.distributed.processes import any_process, check_agreement, is_writer
from sdistill.distributed.rules import TRAINING, place
from sdistill.evaluation import evaluator
from sdistill.learning import learn_from_examples, learn_from_rollouts, prepare
from sdistill.model import weights
from sdistill.model.config import ModelConfig
from sdistill.model.decoder import Decoder, bind
from sdistill.model.folders import copy_text_files, find_model, load_chat, load_model
from sdistill.model.hugging_face import from_hugging_face
from sdistill.monitor import Monitor, Profiler
from sdistill.optimizer import make_optimizer
from sdistill.preemption import Preempted, PreemptionNotice
from sdistill.settings import ConfigError, parse, to_json
from sdistill.state import TrainState, new_state
from sdistill.storage import (
    CONFIG_FILE,
    check_workdir,
    read_records,
    write_atomically,
    write_records,
    write_responses,
)
from sdistill.tasks.problem import Problem
from sdistill.teacher import kept_teacher
from sdistill.text.chat import Chat
from sdistill.text.tokenizer import Tokenizer, check_vocabulary
from sdistill.train_mesh import mesh_of
from sdistill.types import Response

logger = logging.getLogger(__name__)

PLACEMENT = ("mesh", "micro_rows", "chunk", "slots", "evaluation.slots", "profile_steps")
"""Settings of how a run is computed and not of what: it may go on under others, on another slice."""
STEPS_WITHOUT_SUCCESS = 20  # after so many in a row the run is reported as going nowhere
WAY_OUT = (
    "lower optimizer.learning_rate or clip_norm, or look at the weights of init_from. Nothing of this step "
    "was kept: the last checkpoint is from before"
)


def train(config: TrainConfig, workdir: Path, *, progress: Progress | None = None) -> Decoder:
    """Runs, or continues, the training that `config` describes; returns the trained model.

    Raises:
      ConfigError: before any work, if the settings cannot be used or `workdir` belongs to others.
      FloatingPointError: naming step, figures and rows, if the loss or the gradient is not finite.
      Preempted: after everything was kept, if the process has been told to end (SIGTERM).
    """
    check_agreement(to_json(config))
    check_workdir(workdir, to_json(config), may_differ=PLACEMENT)
    if (workdir / "model" / weights.CONFIG_FILE).exists():  # the last file that a run writes
        return weights.load_pretrained(workdir / "model")
    chat = load_chat(config.tokenizer or config.init_from)
    check_thinking(config, chat)
    mesh = mesh_of(config)

    # Data: an iterator whose position is part of every checkpoint.
    problems = training_problems(config.rollouts, config.data_dir) if config.rollouts else ()
    iterator = batches(config, problems, chat.tokenizer)

    # Model and state: resume, else init_from, else scratch.
    model, state = initial_state(config, mesh, chat.tokenizer)
    write_atomically(workdir / CONFIG_FILE, to_json(config).encode())  # all is well: the directory is ours
    notice = PreemptionNotice()
    run = prepare(config, model, mesh, chat, problems, state, on_round=notice.check)
    checkpoints = Checkpoints(workdir / "checkpoints")
    start, state, teacher, metrics = resume(config, workdir, checkpoints, state, iterator)

    # Loop. A notice of preemption ends it between two steps, or while responses are sampled.
    learn = learn_from_examples if config.rollouts is None else learn_from_rollouts
    rollouts: dict[int, list[Response]] = {}  # not yet on disk, by the step after which they are written
    progress = progress or Progress(disable=True)
    bar = progress.add_task(workdir.name, total=config.steps, completed=start)

    def keep(step: int, position: dict[str, Any]) -> None:
        """Writes what there is of the run; if it cannot, all of it stays for the next time."""
        failed = False
        try:
            for last in sorted(rollouts):
                write_responses(workdir / f"train-{min(last, step):06d}.jsonl.gz", rollouts[last])
                del rollouts[last]
            write_records(workdir / "metrics.jsonl", metrics)
        except OSError as error:
            failed = True
            logger.warning("step %d is not kept: %s; make room, the next one is tried as usual", step, error)
        if not any_process(failed):  # without its records a checkpoint could not be continued from
            checkpoints.save(step, (state, teacher), position)

    evaluate = evaluator(config, model, mesh, chat, problems, workdir, on_round=notice.check)
    monitor, profiler = Monitor(workdir, asdict(config), mesh), Profiler(workdir, config.profile_steps)
    step, kept = start, start

    def doing() -> tuple[str, float]:
        return f"step {step + 1}: {run.clock.doing or 'between steps'}", run.clock.seconds

    heartbeat = Heartbeat(workdir, doing)
    with jax.set_mesh(mesh), notice, contextlib.closing(monitor), heartbeat:
        try:
            while step < config.steps:
                position = iterator.get_state()
                notice.check()
                evaluate(state.params, step)
                with profiler.step(step + 1):
                    state, teacher, record, generations = learn(
                        run, state, teacher, next(iterator), step, metrics
                    )
                step += 1
                metrics.append({"step": step, **record})
                if generations:
                    due = -(-step // config.checkpoint_every) * config.checkpoint_every
                    rollouts.setdefault(due, []).extend(generations)
                monitor.show(step, record, run.clock.read())
                warn_if_barren(config, workdir, metrics)
                if step % config.checkpoint_every == 0 or step == config.steps:
                    keep(step, iterator.get_state())
                    kept = step
                progress.update(bar, completed=step, description=describe(workdir, record))
            evaluate(state.params, config.steps)
        except FloatingPointError as error:
            raise FloatingPointError(f"step {step + 1}: {error}; {WAY_OUT}") from error
        except Preempted:
            if step > kept:
                keep(step, position)
            checkpoints.close()
            raise
    checkpoints.close()
    final = bind(model, state.params)
    if is_writer() and (spoken := config.tokenizer or config.init_from):
        copy_text_files(spoken, workdir / "model")
    weights.save_pretrained(final, workdir / "model")
    progress.remove_task(bar)
    return final


def resume(
    config: TrainConfig,
    workdir: Path,
    checkpoints: Checkpoints,
    state: TrainState,
    iterator: grain.DatasetIterator,
) -> tuple[int, TrainState, nnx.State | None, list[dict[str, Any]]]:
    """Steps made, state, teacher and records of the newest checkpoint, and the iterator put where it was.

    Without a checkpoint: those of a run that begins, whose teacher shares the student's weights.

    Raises:
      ConfigError: if the records of these steps are not all there.
    """
    kept = kept_teacher(config.guide.teacher, state.params) if config.guide else None
    restored = checkpoints.restore((state, kept))
    if restored is None:
        return 0, state, None, []
    start, (state, teacher), position = restored
    iterator.set_state(position)
    metrics = [r for r in read_records(workdir / "metrics.jsonl") if r["step"] <= start]
    if len(metrics) < start:
        raise ConfigError(f"{workdir}/metrics.jsonl lacks steps before {start}; remove checkpoints/")
    logger.info("%s: continuing from step %d", workdir, start)
    return start, state, teacher, metrics


def warn_if_barren(config: TrainConfig, workdir: Path, metrics: Sequence[Mapping[str, float]]) -> None:
    """Warns, once, when no rollout has been correct for `STEPS_WITHOUT_SUCCESS` steps."""
    barren = 0
    while barren < len(metrics) and metrics[-1 - barren].get("train_accuracy") == 0:
        barren += 1
    if barren == STEPS_WITHOUT_SUCCESS:
        logger.warning(
            "%s: no rollout was correct for %d steps, so there is nothing to learn from; look at "
            "rollouts.max_response=%s, at optimizer.learning_rate=%s, or start from a better model",
            workdir,
            barren,
            config.rollouts.max_response if config.rollouts else None,
            config.optimizer.learning_rate,
        )


def check_thinking(config: TrainConfig, chat: Chat) -> None:
    """Refuses settings of thinking that the model's prompts cannot express."""
    guide = "sdpo"
    if config.grpo is not None:
        guide = "grpo." + ("contrastive_hints" if config.grpo.contrastive_hints else "anti_self_distillation")
    settings = {
        "rollouts.thinking": config.rollouts,
        f"{guide}.context.thinking": config.guide.context if config.guide else None,
        "evaluation.thinking": config.evaluation,
    }
    for name, where in settings.items():
        if where is not None:
            try:
                chat.render([{"role": "user", "content": ""}], thinking=where.thinking)
            except ConfigError as error:
                raise ConfigError(f"config.{name}: {error}") from error


def initial_state(config: TrainConfig, mesh: Mesh, tokenizer: Tokenizer) -> tuple[ModelConfig, TrainState]:
    """The model's shape and the state before training: all that refers to the weights it begins with."""
    model = initial_model(config, mesh, tokenizer)
    params = nnx.state(model, nnx.Param)
    return model.config, new_state(params, make_optimizer(config.optimizer), mesh)


def initial_model(config: TrainConfig, mesh: Mesh, tokenizer: Tokenizer) -> Decoder:
    """The model before training, laid out on the mesh; refused before loading if the tokenizer is larger."""
    if config.init_from is None:
        assert config.model is not None  # TrainConfig has checked
        check_vocabulary(tokenizer, config.model.vocab_size)
        model = weights.new_model(config.model, config.seed)
        params = jax.tree.map(lambda x: x.astype(config.parameters), nnx.state(model, nnx.Param))
        nnx.update(model, place(params, mesh, TRAINING))
    else:
        folder = find_model(config.init_from)
        check_vocabulary(tokenizer, from_hugging_face(folder / weights.CONFIG_FILE).vocab_size)
        model = load_model(folder, mesh=mesh, dtype=config.parameters)
    return bind(replace(model.config, compute=config.compute), nnx.state(model, nnx.Param))


def batches(config: TrainConfig, problems: Sequence[Problem], tokenizer: Tokenizer) -> grain.DatasetIterator:
    """Batches of examples, or of indices into `problems`."""
    if config.rollouts is not None:
        return problem_batches(problems, batch=config.rollouts.prompts, seed=config.seed)
    settings = config.examples
    assert settings is not None
    if settings.source == "signs_corpus":
        source: Sequence[dict[str, Any]] = open_corpus("train", config.data_dir)
    else:
        source = read_records(Path(settings.source))
    if len(source) == 0:
        raise ConfigError(f"config.examples.source={settings.source!r} holds no examples")
    return example_batches(
        source,
        tokenizer,
        rows=settings.rows,
        row_length=settings.row_length,
        packed=settings.packed,
        seed=config.seed,
    )


def training_problems(config: RolloutsConfig, data_dir: str | None) -> Sequence[Problem]:
    """The |D| problems to train on."""
    problems = open_problems(config.split, data_dir)
    if config.problems is not None and config.problems > len(problems):
        raise ConfigError(
            f"config.rollouts.problems={config.problems}: {config.split} has only {len(problems)}"
        )
    return problems[: config.problems]


def describe(workdir: Path, record: dict[str, float]) -> str:
    """The progress bar's text."""
    shown = "train_accuracy" if "train_accuracy" in record else "loss"
    return f"{workdir.parent.name}/{workdir.name} {shown} {record[shown]:.3f}"


def main(values: dict[str, Any], workdir: Path) -> None:
    """Trains."""
    try:
        with Progress() as progress:
            train(parse(TrainConfig, values), workdir, progress=progress)
    except Preempted:
        print(f"told to end; everything is kept, and the same command continues: {workdir}")
        return
    print(f"trained model: {workdir / 'model'}")


if __name__ == "__main__":
    command.run(main)
