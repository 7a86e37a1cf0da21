"""Samples responses to problems, with or without a context, verifies them, and keeps them.

    python -m sdistill.generate --config configs/signs/generate.py:walk --workdir runs/walk
    python -m sdistill.generate --config configs/signs/generate.py:solution --workdir runs/guided

The second shows correct responses of the first, which it finds in `after`.

A response depends on its settings, problem and sample only. So an interrupted generation continues with the
missing responses, and ends with the same files (docs/files.md). Of several processes each verifies its share.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.progress import Progress

from sdistill import command
from sdistill.config import ContextConfig, SamplerConfig
from sdistill.contexts import teacher_turn
from sdistill.data.catalogue import open_problems, task_of
from sdistill.distributed.mesh import MeshConfig
from sdistill.distributed.processes import check_agreement, is_writer
from sdistill.engine.types import Finish, follow
from sdistill.evaluate import print_figures
from sdistill.model.folders import load_chat
from sdistill.sample import Query, encode, open_sampler, queries_for
from sdistill.settings import ConfigError, parse, require, require_positive, to_json
from sdistill.storage import (
    CONFIG_FILE,
    Journal,
    check_workdir,
    read_responses,
    write_atomically,
    write_responses,
)
from sdistill.tasks.problem import Problem
from sdistill.text.stop import StopStrings
from sdistill.types import Response, group_by_problem

JOURNAL, DONE, PASSED_OVER = "journal.jsonl", "responses.jsonl.gz", "passed_over.jsonl.gz"

Prompted = tuple[Problem, str | None]
"""A problem, and the user turn that poses it with a context; None poses it as it is."""


@dataclass(frozen=True)
class WalkConfig:
    """Keeps the first problems of the data whose responses are neither all correct nor all wrong.

    Attributes:
      num_problems: Problems to keep; then the walk ends.
      min_correct: Fewest correct responses to a kept problem.
      max_correct: Most correct responses to a kept problem.
      stride: Problems that are responded to before the kept ones are counted.
    """

    num_problems: int
    min_correct: int
    max_correct: int
    stride: int = 64

    def __post_init__(self) -> None:
        require_positive(self, "num_problems", "stride")
        if not 0 <= self.min_correct <= self.max_correct:
            raise ConfigError(f"min_correct={self.min_correct} must be 0 to max_correct={self.max_correct}")

    def keeps(self, group: Sequence[Response]) -> bool:
        """Whether the problem of these responses is kept."""
        return self.min_correct <= sum(response.correct for response in group) <= self.max_correct


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(SamplerConfig):
    """One generation.

    Attributes:
      split: Problems to respond to, such as `math500`.
      init_from: The model: a model folder, a Hugging Face name, or `signs_base` (shipped).
      num_problems: The first of the split. None takes all.
      tokenizer: Folder or name with tokenizer and chat template. None takes those of the model.
      dtype: Type of weights, activations and cache.
      walk: Which problems to keep, and when to stop. None keeps all.
      after: Directory of an earlier generation. Only its problems are responded to, in its order.
      context: What is shown besides the problem, of the first correct response to it in `after`. None shows
        nothing. Problems without a correct response are left out, and counted.
      first_if_none: Show the first response where none is correct, as the authors' code does when it chains
        rounds. No problem is left out then.
      stop: Strings that end a response, besides the model's own stop tokens.
      stop_on_error: End the generation when a model's logits are not finite. Otherwise such responses are
        kept, with finish `error`.
      seed: Of all sampling.
      mesh: Sizes of the device mesh. None chooses one over all devices that fits the model.
      data_dir: Where data sets are prepared. None for the TFDS default.
    """

    split: str
    init_from: str
    num_problems: int | None = None
    tokenizer: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    walk: WalkConfig | None = None
    after: str | None = None
    context: ContextConfig | None = None
    first_if_none: bool = False
    stop: tuple[str, ...] = ()
    stop_on_error: bool = True
    seed: int = 0
    mesh: MeshConfig | None = None
    data_dir: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "num_problems")
        if self.context and self.after is None:
            raise ConfigError("context needs after, where solutions are from")
        if self.context and self.context.feedback:
            raise ConfigError("context.feedback has no effect: a response that is yet to be sampled has none")
        if self.first_if_none and not self.context:
            raise ConfigError("first_if_none=True has no effect without context")
        if self.walk and self.walk.max_correct > self.num_samples:
            raise ConfigError(f"walk.max_correct must be at most num_samples={self.num_samples}")


def generate(config: GenerateConfig, workdir: Path, *, progress: Progress | None = None) -> list[Response]:
    """Makes, or completes, the generation that `config` describes; returns the responses that are kept.

    Raises:
      ConfigError: before any work, if the settings cannot be used or `workdir` holds another run.
      FloatingPointError: naming problem and sample, if logits are not finite and `stop_on_error` is set.
    """
    # Refuse what cannot work, before anything is written.
    check_agreement(to_json(config))
    check_workdir(workdir, to_json(config))
    if (workdir / DONE).exists():
        return read_responses(workdir / DONE)
    chat = load_chat(config.tokenizer or config.init_from)
    problems, contents = zip(*prompts_of(config), strict=True)
    queries = queries_for(problems, config.num_samples, contents)
    settings = replace(config, thinking=config.context.thinking) if config.context else config
    sampler, params = open_sampler(config.init_from, chat, settings, dtype=config.dtype, mesh=config.mesh)
    prompts = {q.problem.id: encode(chat, q, thinking=settings.thinking)[0] for q in queries if q.sample == 0}
    longest = max(prompts, key=lambda name: len(prompts[name]))
    if (length := len(prompts[longest])) > config.max_prompt_length:
        raise ConfigError(
            f"max_prompt_length={config.max_prompt_length}: the prompt of {longest!r} has {length} tokens"
        )
    stop = StopStrings(chat.tokenizer, config.stop) if config.stop else None
    # All checks passed: the directory is ours.
    write_atomically(workdir / CONFIG_FILE, to_json(config).encode())

    # Sample, one stride of problems after another; the journal has what a killed run left.
    progress = progress or Progress(disable=True)
    kept: list[Sequence[Response]] = []
    passed_over: list[Sequence[Response]] = []
    journal = Journal(workdir / JOURNAL)
    walk, size = config.walk, config.num_samples
    with task_of(config.split) as task:
        for some in strides(queries, (walk.stride if walk else len(problems)) * size):
            known = journal_responses(journal)
            if missing := [query for query in some if (query.problem.id, query.sample) not in known]:
                with follow(progress, workdir.name, len(missing)) as show:
                    sampler.stream(
                        params,
                        missing,
                        task,
                        lambda response: journal.add(response.to_json()),
                        seed=config.seed,
                        stop=stop,
                        on_completion=functools.partial(check_finite, config),
                        on_round=show,
                    )
                journal.share()
                known = journal_responses(journal)
            responses = [known[query.problem.id, query.sample] for query in some]
            for group in strides(responses, size):
                (kept if walk is None or walk.keeps(group) else passed_over).append(group)
            if walk is not None and len(kept) >= walk.num_problems:
                passed_over += kept[walk.num_problems :]
                kept = kept[: walk.num_problems]
                break
    journal.close()

    # Write what is kept, in the order of problems and samples.
    if not kept:
        raise ConfigError(
            f"none of the {len(passed_over)} problems of split={config.split!r} had walk.min_correct to "
            "walk.max_correct of its responses right; widen them, or take a better model"
        )
    if passed_over:
        write_responses(workdir / PASSED_OVER, itertools.chain(*passed_over))
    responses = list(itertools.chain(*kept))
    write_responses(workdir / DONE, responses)
    journal.remove()
    return responses


def strides(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """The items, `size` at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))


def journal_responses(journal: Journal) -> dict[tuple[str, int], Response]:
    """(Problem, sample) → the response in the journal."""
    return {(r["problem"], r["sample"]): Response.from_json(r) for r in journal.records}


def check_finite(config: GenerateConfig, query: Query, ids: np.ndarray, finish: Finish) -> None:
    """Refuses a response that ended because logits were not finite, if the settings say so."""
    if finish == Finish.ERROR and config.stop_on_error:
        raise FloatingPointError(
            f"logits of {query.problem.id!r}, sample {query.sample} are not finite after "
            f"{len(ids)} tokens; look at the weights of init_from={config.init_from!r}, or "
            "set stop_on_error=False to go on without such responses"
        )


def prompts_of(config: GenerateConfig) -> list[Prompted]:
    """The problems to respond to, each with the user turn that poses it."""
    problems = open_problems(config.split, config.data_dir)[: config.num_problems]
    if config.after is None:
        return [(problem, None) for problem in problems]
    earlier = responses_by_problem(Path(config.after))
    by_id = {problem.id: problem for problem in problems}
    posed = [by_id[name] for name in earlier if name in by_id]
    if config.context is None:
        require(bool(posed), f"after={config.after!r} holds no problem of split={config.split!r}")
        return [(problem, None) for problem in posed]

    # What the context is made of: the first correct response to each problem.
    otherwise = {name: group[0].text for name, group in earlier.items()} if config.first_if_none else {}
    found = [(problem, first_correct(earlier[problem.id]) or otherwise.get(problem.id)) for problem in posed]
    solved = [(problem, text) for problem, text in found if text is not None]
    if not solved:
        raise ConfigError(
            f"after={config.after!r} holds no correct response to a problem of split={config.split!r}; "
            "generate there first, without a context, or from a better model"
        )
    if len(solved) < len(posed):
        print(f"{len(posed) - len(solved)} of {len(posed)} problems have no correct response: left out")
    return guided_prompts(config.context, solved)


def guided_prompts(context: ContextConfig, solved: Sequence[tuple[Problem, str]]) -> list[Prompted]:
    """Solved problems, each with its solution in the user turn; for `other_problem`, with the next one's."""
    if context.kind != "other_problem":
        return [(problem, teacher_turn(context, problem, text)) for problem, text in solved]
    require(len(solved) > 1, "context.kind='other_problem' needs two solved problems; give more problems")
    return [
        (problem, teacher_turn(context, problem, text, other))
        for (problem, _), (other, text) in zip(solved, [*solved[1:], solved[0]], strict=True)
    ]


def responses_by_problem(directory: Path, file: str = DONE) -> dict[str, list[Response]]:
    """The responses to each problem of a generation, in its order: those kept, or those `PASSED_OVER`.

    Raises:
      ConfigError: if the generation is not complete.
    """
    if not (directory / DONE).exists():
        raise ConfigError(f"{str(directory)!r} has no {DONE}; finish that generation first")
    return group_by_problem(read_responses(directory / file))


def first_correct(group: Sequence[Response]) -> str | None:
    """The text of the first correct response, if there is one."""
    return next((response.text for response in group if response.correct), None)


def main(values: dict[str, Any], workdir: Path) -> None:
    """Generates, and prints a table."""
    config = parse(GenerateConfig, values)
    with Progress() as progress:
        responses = generate(config, workdir, progress=progress)
    if is_writer():
        print_figures(responses, f"{config.init_from} on {config.split}")
        print(f"{len(responses)} responses: {workdir / DONE}")


if __name__ == "__main__":
    command.run(main, GenerateConfig)
