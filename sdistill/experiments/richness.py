"""Section 3: what richer contexts do to the responses of the base model, and of models trained since.

The problems are those of a walk over the splits that the base solves sometimes. Measured are accuracy,
length, epistemic words and richness in bits of fresh responses under each context, and paired differences
between contexts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sdistill.analysis.measure import BASE, Cell, Results
from sdistill.config import Kind
from sdistill.data.catalogue import open_problems
from sdistill.experiments.config import StudyConfig
from sdistill.experiments.study import Study
from sdistill.generate import first_correct, guided_prompts
from sdistill.model.decoder import Decoder
from sdistill.model.folders import load_model
from sdistill.settings import ConfigError
from sdistill.tasks.problem import Problem
from sdistill.tasks.signs_puzzle import problem_from_text
from sdistill.types import Condition, Measurement, Response


@dataclass(frozen=True)
class Prompts:
    """The problems of section 3, each with the response that its contexts are made of.

    Attributes:
      config: Of the study.
      problems: That the base solves sometimes.
      solutions: A response to each.
    """

    config: StudyConfig
    problems: Sequence[Problem]
    solutions: Sequence[str]

    def contents(
        self, kind: Kind, fraction: float | None = None, solutions: Sequence[str] | None = None
    ) -> list[str | None]:
        """User turns with a context from these solutions."""
        context = replace(self.config.sdpo.teacher.context, kind=kind, fraction=fraction)
        solved = list(zip(self.problems, solutions or self.solutions, strict=True))
        return [content for _, content in guided_prompts(context, solved)]

    def by_richness(self, model: Condition) -> Iterator[tuple[Condition, list[str | None]]]:
        """(Condition, user turns): no context, then from nothing of a solution to all of it."""
        yield replace(model, prompt="none"), [None] * len(self.problems)
        fractions: Mapping[Kind, Sequence[float]] = {
            "partial": self.config.richness.answer_fractions,
            "partial_solution": self.config.richness.solution_fractions,
        }
        for kind, shares in fractions.items():
            for share in shares:
                yield replace(model, prompt=kind, fraction=share), self.contents(kind, share)
        yield replace(model, prompt="answer"), self.contents("answer")
        yield replace(model, prompt="solution"), self.contents("solution")


def richness_section(study: Study[StudyConfig]) -> list[Measurement]:
    """Every context on the base, and all differences between contexts."""
    prompts, results, samples = _prompts(study), Results("richness"), study.config.richness.num_samples
    for condition, contents in prompts.by_richness(BASE):
        guided = _respond(study, results, condition, prompts.problems, contents)
    groups = [guided[i : i + samples] for i in range(0, len(guided), samples)]  # of the last, `solution`
    again = [first_correct(group) or group[0].text for group in groups]
    others = {"regenerated": prompts.contents("solution", solutions=again)}
    if len(prompts.problems) > 1:
        others["other_problem"] = prompts.contents("other_problem")
    for prompt, contents in others.items():
        _respond(study, results, Condition("base", prompt=prompt), prompts.problems, contents)
    cells = results.cells()
    return results.measurements() + results.differences((a, b) for a in cells for b in cells if a != b)


def trained_richness_section(study: Study[StudyConfig]) -> list[Measurement]:
    """The same of models that section 5 trained, each against its own responses without a context.

    They get the problems that the base solves sometimes, and the base's solutions.
    """
    prompts, results, seed = _prompts(study), Results("trained_richness"), study.config.seeds[0]
    pairs = []
    for trained in study.config.richness_models():
        model = load_model(study.directory("on_policy", trained, seed) / "model")
        plain, *guided = prompts.by_richness(trained)
        for condition, contents in (plain, *guided):
            _respond(study, results, condition, prompts.problems, contents, model)
        pairs += [(Cell(condition, 0, "walk"), Cell(plain[0], 0, "walk")) for condition, _ in guided]
    return results.measurements() + results.differences(pairs)


def _respond(
    study: Study[StudyConfig],
    results: Results,
    condition: Condition,
    problems: Sequence[Problem],
    contents: Sequence[str | None],
    model: Decoder | None = None,
) -> list[Response]:
    """Fresh responses to these user turns, with their measured richness, added to the results."""
    seed = study.config.seeds[0]
    responses = study.generate(
        study.directory(results.section, condition, seed) / "walk-000000.jsonl.gz",
        problems,
        contents,
        num_samples=study.config.richness.num_samples,
        seed=seed,
        stream=1,
        max_response_length=112,
        with_bits=True,
        model=model,
    )
    results.add(Cell(condition, 0, "walk"), seed, responses)
    return responses


def _prompts(study: Study[StudyConfig]) -> Prompts:
    """The problems that a walk keeps, with the first correct response to each."""
    config, kept = study.config.richness, _walk(study)
    if not kept:
        raise ConfigError(
            f"no problem of {', '.join(config.splits)} had {config.min_correct} to {config.max_correct} of "
            f"{config.walk_samples} responses right; widen richness.min_correct and max_correct"
        )
    problems = [problem_from_text(group[0].problem) for group in kept]
    return Prompts(study.config, problems, [first_correct(group) or group[0].text for group in kept])


def _walk(study: Study[StudyConfig]) -> list[list[Response]]:
    """The responses to each kept problem, walking the splits in turns until there are enough."""
    config, seed = study.config.richness, study.config.seeds[0]
    splits = [open_problems(split, study.config.sdpo.data_dir) for split in config.splits]
    order = [problem for problems in zip(*splits, strict=False) for problem in problems]
    kept: list[list[Response]] = []
    stride = 128
    for start in range(0, len(order), stride):
        problems = order[start : start + stride]
        responses = study.generate(
            study.workdir / "runs" / "richness" / "walk" / f"{start:06d}.jsonl.gz",
            problems,
            [None] * len(problems),
            num_samples=config.walk_samples,
            seed=seed,
            max_response_length=112,
        )
        for i in range(0, len(responses), config.walk_samples):
            group = responses[i : i + config.walk_samples]
            if config.min_correct <= sum(r.correct for r in group) <= config.max_correct:
                kept.append(group)
        if len(kept) >= config.num_problems:
            break
    return kept[: config.num_problems]
