"""The whole study of arXiv 2603.24472 on the signs puzzle, section by section, with a report.

    python -m sdistill.study --config configs/signs/study.py --workdir runs/study

The sections are the paper's: (3) how much richer contexts change responses, (4) SFT on unguided and on
guided responses, (5) SDPO against GRPO, (6) task coverage. What a study directory holds:

    config.json, environment.json   settings, versions
    runs/<section>/<condition>/seed<k>/<dataset>-<step>.jsonl.gz
                                    every response with its verdict; training runs also keep their
                                    metrics, rollouts and final weights there (see `sdistill.train`)
    results.jsonl                   all figures with intervals (see `sdistill.analysis.records`)
    report.html                     the same to look at

Every file is written whole or not at all and is a function of the settings; figures are computed from
the files. So a study that is killed goes on where it was, and ends with the same `results.jsonl`.
"""

import dataclasses
import json
import logging
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sdistill import command
from sdistill.analysis.measure import Generation
from sdistill.analysis.records import Cell, Record, Results, training_records
from sdistill.analysis.richness import richness_bits
from sdistill.config import ConfigError, parse, require, to_json
from sdistill.datasets.pipelines import open_problems
from sdistill.distill.contexts import ContextConfig, Kind, guided_content
from sdistill.evaluate import sample
from sdistill.models.decoder import Decoder
from sdistill.models.weights import SIGNS_BASE, load_pretrained
from sdistill.parallel.mesh import make_mesh
from sdistill.report import print_section, write_report
from sdistill.rollout.engine import Engine, Rollouts
from sdistill.rollout.sampling import Sampling
from sdistill.storage import read_records, write_atomically, write_records
from sdistill.tasks.problem import Problem
from sdistill.tasks.signs.puzzle import SignsTask, problem_from_text
from sdistill.text.chat import render
from sdistill.text.tokenizer import SIGNS_TOKENIZER, SentencePieceTokenizer
from sdistill.train import claim_workdir, evaluation_problems, train, training_problems
from sdistill.training.config import ExamplesConfig, TrainConfig
from sdistill.training.objectives import SDPOConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RichnessConfig:
    """Section 3. The protocol is the paper's; the contexts are more than the paper's.

    Attributes:
      splits: Walked in turns, a problem of each after the other.
      problems: Problems to keep.
      walk_samples: Responses a problem on the walk.
      min_correct: A problem is kept if at least so many of them are right…
      max_correct: …and at most so many.
      samples: Fresh responses a kept problem and context.
      partial_fraction: Share of the answer that the `partial` context reveals.
    """

    splits: tuple[str, ...]
    problems: int
    walk_samples: int
    min_correct: int
    max_correct: int
    samples: int
    partial_fraction: float


@dataclass(frozen=True)
class SFTStudyConfig:
    """Section 4.

    Attributes:
      split: Problems to sample training responses from.
      responses: Size of each training set.
      per_problem: Responses of one problem in a training set, at most.
      samples: Responses sampled a problem, of which the correct ones can be used.
      train: The SFT runs; `examples.source` and the seed are filled in.
    """

    split: str
    responses: int
    per_problem: int
    samples: int
    train: TrainConfig


@dataclass(frozen=True)
class StudyConfig:
    """The study.

    Attributes:
      seeds: Of sections 4, 5 and 6; section 3 uses the first.
      max_prompt: Tokens of a prompt with any context, at most.
      richness: Section 3.
      sft: Section 4.
      grpo: The GRPO runs of sections 5 and 6; |D| and the seed are filled in.
      sdpo: The SDPO runs; also context, `max_teacher_prompt` and teacher weights are.
      max_teacher_prompt: Tokens of the teacher's prompt for c = s and for c = s∖think.
      ema_rate: Of the EMA teacher.
      coverage: |D| of section 6, besides the whole split, which section 5 has run.
    """

    seeds: tuple[int, ...]
    max_prompt: int
    richness: RichnessConfig
    sft: SFTStudyConfig
    grpo: TrainConfig
    sdpo: TrainConfig
    max_teacher_prompt: tuple[int, ...]
    ema_rate: float
    coverage: tuple[int, ...]

    def __post_init__(self) -> None:
        require(len(self.seeds) > 0, "seeds=() must name at least one seed")
        require(len(self.max_teacher_prompt) == 2, "max_teacher_prompt needs two lengths: c = s, c = s∖think")
        require(self.grpo.evaluation == self.sdpo.evaluation, "grpo.evaluation and sdpo.evaluation must be equal")
        require(self.grpo.evaluation is not None, "grpo.evaluation is missing")
        require(self.sft.train.evaluation is not None, "sft.train.evaluation is missing")


@dataclass(frozen=True)
class Study:
    """What all sections share."""

    config: StudyConfig
    workdir: Path
    base: Decoder
    tokenizer: SentencePieceTokenizer
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
    ) -> list[Generation]:
        """The base model's responses to user turns `contents`, at temperature 1, sampled once and kept."""
        if path.exists():
            return read_records(path)
        params = nnx.state(self.base, nnx.Param)
        longest = max(len(self.tokenizer.encode(render(p, c))) for p, c in zip(problems, contents, strict=True))
        if longest > self.config.max_prompt:
            raise ConfigError(f"max_prompt={self.config.max_prompt}: a prompt for {path} has {longest} tokens")
        engine = Engine(
            self.base.config,
            mesh=make_mesh(self.config.sdpo.mesh),
            eos_id=self.tokenizer.eos_id,
            slots=256,
            max_prompt=-(-longest // 16) * 16,  # few shapes to compile, little padding to attend over
            max_response=max_response,
        )
        bar = self.progress.add_task(f"{path.parent.parent.name} {path.stem}", total=len(problems) * samples)
        generations, rollouts = sample(
            engine,
            params,
            problems,
            contents,
            tokenizer=self.tokenizer,
            task=SignsTask(),
            samples=samples,
            seed=seed,
            step=stream,
            sampling=Sampling(),
            progress=lambda done: self.progress.advance(bar, done),
        )
        self.progress.remove_task(bar)
        if with_bits:
            generations = self._with_bits(params, problems, generations, rollouts)
        write_records(path, generations)
        return generations

    def _with_bits(
        self,
        params: nnx.State,
        problems: Sequence[Problem],
        generations: Sequence[Generation],
        rollouts: Rollouts,
    ) -> list[Generation]:
        samples = len(generations) // len(problems)
        prompts = [self.tokenizer.encode(render(p)) for p in problems for _ in range(samples)]
        bits = richness_bits(
            params,
            self.base.config,
            prompts,
            rollouts,
            max_prompt=self.config.max_prompt,
            batch=256,
            chunk=self.config.sdpo.chunk,
        )
        return [{**g, "bits": float(b)} for g, b in zip(generations, bits, strict=True)]

    def train(self, section: str, condition: str, config: TrainConfig) -> Path:
        """Runs or continues a training; returns its directory."""
        directory = self.directory(section, condition, config.seed)
        train(config, directory, progress=self.progress)
        shutil.rmtree(directory / "checkpoints", ignore_errors=True)  # the run is over
        return directory


# Section 3: context richness.


def richness_section(study: Study) -> list[Record]:
    """Each context's accuracy, length, words and measured richness on problems the base half knows."""
    config, seed = study.config.richness, study.config.seeds[0]
    kept = walk(study)
    if not kept:
        raise ConfigError(
            f"no problem of {', '.join(config.splits)} had {config.min_correct} to {config.max_correct} of "
            f"{config.walk_samples} responses right; widen richness.min_correct and max_correct"
        )
    problems = [problem_from_text(group[0]["problem"]) for group in kept]
    solutions = [first_success(group) for group in kept]
    plain = [p.messages[-1]["content"] for p in problems]
    others = [*range(1, len(problems)), 0]

    def contents(kind: Kind, shown: Sequence[str], fraction: float | None = None) -> list[str]:
        context = ContextConfig(kind=kind, fraction=fraction)
        if kind == "other_problem":
            return [
                guided_content(context, p, shown[other], problems[other])
                for p, other in zip(problems, others, strict=True)
            ]
        return [guided_content(context, p, s) for p, s in zip(problems, shown, strict=True)]

    results = Results("richness")

    def run(condition: str, turns: Sequence[str]) -> list[Generation]:
        generations = study.generate(
            study.directory("richness", condition, seed) / "walk-000000.jsonl.gz",
            problems,
            turns,
            samples=config.samples,
            seed=seed,
            stream=1,
            max_response=112,
            with_bits=True,
        )
        results.add(Cell(condition, 0, "walk"), seed, generations)
        return generations

    run("unguided", plain)
    if len(problems) > 1:
        run("other_problem", contents("other_problem", solutions))
    run("partial", contents("partial", solutions, config.partial_fraction))
    run("answer", contents("answer", solutions))
    guided = run("solution", contents("solution", solutions))
    groups = [guided[i : i + config.samples] for i in range(0, len(guided), config.samples)]
    run("regenerated", contents("solution", [first_success(group) for group in groups]))
    cells = results.cells()
    return results.records() + results.differences((a, b) for a in cells for b in cells if a != b)


def walk(study: Study) -> list[list[Generation]]:
    """The responses to each kept problem, walking the splits in order until there are enough."""
    config, seed = study.config.richness, study.config.seeds[0]
    splits = [open_problems(split, study.config.sdpo.data_dir) for split in config.splits]
    order = [problem for problems in zip(*splits, strict=False) for problem in problems]
    kept: list[list[Generation]] = []
    stride = 128
    for start in range(0, len(order), stride):
        problems = order[start : start + stride]
        generations = study.generate(
            study.workdir / "runs" / "richness" / "walk" / f"{start:06d}.jsonl.gz",
            problems,
            [p.messages[-1]["content"] for p in problems],
            samples=config.walk_samples,
            seed=seed,
            max_response=112,
        )
        for i in range(0, len(generations), config.walk_samples):
            group = generations[i : i + config.walk_samples]
            if config.min_correct <= sum(g["correct"] for g in group) <= config.max_correct:
                kept.append(group)
        if len(kept) >= config.problems:
            return kept[: config.problems]
    return kept


def first_success(group: Sequence[Generation]) -> str:
    """The first correct response, or else the first."""
    return str(next((g for g in group if g["correct"]), group[0])["response"])


# Section 4: off-policy self-distillation.


def sft_section(study: Study) -> list[Record]:
    """SFT on matched sets of unguided and guided correct responses, against the base."""
    config, results = study.config.sft, Results("sft")
    conditions = ("sft_unguided", "sft_guided", "sft_guided_solution")
    evaluation = config.train.evaluation
    assert evaluation is not None
    for seed in study.config.seeds:
        add_base(study, results, seed, evaluation.datasets)
        sources = matched_sets(study, seed)
        for condition in conditions:
            run = dataclasses.replace(
                config.train,
                seed=seed,
                examples=dataclasses.replace(
                    config.train.examples or ExamplesConfig("", 0, 0, False), source=str(sources[condition])
                ),
            )
            add_run(results, condition, seed, study.train("sft", condition, run))
    cells = [cell for cell in results.cells() if cell.condition != "base"]
    return results.records() + results.differences((c, Cell("base", 0, c.dataset)) for c in cells)


def matched_sets(study: Study, seed: int) -> dict[str, Path]:
    """Training sets of the same problems with as many correct responses each, under three contexts."""
    config = study.config.sft
    problems = open_problems(config.split, study.config.sdpo.data_dir)
    folder = study.workdir / "runs" / "sft" / "data" / f"seed{seed}"
    plain = [p.messages[-1]["content"] for p in problems]

    def responses(name: str, posed: Sequence[Problem], turns: Sequence[str]) -> dict[str, list[Generation]]:
        generations = study.generate(
            folder / f"{name}.jsonl.gz", posed, turns, samples=config.samples, seed=seed, stream=2, max_response=48
        )
        correct: dict[str, list[Generation]] = {p.id: [] for p in posed}
        for generation in generations:
            if generation["correct"]:
                correct[generation["problem"]].append(generation)
        return correct

    # Half as many problems again as would do if every one gave its full share.
    needed = -(-config.responses * 3 // (2 * config.per_problem))
    unguided = responses("unguided", problems[:needed], plain[:needed])
    solved = [p for p in problems[:needed] if unguided[p.id]]
    solutions = [unguided[p.id][0]["response"] for p in solved]
    sets = {"sft_unguided": unguided}
    for condition, kind in (("sft_guided", "answer"), ("sft_guided_solution", "solution")):
        context = ContextConfig(kind=kind)  # type: ignore[arg-type]
        turns = [guided_content(context, p, s) for p, s in zip(solved, solutions, strict=True)]
        sets[condition] = responses(kind, solved, turns)
    chosen: dict[str, list[dict[str, str]]] = {condition: [] for condition in sets}
    for problem in solved:
        left = config.responses - len(chosen["sft_unguided"])
        count = min(config.per_problem, left, *(len(s[problem.id]) for s in sets.values()))
        for condition, correct in sets.items():
            for generation in correct[problem.id][:count]:
                chosen[condition].append({"prompt": render(problem), "response": generation["response"]})
    if len(chosen["sft_unguided"]) < config.responses:
        logger.warning(
            "section 4, seed %d: only %d matched responses instead of %d; raise sft.samples or per_problem",
            seed, len(chosen["sft_unguided"]), config.responses,
        )
    paths = {condition: folder / f"{condition}.jsonl.gz" for condition in sets}
    for condition, path in paths.items():
        write_records(path, chosen[condition])
    return paths


# Sections 5 and 6: on-policy.


def on_policy_runs(study: Study, seed: int, problems: int | None) -> dict[str, TrainConfig]:
    """Condition → run of section 5, on |D| problems."""
    config = study.config
    assert config.grpo.rollouts is not None and config.sdpo.rollouts is not None and config.sdpo.sdpo is not None
    rollouts = dataclasses.replace(config.grpo.rollouts, problems=problems)
    runs = {"grpo": dataclasses.replace(config.grpo, seed=seed, rollouts=rollouts)}
    for kind, length in zip(("solution", "answer"), config.max_teacher_prompt, strict=True):
        for weights in ("fixed", "ema"):
            sdpo: SDPOConfig = dataclasses.replace(
                config.sdpo.sdpo,
                context=dataclasses.replace(config.sdpo.sdpo.context, kind=kind),
                teacher=dataclasses.replace(
                    config.sdpo.sdpo.teacher,
                    weights=weights,
                    ema_rate=config.ema_rate if weights == "ema" else None,
                ),
            )
            rollouts = dataclasses.replace(
                config.sdpo.rollouts, problems=problems, max_teacher_prompt=length
            )
            runs[f"sdpo_{kind}_{weights}"] = dataclasses.replace(
                config.sdpo, seed=seed, rollouts=rollouts, sdpo=sdpo
            )
    return runs


def on_policy_section(study: Study) -> list[Record]:
    """GRPO and SDPO under two contexts and two teachers, against the base."""
    results, training = Results("on_policy"), []
    for seed in study.config.seeds:
        add_base(study, results, seed, on_policy_datasets(study))
        for condition, run in on_policy_runs(study, seed, None).items():
            directory = study.train("on_policy", condition, run)
            training += add_run(results, condition, seed, directory)
            for dataset in on_policy_datasets(study):  # step 0 of every run is the base
                results.alias(Cell(condition, 0, name_of(dataset)), Cell("base", 0, name_of(dataset)), seed)
    cells = [cell for cell in results.cells() if cell.condition != "base"]
    pairs = [(cell, Cell("base", 0, cell.dataset)) for cell in cells]
    against = [("sdpo_solution_fixed", "sdpo_answer_fixed")]
    against += [(f"sdpo_{kind}_fixed", f"sdpo_{kind}_ema") for kind in ("solution", "answer")]
    for cell in cells:
        pairs += [(cell, Cell(b, cell.step, cell.dataset)) for a, b in against if cell.condition == a]
    return results.records() + results.differences(pairs) + training


def coverage_section(study: Study) -> list[Record]:
    """SDPO (c = s∖think, fixed teacher) and GRPO on ever more distinct problems."""
    results, training = Results("coverage"), []
    chosen = {"grpo": "grpo", "sdpo": "sdpo_answer_fixed"}
    for seed in study.config.seeds:
        add_base(study, results, seed, on_policy_datasets(study))
        for name, condition in chosen.items():
            for size in (*study.config.coverage, None):
                label = f"{name}_{size or 'all'}"
                if size is None:  # section 5 has run it
                    directory = study.directory("on_policy", condition, seed)
                else:
                    run = on_policy_runs(study, seed, size)[condition]
                    assert run.evaluation is not None
                    evaluation = dataclasses.replace(run.evaluation, at_start=("trained",))
                    directory = study.train("coverage", label, dataclasses.replace(run, evaluation=evaluation))
                training += add_run(results, label, seed, directory)
                for dataset in on_policy_datasets(study):
                    if size is None or dataset != "trained":
                        results.alias(Cell(label, 0, name_of(dataset)), Cell("base", 0, name_of(dataset)), seed)
    cells = [cell for cell in results.cells() if cell.condition != "base"]
    pairs = []
    for cell in cells:
        before = Cell(cell.condition, 0, cell.dataset)
        pairs.append((cell, before if cell.dataset == "trained" else Cell("base", 0, cell.dataset)))
        name, _, size = cell.condition.partition("_")
        if size == str(min(study.config.coverage, default=None)):
            for other in (max(study.config.coverage), "all"):
                pairs.append((cell, Cell(f"{name}_{other}", cell.step, cell.dataset)))
    return results.records() + results.differences(pairs) + training


def on_policy_datasets(study: Study) -> tuple[str, ...]:
    """The evaluation data sets of sections 5 and 6."""
    assert study.config.grpo.evaluation is not None
    return study.config.grpo.evaluation.datasets


def name_of(split: str) -> str:
    """A split's name in the results. In: `k3_test`. Out: `k3`."""
    return split.removesuffix("_test")


def add_base(study: Study, results: Results, seed: int, datasets: Iterable[str]) -> None:
    """Evaluates the base model, once for all sections."""
    evaluation, rollouts = study.config.grpo.evaluation, study.config.grpo.rollouts
    assert evaluation is not None and rollouts is not None
    pool = training_problems(rollouts, study.config.grpo.data_dir)
    problems = evaluation_problems(evaluation, pool, study.config.grpo.data_dir)
    for dataset in datasets:
        generations = study.generate(
            study.directory("on_policy", "base", seed) / f"{dataset}-000000.jsonl.gz",
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
            results.add(Cell(condition, int(step), name_of(dataset)), seed, read_records(path))
    run = json.loads((directory / "config.json").read_text())
    if run["rollouts"] is None:
        return []
    n = run["rollouts"]["prompts"] * run["rollouts"]["samples"]
    metrics = read_records(directory / "metrics.jsonl")
    return training_records(results, condition, seed, metrics, run["evaluation"]["every"], n)


SECTIONS: dict[str, Callable[[Study], list[Record]]] = {
    "richness": richness_section,
    "sft": sft_section,
    "on_policy": on_policy_section,
    "coverage": coverage_section,
}


def run_study(config: StudyConfig, workdir: Path, console: Console) -> Path:
    """Runs or continues the study; returns the path of the report.

    Raises:
      ConfigError: before any work, if the settings cannot be used or `workdir` belongs to others.
    """
    claim_workdir(workdir, to_json(config))
    write_atomically(workdir / "environment.json", json.dumps(environment(config), indent=1).encode())
    records: list[Record] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        tokenizer = SentencePieceTokenizer(SIGNS_TOKENIZER)
        study = Study(config, workdir, load_pretrained(SIGNS_BASE), tokenizer, progress)
        for name, section in SECTIONS.items():
            records += section(study)
            write_records(workdir / "results.jsonl", records)
            print_section(name, records, console)
    return write_report(workdir)


def environment(config: StudyConfig) -> dict[str, str]:
    """Versions, machine and seeds, for the report."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "sentencepiece")
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "platform": platform.machine(),
        "devices": ", ".join(str(device) for device in jax.devices()),
        "commit": commit.stdout.strip() or "not a git checkout",
        "seeds": ", ".join(map(str, config.seeds)),
    }


def main(values: dict[str, Any], workdir: Path) -> None:
    """Runs the study."""
    console = Console()
    console.print(f"report: {run_study(parse(StudyConfig, values), workdir, console)}")


if __name__ == "__main__":
    command.run(main)
