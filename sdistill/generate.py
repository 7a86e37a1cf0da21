"""Samples responses to problems, with or without a context, verifies them, and keeps them.

    python -m sdistill.generate --config configs/signs/generate.py --workdir runs/plain
    python -m sdistill.generate --config configs/signs/generate.py:solution --workdir runs/guided

What a run directory holds:

    config.json             resolved settings; a generation is only continued under the same ones
    journal-0.jsonl         one record a response, in the order in which they ended, while it runs; each of
                            several processes has one
    responses.jsonl.gz      the same in the order of problems and samples, when all are there
    passed_over.jsonl.gz    those to problems that a walk did not keep

A response depends on its settings, problem and number only. So a generation that was interrupted continues
with those that are missing, and ends with the same files. Of several processes each verifies its share.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from flax import nnx
from rich.progress import Progress

from sdistill import command
from sdistill.contexts import ContextConfig, guided_content
from sdistill.data.catalogue import open_problems, task_of
from sdistill.distributed.mesh import MeshConfig
from sdistill.distributed.processes import check_agreement, is_writer, share_of
from sdistill.engine.engine import SlotEngine
from sdistill.engine.model import CachedDecoder
from sdistill.engine.programs import Finish
from sdistill.engine.progress import follow
from sdistill.engine.sampling import Sampling
from sdistill.engine.types import Completion, Request, StopFunction
from sdistill.engine_mesh import sampling_mesh
from sdistill.evaluate import judge, print_figures, requests_for
from sdistill.model.config import ComputeConfig
from sdistill.model.folders import load_chat, load_model
from sdistill.settings import ConfigError, parse, require, require_positive, to_json
from sdistill.storage import (
    CONFIG_FILE,
    Journal,
    check_workdir,
    read_responses,
    write_atomically,
    write_responses,
)
from sdistill.tasks.problem import Problem, Task
from sdistill.text.chat import Chat
from sdistill.text.stop import StopStrings
from sdistill.text.tokenizer import check_vocabulary
from sdistill.types import Response

JOURNAL, DONE, PASSED_OVER = "journal.jsonl", "responses.jsonl.gz", "passed_over.jsonl.gz"
JUDGES = 4  # threads that wait for verdicts while others decode

Turn = tuple[Problem, str]
"""A problem, and the user turn that poses it."""


@dataclass(frozen=True)
class WalkConfig:
    """Keeps the first problems of the data whose responses are neither all right nor all wrong.

    Attributes:
      problems: To keep; then the walk is over.
      min_correct: Correct responses to a problem that is kept, at least.
      max_correct: The same, at most.
      stride: Problems that are answered together before it is seen whether there are enough.
    """

    problems: int
    min_correct: int
    max_correct: int
    stride: int = 64

    def __post_init__(self) -> None:
        require_positive(self, "problems", "stride")
        require(
            0 <= self.min_correct <= self.max_correct,
            f"min_correct={self.min_correct} must be 0 to max_correct={self.max_correct}",
        )


@dataclass(frozen=True)
class GenerateConfig:
    """One generation.

    Attributes:
      split: Problems to answer, a name of `datasets.catalogue`.
      samples: Responses a problem.
      max_prompt: Tokens of a prompt, at most.
      max_response: Tokens after which a response is cut.
      problems: Only the first so many of the split; None for all.
      init_from: The model: `signs_base` (shipped), a model folder, or a name of Hugging Face's.
      tokenizer: Where its tokenizer and chat template are, in the same terms; None for those of the model.
      dtype: Type of the weights, of the activations and of the cache.
      walk: Which problems to keep, and when to stop; None to answer and keep all.
      after: Directory of an earlier generation. Only its problems are posed, in its order.
      context: What is shown besides the problem, from the first correct response to it in `after`; None for
        nothing. Problems without one are left out, and counted.
      first_if_none: Where no response is correct, the first one is shown: how the authors' code chains
        rounds. No problem is left out then.
      sampling: How tokens are drawn.
      thinking: Whether the prompt asks for thinking, where there is no context; that has its own setting.
      stop: Strings that end a response, besides the model's own stop tokens.
      stop_on_error: End the generation when a model's logits are not numbers; else such responses are
        kept, with finish `error`.
      slots: Responses decoded at a time.
      seed: Of all sampling.
      mesh: Sizes of the device mesh; None for one over all devices that suits the model.
      data_dir: Where data sets are prepared; None for the TFDS default.
    """

    split: str
    samples: int
    max_prompt: int
    max_response: int
    problems: int | None = None
    init_from: str = "signs_base"
    tokenizer: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    walk: WalkConfig | None = None
    after: str | None = None
    context: ContextConfig | None = None
    first_if_none: bool = False
    sampling: Sampling = field(default_factory=Sampling)
    thinking: bool = True
    stop: tuple[str, ...] = ()
    stop_on_error: bool = True
    slots: int = 256
    seed: int = 0
    mesh: MeshConfig | None = field(default_factory=MeshConfig)
    data_dir: str | None = None

    def __post_init__(self) -> None:
        require_positive(self, "samples", "max_prompt", "max_response", "slots")
        require(self.problems is None or self.problems > 0, f"problems={self.problems} must be positive")
        require(
            self.context is None or self.after is not None, "context needs after, where solutions are from"
        )
        require(
            self.context is None or self.context.feedback is None,
            "context.feedback has no effect here: a response that is yet to be sampled has none",
        )
        require(
            not self.first_if_none or self.context is not None,
            "first_if_none=True has no effect without context",
        )
        require(
            self.walk is None or self.walk.max_correct <= self.samples,
            f"walk.max_correct must be at most samples={self.samples}",
        )

    @property
    def compute(self) -> ComputeConfig:
        """How the model is computed: in the type of its weights."""
        return ComputeConfig(dtype=self.dtype)


def generate(config: GenerateConfig, workdir: Path, *, progress: Progress | None = None) -> list[Response]:
    """Makes, or completes, the generation that `config` describes; returns what is kept.

    Raises:
      ConfigError: before any work, if the settings cannot be used or `workdir` belongs to others.
      FloatingPointError: naming problem and sample, if logits are not numbers and the settings want that.
    """
    check_agreement(to_json(config))
    check_workdir(workdir, to_json(config))
    if (workdir / DONE).exists():
        return read_responses(workdir / DONE)
    chat = load_chat(config.tokenizer or config.init_from)
    turns = posed(config)
    sampler = Answerer.of(config, chat)
    requests = sampler.requests(turns)  # all of them, so that nothing is refused late
    write_atomically(workdir / CONFIG_FILE, to_json(config).encode())  # all is well: the directory is ours

    progress = progress or Progress(disable=True)
    kept: list[list[Response]] = []
    passed_over: list[list[Response]] = []
    journal = Journal(workdir / JOURNAL)
    with task_of(config.split) as task:
        for start, count in strides(config, len(turns)):
            part = slice(start * config.samples, (start + count) * config.samples)
            problems = [problem for problem, _ in turns[start : start + count]]
            for group in sampler.answer(problems, requests[part], task, journal, progress, workdir.name):
                (kept if is_kept(config.walk, group) else passed_over).append(group)
            if config.walk is not None and len(kept) >= config.walk.problems:
                passed_over += kept[config.walk.problems :]
                kept = kept[: config.walk.problems]
                break
    journal.close()
    if not kept:
        raise ConfigError(
            f"none of the {len(passed_over)} problems of split={config.split!r} had walk.min_correct to "
            "walk.max_correct of its responses right; widen them, or take a better model"
        )
    if passed_over:
        write_responses(workdir / PASSED_OVER, (record for group in passed_over for record in group))
    generations = [record for group in kept for record in group]
    write_responses(workdir / DONE, generations)
    journal.remove()
    return generations


def strides(config: GenerateConfig, count: int) -> Iterator[tuple[int, int]]:
    """(First problem, how many) of what is answered together."""
    stride = config.walk.stride if config.walk else count
    return ((start, min(stride, count - start)) for start in range(0, count, stride))


def is_kept(walk: WalkConfig | None, group: Sequence[Response]) -> bool:
    """Whether the problem that these are the responses to is kept."""
    return walk is None or walk.min_correct <= sum(r.correct for r in group) <= walk.max_correct


@dataclass(frozen=True)
class Answerer:
    """A model that answers, and what it takes to keep its answers."""

    config: GenerateConfig
    chat: Chat
    engine: SlotEngine
    params: nnx.State
    stop: StopFunction | None

    @classmethod
    def of(cls, config: GenerateConfig, chat: Chat) -> "Answerer":
        """Loads the model."""
        stop = StopStrings(chat.tokenizer, config.stop) if config.stop else None
        mesh = sampling_mesh(
            config.mesh,
            config.init_from,
            config.compute,
            slots=config.slots,
            max_prompt=config.max_prompt,
            max_response=config.max_response,
        )
        model = load_model(config.init_from, mesh=mesh, dtype=config.dtype)
        check_vocabulary(chat.tokenizer, model.config.vocab_size)
        engine = SlotEngine(
            CachedDecoder(replace(model.config, compute=config.compute)),
            mesh=mesh,
            stop_ids=chat.tokenizer.stop_ids,
            slots=config.slots,
            max_prompt=config.max_prompt,
            max_response=config.max_response,
        )
        return cls(config, chat, engine, nnx.state(model, nnx.Param), stop)

    def requests(self, turns: Sequence[Turn]) -> list[Request]:
        """What is asked, problem by problem."""
        config = self.config
        thinking = config.context.thinking if config.context else config.thinking
        problems, contents = zip(*turns, strict=True)
        requests = requests_for(
            problems, contents, self.chat, config.samples, config.sampling, thinking=thinking
        )
        longest = max(requests, key=lambda request: len(request.prompt))
        require(
            len(longest.prompt) <= config.max_prompt,
            f"max_prompt={config.max_prompt}: that of {longest.problem!r} has {len(longest.prompt)} tokens",
        )
        return requests

    def answer(
        self,
        problems: Sequence[Problem],
        requests: Sequence[Request],
        task: Task,
        journal: Journal,
        progress: Progress,
        name: str,
    ) -> list[list[Response]]:
        """The responses to each problem; those that the journal lacks are sampled, and judged meanwhile.

        By all processes, each of which judges its share.
        """
        known = {(record["problem"], record["sample"]) for record in journal.records}
        samples = self.config.samples
        missing = [
            (problems[i // samples], request)
            for i, request in enumerate(requests)
            if (request.problem, request.sample) not in known
        ]
        if missing:
            self._sample(missing, task, journal, progress, name)
            journal.share()
        found = {(record["problem"], record["sample"]): record for record in journal.records}
        responses = [Response.from_json(found[request.problem, request.sample]) for request in requests]
        return [responses[i : i + samples] for i in range(0, len(responses), samples)]

    def _sample(
        self,
        missing: Sequence[tuple[Problem, Request]],
        task: Task,
        journal: Journal,
        progress: Progress,
        name: str,
    ) -> None:
        bar = progress.add_task(name, total=len(missing))
        mine = missing[share_of(len(missing))]
        verdicts: list[Future[None]] = []

        def keep(problem: Problem, request: Request, response: Completion) -> None:
            judged = judge(problem, request, response.ids.tolist(), response.finish, self.chat, task)
            journal.add(judged.to_json())

        with ThreadPoolExecutor(JUDGES) as judges:

            def ended(index: int, response: Completion) -> None:
                self._check_finite(mine[index][1], response)
                verdicts.append(judges.submit(keep, *mine[index], response))

            self.engine.generate(
                self.params,
                [request for _, request in mine],
                seed=self.config.seed,
                step=0,
                stop=self.stop,
                on_completion=ended,
                progress=follow(progress, bar, name),
            )
        for verdict in verdicts:
            verdict.result()  # raises what went wrong in its thread
        progress.remove_task(bar)

    def _check_finite(self, request: Request, response: Completion) -> None:
        if response.finish == Finish.ERROR and self.config.stop_on_error:
            raise FloatingPointError(
                f"logits of {request.problem!r}, sample {request.sample} are no numbers after "
                f"{len(response.ids)} tokens; look at the weights of init_from={self.config.init_from!r}, or "
                "set stop_on_error=False to go on without such responses"
            )


def posed(config: GenerateConfig) -> list[Turn]:
    """The problems, and the user turns that pose them."""
    problems = open_problems(config.split, config.data_dir)[: config.problems]
    if config.after is None:
        return [(problem, problem.messages[-1]["content"]) for problem in problems]
    earlier = responses_by_problem(Path(config.after))
    by_id = {problem.id: problem for problem in problems}
    answered = [by_id[name] for name in earlier if name in by_id]
    if config.context is None:
        require(bool(answered), f"after={config.after!r} holds no problem of split={config.split!r}")
        return [(problem, problem.messages[-1]["content"]) for problem in answered]
    shown = {name: first_correct(group) for name, group in earlier.items()}
    if config.first_if_none:
        shown = {name: shown[name] or group[0].text for name, group in earlier.items()}
    solved = [(problem, text) for problem in answered if (text := shown[problem.id]) is not None]
    if not solved:
        raise ConfigError(
            f"after={config.after!r} holds no correct response to a problem of split={config.split!r}; "
            "generate there first, without a context, or from a better model"
        )
    if len(solved) < len(answered):
        print(f"{len(answered) - len(solved)} of {len(answered)} problems have no correct response: left out")
    if config.context.kind != "other_problem":
        return [(problem, guided_content(config.context, problem, text)) for problem, text in solved]
    require(len(solved) > 1, "context.kind='other_problem' needs two solved problems; give more problems")
    others = [*solved[1:], solved[0]]
    return [
        (problem, guided_content(config.context, problem, text, other))
        for (problem, _), (other, text) in zip(solved, others, strict=True)
    ]


def responses_by_problem(directory: Path, file: str = DONE) -> dict[str, list[Response]]:
    """The responses to each problem, of a generation that is complete, in its order.

    Args:
      directory: Of the generation.
      file: Those that were kept, or `PASSED_OVER`.

    Raises:
      ConfigError: if it is not complete.
    """
    if not (directory / DONE).exists():
        raise ConfigError(f"{str(directory)!r} has no {DONE}; finish that generation first")
    groups: dict[str, list[Response]] = {}
    for record in read_responses(directory / file):
        groups.setdefault(record.problem, []).append(record)
    return groups


def first_correct(group: Sequence[Response]) -> str | None:
    """The first correct response of those to a problem, if there is one."""
    return next((response.text for response in group if response.correct), None)


def main(values: dict[str, Any], workdir: Path) -> None:
    """Generates, and prints a table."""
    config = parse(GenerateConfig, values)
    with Progress() as progress:
        generations = generate(config, workdir, progress=progress)
    if is_writer():
        print_figures(generations, f"{config.init_from} on {config.split}")
        print(f"{len(generations)} responses: {workdir / DONE}")


if __name__ == "__main__":
    command.run(main)
