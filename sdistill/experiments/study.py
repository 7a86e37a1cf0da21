"""What the sections of a study share: the base model, directories, and work that is done once.

Every file is written whole and depends on the settings only. A section that finds a file reads it, so that a
study that was killed continues.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from flax import nnx
from rich.progress import Progress

from sdistill.analysis.measure import BASE, Cell, Results
from sdistill.config import AnyTrainConfig, SamplerConfig, SFTConfig
from sdistill.engine.types import follow
from sdistill.experiments.config import RunsConfig
from sdistill.mesh_choice import training_mesh
from sdistill.model.decoder import Decoder
from sdistill.richness import richness_bits
from sdistill.sample import Query, Sampler, encode, queries_for
from sdistill.settings import require
from sdistill.storage import read_records, read_responses, responses_file, responses_files, write_responses
from sdistill.tasks.problem import Task
from sdistill.text.chat import Chat
from sdistill.train import evaluation_datasets, train, training_problems
from sdistill.types import Condition, Response

C = TypeVar("C", bound=RunsConfig)


@dataclass(frozen=True)
class Study(Generic[C]):
    """What all sections share.

    Attributes:
      base: The base model.
      chat: Tokenizer and chat template of all models.
      task: Verifies all responses.
    """

    config: C
    workdir: Path
    base: Decoder
    chat: Chat
    task: Task
    progress: Progress

    def directory(self, section: str, condition: Condition, seed: int) -> Path:
        """The directory of a condition."""
        return self.workdir / "runs" / section / condition.label / f"seed{seed}"

    def respond(
        self,
        path: Path,
        units: Sequence[Query | Response],
        *,
        max_response_length: int,
        seed: int,
        step: int = 0,
        forbidden: Sequence[int] = (),
        model: Decoder | None = None,
        with_bits: bool = False,
        prompt_multiple: int = 16,
    ) -> list[Response]:
        """Responses to queries at temperature 1, sampled once and written to `path`.

        Args:
          path: The file; if it is there, its responses are returned.
          units: Queries; responses among them are kept as they are.
          seed, step: What all random streams depend on.
          forbidden: Token ids that are never sampled.
          model: A model of the base's shape; None for the base.
          with_bits: Measure the richness of each response; for queries only.
          prompt_multiple: Prompts are padded to a multiple of this length, so that few shapes are compiled.
        """
        if path.exists():
            return read_responses(path)
        params = nnx.state(model or self.base, nnx.Param)
        queries = [unit for unit in units if isinstance(unit, Query)]
        sampled: list[Response] = []
        if queries:
            # Room for the longest prompt, with the prefix of its response.
            lengths = [[len(ids) for ids in encode(self.chat, query)] for query in queries]
            longest, most = max(prompt for prompt, _ in lengths), self.config.max_prompt_length
            require(longest <= most, f"max_prompt_length={most}: a prompt for {path} has {longest} tokens")
            sampler = Sampler(
                self.base.config,
                training_mesh(self.config.sdpo),
                self.chat,
                SamplerConfig(
                    num_samples=1,
                    max_prompt_length=_round_up(max(map(sum, lengths)), prompt_multiple),
                    max_response_length=max_response_length,
                    slots=self.config.evaluation.slots,
                ),
            )
            name = f"{path.parent.parent.name} {path.stem}"
            with follow(self.progress, name, len(queries)) as show:
                sampled, completions = sampler(
                    params, queries, self.task, seed=seed, step=step, forbidden=forbidden, on_round=show
                )
            if with_bits:
                plain = [self.chat.prompt(query.problem.messages, thinking=True) for query in queries]
                bits = richness_bits(
                    params,
                    self.base.config,
                    plain,
                    completions,
                    max_prompt=_round_up(max(map(len, plain)), 16),
                    batch=64,
                    chunk=self.config.sdpo.logits_chunk_size,
                )
                sampled = [replace(r, bits=float(b)) for r, b in zip(sampled, bits, strict=True)]
        new = iter(sampled)
        responses = [next(new) if isinstance(unit, Query) else unit for unit in units]
        write_responses(path, responses)
        return responses

    def add_base(self, results: Results, seed: int, datasets: Sequence[str], section: str) -> None:
        """Adds the evaluation of the base model; its files are with those of `section`."""
        evaluation, config = self.config.evaluation, self.config.grpo
        pool = training_problems(config.rollouts, config.data_dir)
        problems = {name: found for name, (found, _) in evaluation_datasets(config, pool).items()}
        for dataset in datasets:
            responses = self.respond(
                responses_file(self.directory(section, BASE, seed), dataset, 0),
                queries_for(problems[dataset], evaluation.num_samples),
                max_response_length=evaluation.max_response_length,
                seed=seed,
            )
            results.add(Cell(BASE, 0, name_of(dataset)), seed, responses)

    def train(self, results: Results, condition: Condition, config: AnyTrainConfig) -> Path:
        """Makes or continues a training run of the section, and adds its figures; returns its directory."""
        directory = self.directory(results.section, condition, config.seed)
        train(config, directory, progress=self.progress)
        shutil.rmtree(directory / "checkpoints", ignore_errors=True)  # the run is over
        self.add_run(results, condition, config, directory)
        return directory

    def add_run(
        self, results: Results, condition: Condition, config: AnyTrainConfig, directory: Path
    ) -> None:
        """Adds the evaluations and the training metrics of a run."""
        for (dataset, step), path in responses_files(directory).items():
            if dataset != "train":
                results.add(Cell(condition, step, name_of(dataset)), config.seed, read_responses(path))
        if not isinstance(config, SFTConfig) and config.evaluation is not None:
            n = config.rollouts.num_prompts * config.rollouts.num_samples
            metrics = read_records(directory / "metrics.jsonl")
            results.add_training(condition, config.seed, metrics, config.evaluation.every, n)


def name_of(split: str) -> str:
    """A split's name in the results. In: `k3_test`. Out: `k3`."""
    return split.removesuffix("_test")


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
