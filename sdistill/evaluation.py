"""Evaluations during training: which, on what, and where they are kept."""

from collections.abc import Callable, Sequence
from pathlib import Path

from flax import nnx
from jax.sharding import Mesh

from sdistill.config import EvaluationConfig, TrainConfig
from sdistill.data.catalogue import open_problems, task_of
from sdistill.model.config import ModelConfig
from sdistill.problem_sampler import OnRound, evaluation_sampler
from sdistill.storage import write_responses
from sdistill.tasks.problem import Problem
from sdistill.text.chat import Chat

TRAINED = "trained"  # the run's own training problems


def evaluator(
    config: TrainConfig,
    model: ModelConfig,
    mesh: Mesh,
    chat: Chat,
    problems: Sequence[Problem],
    workdir: Path,
    *,
    on_round: OnRound | None = None,
) -> Callable[[nnx.State, int], None]:
    """A function of (parameters, step) that writes the evaluations due at that step."""
    settings = config.evaluation
    if settings is None:
        return lambda params, step: None
    datasets = evaluation_problems(settings, problems, config.data_dir)
    tasks = {name: task_of(_source(config, name)) for name in datasets}
    sampler = evaluation_sampler(config, model, mesh, chat, on_round)

    def evaluate(params: nnx.State, step: int) -> None:
        due = settings.at_start if step == 0 else settings.datasets
        if step % settings.every and step != config.steps:
            return
        for name in due:
            path = workdir / f"{name}-{step:06d}.jsonl.gz"
            if not path.exists():
                generations, _ = sampler(params, datasets[name], tasks[name], step)
                write_responses(path, generations)

    return evaluate


def _source(config: TrainConfig, dataset: str) -> str:
    """Where the problems of an evaluation data set are from."""
    if dataset != TRAINED:
        return dataset
    assert config.rollouts is not None  # TrainConfig has checked
    return config.rollouts.split


def evaluation_problems(
    settings: EvaluationConfig, problems: Sequence[Problem], data_dir: str | None
) -> dict[str, Sequence[Problem]]:
    """The problems of each evaluation data set."""
    datasets: dict[str, Sequence[Problem]] = {}
    for name in {*settings.datasets, *settings.at_start}:
        if name == TRAINED:
            distinct = list(problems[: settings.problems])
            copies = -(-settings.problems // len(distinct))
            datasets[name] = (distinct * copies)[: settings.problems]
        else:
            datasets[name] = open_problems(name, data_dir)[: settings.problems]
    return datasets
