"""What the sections of a study share: the base model, a directory, and work that is done once."""

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from flax import nnx
from rich.progress import Progress

from sdistill.analysis.records import Cell, Record, Results, training_records
from sdistill.analysis.richness import richness_bits
from sdistill.config import TrainConfig
from sdistill.engine.engine import SlotEngine
from sdistill.engine.model import CachedDecoder
from sdistill.engine.progress import follow
from sdistill.engine.sampling import Sampling
from sdistill.engine.types import Completions
from sdistill.evaluate import sample
from sdistill.evaluation import evaluation_problems
from sdistill.experiments.config import RunsConfig
from sdistill.model.decoder import Decoder
from sdistill.settings import ConfigError
from sdistill.storage import read_records, read_responses, write_responses
from sdistill.tasks.problem import Problem
from sdistill.tasks.signs_puzzle import SignsTask
from sdistill.text.chat import Chat, conversation
from sdistill.train import train, training_problems
from sdistill.train_mesh import mesh_of
from sdistill.types import Response

C = TypeVar("C", bound=RunsConfig)


@dataclass(frozen=True)
class Study(Generic[C]):
    """What all sections share."""

    config: C
    workdir: Path
    base: Decoder
    chat: Chat
    progress: Progress

    def directory(self, section: str, condition: str, seed: int) -> Path:
        """Where a condition's files are."""
        return self.workdir / "runs" / section / condition / f"seed{seed}"

    def generate(
        self,
        path: Path,
        problems: Sequence[Problem],
        contents: Sequence[str],
        *,
        samples: int,
        seed: int,
        stream: int = 0,
        max_response: int,
        with_bits: bool = False,
        model: Decoder | None = None,
    ) -> list[Response]:
        """A model's responses to user turns `contents`, at temperature 1, sampled once and kept.

        The model is the base unless another of its shape is given.
        """
        if path.exists():
            return read_responses(path)
        params = nnx.state(model or self.base, nnx.Param)
        longest = max(
            len(self.chat.prompt(conversation(p, c), thinking=True))
            for p, c in zip(problems, contents, strict=True)
        )
        if longest > self.config.max_prompt:
            raise ConfigError(
                f"max_prompt={self.config.max_prompt}: a prompt for {path} has {longest} tokens"
            )
        engine = SlotEngine(
            CachedDecoder(self.base.config),
            mesh=mesh_of(self.config.sdpo),
            stop_ids=self.chat.tokenizer.stop_ids,
            slots=256,
            max_prompt=-(-longest // 16) * 16,  # few shapes to compile, little padding to attend over
            max_response=max_response,
        )
        name = f"{path.parent.parent.name} {path.stem}"
        bar = self.progress.add_task(name, total=len(problems) * samples)
        generations, rollouts = sample(
            engine,
            params,
            problems,
            contents,
            chat=self.chat,
            task=SignsTask(),
            samples=samples,
            seed=seed,
            step=stream,
            sampling=Sampling(),
            progress=follow(self.progress, bar, name),
        )
        self.progress.remove_task(bar)
        if with_bits:
            generations = self._with_bits(params, problems, generations, rollouts)
        write_responses(path, generations)
        return generations

    def _with_bits(
        self,
        params: nnx.State,
        problems: Sequence[Problem],
        generations: Sequence[Response],
        rollouts: Completions,
    ) -> list[Response]:
        samples = len(generations) // len(problems)
        prompts = [self.chat.prompt(p.messages, thinking=True) for p in problems for _ in range(samples)]
        bits = richness_bits(
            params,
            self.base.config,
            prompts,
            rollouts,
            max_prompt=-(-max(map(len, prompts)) // 16) * 16,
            batch=64,
            chunk=self.config.sdpo.chunk,
        )
        return [replace(g, bits=float(b)) for g, b in zip(generations, bits, strict=True)]

    def train(self, section: str, condition: str, config: TrainConfig) -> Path:
        """Runs or continues a training; returns its directory."""
        directory = self.directory(section, condition, config.seed)
        train(config, directory, progress=self.progress)
        shutil.rmtree(directory / "checkpoints", ignore_errors=True)  # the run is over
        return directory


def on_policy_datasets(study: Study) -> tuple[str, ...]:
    """The evaluation data sets of sections 5 and 6."""
    assert study.config.grpo.evaluation is not None
    return study.config.grpo.evaluation.datasets


def name_of(split: str) -> str:
    """A split's name in the results. In: `k3_test`. Out: `k3`."""
    return split.removesuffix("_test")


def add_base(
    study: Study, results: Results, seed: int, datasets: Iterable[str], section: str = "on_policy"
) -> None:
    """Evaluates the base model, once for all sections; its files are with those of `section`."""
    evaluation, rollouts = study.config.grpo.evaluation, study.config.grpo.rollouts
    assert evaluation is not None and rollouts is not None
    pool = training_problems(rollouts, study.config.grpo.data_dir)
    problems = evaluation_problems(evaluation, pool, study.config.grpo.data_dir)
    for dataset in datasets:
        generations = study.generate(
            study.directory(section, "base", seed) / f"{dataset}-000000.jsonl.gz",
            problems[dataset],
            [p.messages[-1]["content"] for p in problems[dataset]],
            samples=evaluation.samples,
            seed=seed,
            max_response=evaluation.max_response,
        )
        results.add(Cell("base", 0, name_of(dataset)), seed, generations)


def add_run(results: Results, condition: str, seed: int, directory: Path) -> list[Record]:
    """Adds a training run's evaluations; returns the records of its training metrics."""
    for path in sorted(directory.glob("*-*.jsonl.gz")):
        dataset, _, step = path.name.removesuffix(".jsonl.gz").rpartition("-")
        if dataset != "train":
            results.add(Cell(condition, int(step), name_of(dataset)), seed, read_responses(path))
    run = json.loads((directory / "config.json").read_text())
    if run["rollouts"] is None:
        return []
    n = run["rollouts"]["prompts"] * run["rollouts"]["samples"]
    metrics = read_records(directory / "metrics.jsonl")
    return training_records(results, condition, seed, metrics, run["evaluation"]["every"], n)
