"""Section 3: what richer contexts do to the responses of the base model, and of models trained since."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sdistill.analysis.records import Cell, Record, Results
from sdistill.config import ContextConfig, Kind
from sdistill.contexts import guided_content
from sdistill.data.catalogue import open_problems
from sdistill.experiments.config import StudyConfig
from sdistill.experiments.study import Study
from sdistill.generate import first_correct
from sdistill.model.decoder import Decoder
from sdistill.model.folders import load_model
from sdistill.settings import ConfigError
from sdistill.tasks.problem import Problem
from sdistill.tasks.signs_puzzle import problem_from_text
from sdistill.types import Response


@dataclass(frozen=True)
class Asked:
    """The problems of section 3, each with the response that contexts are made of."""

    problems: Sequence[Problem]
    solutions: Sequence[str]

    def turns(self, context: ContextConfig, shown: Sequence[str] | None = None) -> list[str]:
        """User turns that show something of these responses; another problem's comes from the next one."""
        pairs = [*zip(self.problems, shown or self.solutions, strict=True)]
        others = [*pairs[1:], pairs[0]] if context.kind == "other_problem" else pairs
        return [
            guided_content(context, problem, response, source)
            for problem, (source, response) in zip(self.problems, others, strict=True)
        ]

    def dial(self, study: Study[StudyConfig]) -> Iterator[tuple[str, Sequence[str | None]]]:
        """(Condition, user turns): no context, and from nothing of a solution to all of it."""
        config = study.config.richness
        yield "unguided", [None] * len(self.problems)
        fractions: Mapping[Kind, Sequence[float]] = {
            "partial": config.answer_fractions,
            "partial_solution": config.solution_fractions,
        }
        for kind, shares in fractions.items():
            for share in shares:
                yield f"{kind}_{round(100 * share)}", self.turns(context_of(study, kind, share))
        yield "answer", self.turns(context_of(study, "answer"))
        yield "solution", self.turns(context_of(study, "solution"))


def context_of(study: Study[StudyConfig], kind: Kind, fraction: float | None = None) -> ContextConfig:
    """A context in the study's templates."""
    return replace(study.config.sdpo.teacher.context, kind=kind, fraction=fraction)


def richness_section(study: Study[StudyConfig]) -> list[Record]:
    """Each context's accuracy, length, words and measured richness on problems the base half knows."""
    asked, results, samples = posed(study), Results("richness"), study.config.richness.num_samples
    for condition, turns in asked.dial(study):
        guided = answer(study, results, condition, asked.problems, turns)
    groups = [guided[i : i + samples] for i in range(0, len(guided), samples)]  # of the last, `solution`
    again = [first_correct(group) or group[0].text for group in groups]
    answer(study, results, "regenerated", asked.problems, asked.turns(context_of(study, "solution"), again))
    if len(asked.problems) > 1:
        turns = asked.turns(context_of(study, "other_problem"))
        answer(study, results, "other_problem", asked.problems, turns)
    cells = results.cells()
    return results.records() + results.differences((a, b) for a in cells for b in cells if a != b)


def trained_richness_section(study: Study[StudyConfig]) -> list[Record]:
    """The same of models that section 5 trained, against each one's own responses without a context.

    They are asked the problems that the base half knows, and shown the base's solutions.
    """
    asked, results, seed = posed(study), Results("trained_richness"), study.config.seeds[0]
    pairs = []
    for name in study.config.richness.models:
        model = load_model(study.directory("on_policy", name, seed) / "model")
        for context, turns in asked.dial(study):
            answer(study, results, f"{name}@{context}", asked.problems, turns, model)
            if context != "unguided":
                pairs.append((Cell(f"{name}@{context}", 0, "walk"), Cell(f"{name}@unguided", 0, "walk")))
    return results.records() + results.differences(pairs)


def answer(
    study: Study[StudyConfig],
    results: Results,
    condition: str,
    problems: Sequence[Problem],
    turns: Sequence[str | None],
    model: Decoder | None = None,
) -> list[Response]:
    """Fresh responses to these user turns, with their measured richness, added to the results."""
    seed = study.config.seeds[0]
    generations = study.generate(
        study.directory(results.section, condition, seed) / "walk-000000.jsonl.gz",
        problems,
        turns,
        num_samples=study.config.richness.num_samples,
        seed=seed,
        stream=1,
        max_response_length=112,
        with_bits=True,
        model=model,
    )
    results.add(Cell(condition, 0, "walk"), seed, generations)
    return generations


def posed(study: Study[StudyConfig]) -> Asked:
    """What is asked: the problems of the walk, with the first correct response to each."""
    config, kept = study.config.richness, walk(study)
    if not kept:
        raise ConfigError(
            f"no problem of {', '.join(config.splits)} had {config.min_correct} to {config.max_correct} of "
            f"{config.walk_samples} responses right; widen richness.min_correct and max_correct"
        )
    problems = [problem_from_text(group[0].problem) for group in kept]
    return Asked(problems, [first_correct(group) or group[0].text for group in kept])


def walk(study: Study[StudyConfig]) -> list[list[Response]]:
    """The responses to each kept problem, walking the splits in order until there are enough."""
    config, seed = study.config.richness, study.config.seeds[0]
    splits = [open_problems(split, study.config.sdpo.data_dir) for split in config.splits]
    order = [problem for problems in zip(*splits, strict=False) for problem in problems]
    kept: list[list[Response]] = []
    stride = 128
    for start in range(0, len(order), stride):
        problems = order[start : start + stride]
        generations = study.generate(
            study.workdir / "runs" / "richness" / "walk" / f"{start:06d}.jsonl.gz",
            problems,
            [None] * len(problems),
            num_samples=config.walk_samples,
            seed=seed,
            max_response_length=112,
        )
        for i in range(0, len(generations), config.walk_samples):
            group = generations[i : i + config.walk_samples]
            if config.min_correct <= sum(g.correct for g in group) <= config.max_correct:
                kept.append(group)
        if len(kept) >= config.num_problems:
            return kept[: config.num_problems]
    return kept
