"""What the sections of a study share: the base model, a directory, and work that is done once."""

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from flax import nnx
from rich.progress import Progress

from sdistill.analysis.measure import BASE, Cell, Results, training_measurements
from sdistill.config import AnyTrainConfig
from sdistill.engine.types import Completions, follow
from sdistill.experiments.config import RunsConfig, evaluation_of
from sdistill.mesh_choice import training_mesh
from sdistill.model.decoder import Decoder
from sdistill.richness import richness_bits
from sdistill.sample import Query, Sampler, encode, queries_for
from sdistill.settings import ConfigError
from sdistill.storage import read_records, read_responses, write_responses
from sdistill.tasks.problem import Problem, Task
from sdistill.tasks.signs_puzzle import SignsTask
from sdistill.text.chat import Chat
from sdistill.train import evaluation_problems, train, training_problems
from sdistill.types import Condition, Measurement, Response

C = TypeVar("C", bound=RunsConfig)


@dataclass(frozen=True)
class Study(Generic[C]):
    """What all sections share."""

    config: C
    workdir: Path
    base: Decoder
    chat: Chat
    progress: Progress

    def directory(self, section: str, condition: Condition, seed: int) -> Path:
        """Where a condition's files are."""
        return self.workdir / "runs" / section / condition.label / f"seed{seed}"

    def generate(
        self,
        path: Path,
        problems: Sequence[Problem],
        contents: Sequence[str | None],
        *,
        num_samples: int,
        seed: int,
        stream: int = 0,
        max_response_length: int,
        with_bits: bool = False,
        model: Decoder | None = None,
    ) -> list[Response]:
        """A model's responses to user turns `contents`, at temperature 1, sampled once and kept.

        The model is the base unless another of its shape is given.
        """
        if path.exists():
            return read_responses(path)
        queries = queries_for(problems, num_samples, contents)
        longest, most = max(len(encode(self.chat, q)[0]) for q in queries), self.config.max_prompt_length
        if longest > most:
            raise ConfigError(f"max_prompt_length={most}: a prompt for {path} has {longest} tokens")
        params = nnx.state(model or self.base, nnx.Param)
        responses, completions = self.sample(
            params,
            queries,
            SignsTask(),
            name=f"{path.parent.parent.name} {path.stem}",
            max_response_length=max_response_length,
            prompt_multiple=16,  # few shapes to compile, little padding to attend to
            seed=seed,
            step=stream,
        )
        if with_bits:
            responses = self._with_bits(params, queries, responses, completions)
        write_responses(path, responses)
        return responses

    def sample(
        self,
        params: nnx.State,
        queries: Sequence[Query],
        task: Task,
        *,
        name: str,
        max_response_length: int,
        prompt_multiple: int,
        seed: int,
        step: int,
        forbidden: Sequence[int] = (),
    ) -> tuple[list[Response], Completions]:
        """Samples at temperature 1, with a progress bar and room for the longest prompt."""
        longest = max(sum(map(len, encode(self.chat, query))) for query in queries)
        sampler = Sampler(
            self.base.config,
            training_mesh(self.config.sdpo),
            self.chat,
            max_prompt_length=-(-longest // prompt_multiple) * prompt_multiple,
            max_response_length=max_response_length,
            slots=256,
        )
        bar = self.progress.add_task(name, total=len(queries))
        found = sampler(
            params,
            queries,
            task,
            seed=seed,
            step=step,
            forbidden=forbidden,
            progress=follow(self.progress, bar, name),
        )
        self.progress.remove_task(bar)
        return found

    def _with_bits(
        self,
        params: nnx.State,
        queries: Sequence[Query],
        responses: Sequence[Response],
        completions: Completions,
    ) -> list[Response]:
        prompts = [self.chat.prompt(query.problem.messages, thinking=True) for query in queries]
        bits = richness_bits(
            params,
            self.base.config,
            prompts,
            completions,
            max_prompt=-(-max(map(len, prompts)) // 16) * 16,
            batch=64,
            chunk=self.config.sdpo.logits_chunk_size,
        )
        return [replace(r, bits=float(b)) for r, b in zip(responses, bits, strict=True)]

    def train(self, section: str, condition: Condition, config: AnyTrainConfig) -> Path:
        """Runs or continues a training; returns its directory."""
        directory = self.directory(section, condition, config.seed)
        train(config, directory, progress=self.progress)
        shutil.rmtree(directory / "checkpoints", ignore_errors=True)  # the run is over
        return directory


def on_policy_datasets(study: Study) -> tuple[str, ...]:
    """The evaluation data sets of sections 5 and 6."""
    return evaluation_of(study.config).datasets


def name_of(split: str) -> str:
    """A split's name in the results. In: `k3_test`. Out: `k3`."""
    return split.removesuffix("_test")


def add_base(
    study: Study, results: Results, seed: int, datasets: Iterable[str], section: str = "on_policy"
) -> None:
    """Evaluates the base model, once for all sections; its files are with those of `section`."""
    evaluation = evaluation_of(study.config)
    pool = training_problems(study.config.grpo.rollouts, study.config.grpo.data_dir)
    problems = evaluation_problems(evaluation, pool, study.config.grpo.data_dir)
    for dataset in datasets:
        responses = study.generate(
            study.directory(section, BASE, seed) / f"{dataset}-000000.jsonl.gz",
            problems[dataset],
            [None] * len(problems[dataset]),
            num_samples=evaluation.num_samples,
            seed=seed,
            max_response_length=evaluation.max_response_length,
        )
        results.add(Cell(BASE, 0, name_of(dataset)), seed, responses)


def add_run(results: Results, condition: Condition, seed: int, directory: Path) -> list[Measurement]:
    """Adds a training run's evaluations; returns the measurements of its training metrics."""
    for path in sorted(directory.glob("*-*.jsonl.gz")):
        dataset, _, step = path.name.removesuffix(".jsonl.gz").rpartition("-")
        if dataset != "train":
            results.add(Cell(condition, int(step), name_of(dataset)), seed, read_responses(path))
    run = json.loads((directory / "config.json").read_text())
    if "rollouts" not in run:
        return []
    n = run["rollouts"]["num_prompts"] * run["rollouts"]["num_samples"]
    metrics = read_records(directory / "metrics.jsonl")
    return training_measurements(results, condition, seed, metrics, run["evaluation"]["every"], n)
