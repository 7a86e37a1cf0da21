"""Section 3: what richer contexts do to the responses of the base model, and of models trained since.

The problems are those of a walk over the splits that the base solves sometimes. Measured are accuracy,
length, epistemic words and richness in bits of fresh responses under each context, and paired differences
between contexts.
"""

from collections.abc import Sequence
from dataclasses import replace

from sdistill.analysis.measure import BASE, Cell, Results
from sdistill.config import Kind
from sdistill.data.catalogue import open_problems
from sdistill.experiments.config import StudyConfig
from sdistill.experiments.study import Study
from sdistill.generate import Prompted, first_correct, guided_prompts, strides
from sdistill.model.decoder import Decoder
from sdistill.model.weights import load_model
from sdistill.sample import queries_for
from sdistill.settings import ConfigError
from sdistill.storage import responses_file
from sdistill.tasks.problem import Problem
from sdistill.tasks.signs_puzzle import problem_from_text
from sdistill.types import Condition, Measurement, Response

Solved = Sequence[tuple[Problem, str]]
"""Problems, each with the response that its contexts are made of."""


def richness_section(study: Study[StudyConfig]) -> list[Measurement]:
    """Every context on the base, and all differences between contexts."""
    config, results, solved = study.config, Results("richness"), _walk(study)
    # Responses under the full solution, the last context, are solutions themselves.
    guided = _respond_by_richness(study, results, BASE, solved)
    groups = strides(guided, config.richness.num_samples)
    again = [(problem, _solution(group)) for (problem, _), group in zip(solved, groups, strict=True)]
    _respond(study, results, replace(BASE, prompt="regenerated"), _prompts(config, again, "solution"))
    if len(solved) > 1:
        prompts = _prompts(config, solved, "other_problem")
        _respond(study, results, replace(BASE, prompt="other_problem"), prompts)
    return results.measurements(lambda cell: [other for other in results.cells() if other != cell])


def trained_richness_section(study: Study[StudyConfig]) -> list[Measurement]:
    """The same of models that section 5 trained, each against its own responses without a context.

    They get the problems that the base solves sometimes, and the base's solutions.
    """
    config, results, solved = study.config, Results("trained_richness"), _walk(study)
    for label in config.richness.models:
        trained = config.conditions()[label]
        model = load_model(study.directory("on_policy", trained, config.seeds[0]) / "model")
        _respond_by_richness(study, results, trained, solved, model)

    def plain(cell: Cell) -> list[Cell]:
        unguided = replace(cell.condition, prompt="none", fraction=None)
        return [] if unguided == cell.condition else [replace(cell, condition=unguided)]

    return results.measurements(plain)


def _respond_by_richness(
    study: Study[StudyConfig],
    results: Results,
    trained: Condition,
    solved: Solved,
    model: Decoder | None = None,
) -> list[Response]:
    """Responses without a context, then from nothing of a solution to all of it; returns the last."""
    config = study.config.richness
    contexts: list[tuple[Kind, float | None]] = [
        *(("partial", share) for share in config.answer_fractions),
        *(("partial_solution", share) for share in config.solution_fractions),
        ("answer", None),
        ("solution", None),
    ]
    plain: list[Prompted] = [(problem, None) for problem, _ in solved]
    responses = _respond(study, results, replace(trained, prompt="none"), plain, model)
    for kind, share in contexts:
        condition = replace(trained, prompt=kind, fraction=share)
        prompts = _prompts(study.config, solved, kind, share)
        responses = _respond(study, results, condition, prompts, model)
    return responses


def _prompts(
    config: StudyConfig, solved: Solved, kind: Kind, fraction: float | None = None
) -> Sequence[Prompted]:
    return guided_prompts(replace(config.sdpo.teacher.context, kind=kind, fraction=fraction), solved)


def _respond(
    study: Study[StudyConfig],
    results: Results,
    condition: Condition,
    prompts: Sequence[Prompted],
    model: Decoder | None = None,
) -> list[Response]:
    """Fresh responses to these prompts, with their measured richness, added to the results."""
    seed = study.config.seeds[0]
    problems, contents = zip(*prompts, strict=True)
    responses = study.respond(
        responses_file(study.directory(results.section, condition, seed), "walk", 0),
        queries_for(problems, study.config.richness.num_samples, contents),
        max_response_length=112,
        seed=seed,
        step=1,
        model=model,
        with_bits=True,
    )
    results.add(Cell(condition, 0, "walk"), seed, responses)
    return responses


def _walk(study: Study[StudyConfig]) -> Solved:
    """The problems that the walk over the splits, in turns, keeps; each with a response to it."""
    config, seed = study.config.richness, study.config.seeds[0]
    splits = [open_problems(split, study.config.sdpo.data_dir) for split in config.splits]
    order = [problem for problems in zip(*splits, strict=False) for problem in problems]
    kept: list[Sequence[Response]] = []
    for number, problems in enumerate(strides(order, config.walk.stride)):
        responses = study.respond(
            study.workdir / "runs" / "richness" / "walk" / f"{number * config.walk.stride:06d}.jsonl.gz",
            queries_for(problems, config.walk_samples),
            max_response_length=112,
            seed=seed,
        )
        kept += [group for group in strides(responses, config.walk_samples) if config.walk.keeps(group)]
        if len(kept) >= config.walk.num_problems:
            break
    if not kept:
        raise ConfigError(
            f"no problem of {', '.join(config.splits)} had {config.walk.min_correct} to "
            f"{config.walk.max_correct} of {config.walk_samples} correct responses; widen "
            "richness.walk.min_correct and richness.walk.max_correct"
        )
    return [
        (problem_from_text(group[0].problem), _solution(group)) for group in kept[: config.walk.num_problems]
    ]


def _solution(group: Sequence[Response]) -> str:
    """The first correct response, or the first one if none is."""
    return first_correct(group) or group[0].text
