"""One training run: pretrain, SFT, GRPO or SDPO, as the config says.

    python -m sdistill.train --config configs/signs/sdpo.py --workdir runs/sdpo

One on-policy step: (1) a Grain iterator yields problems, (2) the engine samples responses, (3) the task
verifies them, (4) contexts are made from the verdicts, (5) student and teacher rows are laid out,
(6) one jitted step scores, differentiates and updates, (7) the teacher's weights follow.

What a run directory holds:

    config.json                    resolved settings; a run is only continued under the same ones
    metrics.jsonl                  one record a step
    train-000020.jsonl.gz          the rollouts up to that step, with verdicts
    k3_test-000020.jsonl.gz        the responses of the evaluation at that step
    checkpoints/                   state, teacher and iterator position
    model/                         the final weights, written last: a run that has them is finished
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from rich.progress import Progress

from sdistill import command
from sdistill.analysis.measure import Generation
from sdistill.config import ConfigError, parse, to_json
from sdistill.datasets.pipelines import example_batches, open_corpus, open_problems, problem_batches
from sdistill.distill.teacher import TeacherConfig, first_teacher, kept_teacher, next_teacher, on_device
from sdistill.evaluate import sample
from sdistill.models.config import ModelConfig
from sdistill.models.decoder import Decoder, bind
from sdistill.models.folders import find_model, load_model
from sdistill.models.hugging_face import from_hugging_face
from sdistill.models.scoring import TokenScores
from sdistill.models.weights import CONFIG_FILE as MODEL_CONFIG_FILE
from sdistill.models.weights import load_pretrained, new_model, save_pretrained
from sdistill.parallel.mesh import make_mesh
from sdistill.parallel.rules import place_batch
from sdistill.rollout.engine import Engine
from sdistill.storage import read_records, write_atomically, write_records
from sdistill.tasks.problem import Problem
from sdistill.tasks.signs.puzzle import SignsTask
from sdistill.text.chat import Chat, SignsChat
from sdistill.text.tokenizer import (
    SIGNS_TOKENIZER,
    SentencePieceTokenizer,
    Tokenizer,
    check_vocabulary,
)
from sdistill.training.batch import Score, on_policy_batch
from sdistill.training.checkpoints import Checkpoints
from sdistill.training.config import RolloutsConfig, TrainConfig
from sdistill.training.evaluation import evaluator
from sdistill.training.micro import on_policy_micro_batches, packed_micro_batches
from sdistill.training.objectives import Metrics, score_rows
from sdistill.training.optimizer import make_optimizer
from sdistill.training.rows import Rows
from sdistill.training.state import TrainState, new_state
from sdistill.training.steps import (
    PackedBatch,
    compile_gradient,
    compile_update,
    cross_entropy_gradient,
    grpo_gradient,
    sdpo_gradient,
)

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
STEPS_WITHOUT_SUCCESS = 20  # after so many in a row the run is reported as going nowhere


def train(config: TrainConfig, workdir: Path, *, progress: Progress | None = None) -> Decoder:
    """Runs, or continues, the training that `config` describes; returns the trained model.

    Raises:
      ConfigError: before any work, if the settings cannot be used or `workdir` belongs to others.
      FloatingPointError: naming the step, if the loss or the gradient is not finite.
    """
    check_workdir(workdir, to_json(config))
    if (workdir / "model" / MODEL_CONFIG_FILE).exists():  # the last file that a run writes
        return load_pretrained(workdir / "model")
    chat = SignsChat(SentencePieceTokenizer(SIGNS_TOKENIZER))
    check_thinking(config, chat)
    mesh = make_mesh(config.mesh)

    # Data: an iterator whose position is part of every checkpoint.
    problems: Sequence[Problem] = ()
    if config.rollouts is not None:
        problems = training_problems(config.rollouts, config.data_dir)
        iterator = problem_batches(problems, batch=config.rollouts.prompts, seed=config.seed)
    else:
        iterator = example_iterator(config, chat.tokenizer)

    # Model and state: resume, else init_from, else scratch.
    model = initial_model(config, mesh, chat.tokenizer)
    write_atomically(workdir / CONFIG_FILE, to_json(config).encode())  # all is well: the directory is ours
    params = nnx.state(model, nnx.Param)
    state = new_state(params, make_optimizer(config.optimizer), mesh)
    teacher = None  # shares the student's weights until the first update
    kept = kept_teacher(config.guide.teacher, params) if config.guide else None
    with_reference = config.grpo is not None and config.grpo.kl_coefficient is not None
    reference = first_teacher(TeacherConfig("fixed"), params) if with_reference else None
    checkpoints = Checkpoints(workdir / "checkpoints")
    metrics: list[dict[str, Any]] = []
    if restored := checkpoints.restore((state, kept)):
        start, (state, teacher), position = restored
        iterator.set_state(position)
        metrics = [r for r in read_records(workdir / "metrics.jsonl") if r["step"] <= start]
        if len(metrics) < start:
            raise ConfigError(f"{workdir}/metrics.jsonl lacks steps before {start}; remove checkpoints/")
        logger.info("%s: continuing from step %d", workdir, start)

    # Loop.
    learn = learner(config, state, model.config, mesh, chat, problems, reference)
    evaluate = evaluator(config, model.config, mesh, chat, problems, workdir)
    rollouts: list[Generation] = []
    barren = 0
    progress = progress or Progress(disable=True)
    bar = progress.add_task(workdir.name, total=config.steps, completed=int(state.step))
    for step in range(int(state.step), config.steps):
        evaluate(state.params, step)
        state, teacher, record, generations = learn(state, teacher, next(iterator), step, metrics)
        check_finite(record, step)
        metrics.append({"step": step + 1, **record})
        rollouts += generations
        barren = barren + 1 if record.get("train_accuracy") == 0 else 0
        if barren == STEPS_WITHOUT_SUCCESS:
            logger.warning(
                "%s: no rollout was correct for %d steps, so there is nothing to learn from; look at "
                "rollouts.max_response=%s, at optimizer.learning_rate=%s, or start from a better model",
                workdir,
                barren,
                config.rollouts.max_response if config.rollouts else None,
                config.optimizer.learning_rate,
            )
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            if rollouts:
                write_records(workdir / f"train-{step + 1:06d}.jsonl.gz", rollouts)
                rollouts = []
            write_records(workdir / "metrics.jsonl", metrics)
            checkpoints.save(step + 1, (state, teacher), iterator.get_state())
        progress.update(bar, completed=step + 1, description=describe(workdir, record))
    evaluate(state.params, config.steps)
    checkpoints.close()
    final = bind(model.config, state.params)
    save_pretrained(final, workdir / "model")
    progress.remove_task(bar)
    return final


def check_workdir(workdir: Path, settings: str) -> None:
    """Accepts a directory that is new or holds a run with these settings.

    Raises:
      ConfigError: if the directory holds a run with other settings; names the first difference.
    """
    path = workdir / CONFIG_FILE
    found = path.read_text() if path.exists() else settings
    if found != settings:
        ours, theirs = settings.splitlines(), found.splitlines()
        differing = [(a.strip(), b.strip()) for a, b in zip(theirs, ours, strict=False) if a != b]
        there, here = differing[0] if differing else ("", "")
        raise ConfigError(
            f"{workdir} holds a run with other settings ({there!r} there, {here!r} here); "
            "give another --workdir, or the settings in its config.json"
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


def initial_model(config: TrainConfig, mesh: Mesh, tokenizer: Tokenizer) -> Decoder:
    """The model before training, laid out on the mesh; refused before loading if the tokenizer is larger."""
    if config.init_from is None:
        assert config.model is not None  # TrainConfig has checked
        check_vocabulary(tokenizer, config.model.vocab_size)
        model = new_model(config.model, config.seed)
        params = nnx.state(model, nnx.Param)
        nnx.update(model, jax.tree.map(lambda x: x.astype(config.parameters), params))
    else:
        folder = find_model(config.init_from)
        check_vocabulary(tokenizer, from_hugging_face(folder / MODEL_CONFIG_FILE).vocab_size)
        model = load_model(folder, mesh=mesh, dtype=config.parameters)
    return bind(replace(model.config, compute=config.compute), nnx.state(model, nnx.Param))


def example_iterator(config: TrainConfig, tokenizer: Tokenizer) -> grain.DatasetIterator:
    """Batches for pretraining or SFT."""
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


Learner = Callable[
    [TrainState, nnx.State | None, Any, int, Sequence[dict[str, Any]]],
    tuple[TrainState, nnx.State | None, dict[str, float], list[Generation]],
]


def learner(
    config: TrainConfig,
    state: TrainState,
    model: ModelConfig,
    mesh: Mesh,
    chat: Chat,
    problems: Sequence[Problem],
    reference: nnx.State | None,
) -> Learner:
    """The objective's way from (state, teacher, batch of the iterator, step, past) to the next state.

    `past` holds the records of the steps before; `reference` the initial weights, where they are needed.
    """
    common = {"model": model, "chunk": config.chunk}
    apply = compile_update(state, optimizer=config.optimizer)
    if config.rollouts is None:
        assert config.examples is not None
        examples_gradient = compile_gradient(cross_entropy_gradient, state, **common)
        example_rows = config.micro_rows or config.examples.rows

        def learn_examples(
            state: TrainState,
            teacher: nnx.State | None,
            batch: Any,
            step: int,
            past: Sequence[dict[str, Any]],
        ) -> tuple[TrainState, nnx.State | None, dict[str, float], list[Generation]]:
            weights = batch["weights"] / max(batch["weights"].sum(), 1.0)
            parts = packed_micro_batches(PackedBatch(**{**batch, "weights": weights}), example_rows)
            gradient, metrics = add_up(examples_gradient, mesh, parts, state.params)
            state, more = apply(state, gradient)
            return state, teacher, to_floats([*metrics, more]), []

        return learn_examples

    settings = config.rollouts
    temperature = settings.sampling.temperature
    engine = Engine(
        model,
        mesh=mesh,
        eos_id=chat.tokenizer.eos_id,
        slots=config.slots,
        max_prompt=settings.max_prompt,
        max_response=settings.max_response,
    )
    common["temperature"] = temperature
    if config.sdpo is not None:
        mix = config.sdpo.teacher.mix
        gradient_of = compile_gradient(sdpo_gradient, state, config=config.sdpo.loss, mix=mix, **common)
    else:
        gradient_of = compile_gradient(grpo_gradient, state, config=config.grpo, **common)

    def scorer(params: nnx.State | None) -> Score:
        def score(rows: Rows) -> TokenScores:
            size, found = config.micro_rows or len(rows.tokens), []
            for start in range(0, len(rows.tokens), size):
                part = place_batch(Rows(*(x[start : start + size] for x in rows)), mesh)
                scores = score_rows(params, part, model=model, temperature=temperature, chunk=config.chunk)
                found.append(jax.device_get(scores))
            return jax.tree.map(lambda *parts: np.concatenate(parts), *found)

        return score

    def learn_rollouts(
        state: TrainState,
        teacher: nnx.State | None,
        batch: Any,
        step: int,
        past: Sequence[dict[str, Any]],
    ) -> tuple[TrainState, nnx.State | None, dict[str, float], list[Generation]]:
        posed = [problems[i] for i in batch]
        generations, rollouts = sample(
            engine,
            state.params,
            posed,
            [problem.messages[-1]["content"] for problem in posed],
            chat=chat,
            task=SignsTask(),
            samples=settings.samples,
            seed=config.seed,
            step=step,
            sampling=settings.sampling,
            thinking=settings.thinking,
        )
        shown = on_device(config.guide.teacher, teacher) if config.guide else None
        if config.guide is not None and config.guide.teacher.weights != "live" and shown is None:
            shown = state.params  # nothing has moved yet
        whole, figures = on_policy_batch(
            config,
            posed,
            generations,
            rollouts,
            chat,
            teacher=scorer(state.params if shown is None else shown),
            reference=scorer(reference),
            past=past,
        )
        parts = on_policy_micro_batches(whole, config.micro_rows or len(generations))
        weights = (state.params, shown) if config.sdpo is not None else (state.params,)
        gradient, metrics = add_up(gradient_of, mesh, parts, *weights)
        if config.guide is not None and teacher is None:
            teacher = first_teacher(config.guide.teacher, state.params)  # the update takes the buffers
        state, more = apply(state, gradient)
        if config.guide is not None:
            teacher = next_teacher(config.guide.teacher, teacher, state.params)
        generations = [{"step": step + 1, **generation} for generation in generations]
        return state, teacher, figures | to_floats([*metrics, more]), generations

    return learn_rollouts


def add_up(
    gradient_of: Callable[..., tuple[nnx.State, Metrics]], mesh: Mesh, parts: Iterable[Any], *weights: Any
) -> tuple[nnx.State, list[Metrics]]:
    """The gradient of a batch from those of its parts, and their metrics."""
    gradient, metrics = None, []
    for part in parts:
        gradient, figures = gradient_of(*weights, place_batch(part, mesh), so_far=gradient)
        metrics.append(figures)
    assert gradient is not None  # a batch has rows
    return gradient, metrics


def to_floats(metrics: Sequence[Metrics]) -> dict[str, float]:
    """Sums over counts of all parts; 0 where nothing was counted."""
    totals: dict[str, tuple[float, float]] = {}
    for part in jax.device_get(metrics):
        for name, (total, count) in part.items():
            before = totals.get(name, (0.0, 0.0))
            totals[name] = (before[0] + float(total), before[1] + float(count))
    return {name: total / max(count, 1.0) for name, (total, count) in totals.items()}


def check_finite(record: dict[str, float], step: int) -> None:
    """Raises FloatingPointError naming the metric and the step if a figure is not finite."""
    for name, value in record.items():
        if not np.isfinite(value):
            raise FloatingPointError(
                f"{name}={value} at step {step + 1}; lower optimizer.learning_rate or clip_norm. "
                "The last checkpoint is from before."
            )


def describe(workdir: Path, record: dict[str, float]) -> str:
    """The progress bar's text."""
    shown = "train_accuracy" if "train_accuracy" in record else "loss"
    return f"{workdir.parent.name}/{workdir.name} {shown} {record[shown]:.3f}"


def main(values: dict[str, Any], workdir: Path) -> None:
    """Trains."""
    with Progress() as progress:
        train(parse(TrainConfig, values), workdir, progress=progress)
    print(f"trained model: {workdir / 'model'}")


if __name__ == "__main__":
    command.run(main)
