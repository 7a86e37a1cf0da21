"""Section 4: off-policy self-distillation, SFT on the model's own correct responses."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from sdistill.analysis.records import Cell, Record, Results
from sdistill.config import Kind
from sdistill.contexts import guided_content
from sdistill.data.catalogue import open_problems
from sdistill.experiments.study import Study, add_base, add_run
from sdistill.match import matched
from sdistill.storage import write_records
from sdistill.tasks.problem import Problem
from sdistill.types import Response

logger = logging.getLogger(__name__)

GUIDED: dict[str, Kind] = {"sft_guided": "answer", "sft_guided_solution": "solution"}
"""Condition → context that its training responses were sampled under."""


def sft_section(study: Study) -> list[Record]:
    """SFT on matched sets of unguided and guided correct responses, against the base."""
    config, results = study.config.sft, Results("sft")
    evaluation = config.train.evaluation
    assert evaluation is not None  # StudyConfig has checked
    for seed in study.config.seeds:
        add_base(study, results, seed, evaluation.datasets)
        for condition, source in matched_sets(study, seed).items():
            examples = dataclasses.replace(config.train.examples, source=str(source))
            run = dataclasses.replace(config.train, seed=seed, examples=examples)
            add_run(results, condition, seed, study.train("sft", condition, run))
    cells = [cell for cell in results.cells() if cell.condition != "base"]
    return results.records() + results.differences((c, Cell("base", 0, c.dataset)) for c in cells)


def matched_sets(study: Study, seed: int) -> dict[str, Path]:
    """Training sets of the same problems with as many correct responses each, under three contexts."""
    config = study.config.sft
    problems = open_problems(config.split, study.config.sdpo.data_dir)
    folder = study.workdir / "runs" / "sft" / "data" / f"seed{seed}"

    def responses(
        name: str, posed: Sequence[Problem], turns: Sequence[str | None]
    ) -> dict[str, list[Response]]:
        generations = study.generate(
            folder / f"{name}.jsonl.gz",
            posed,
            turns,
            num_samples=config.num_samples,
            seed=seed,
            stream=2,
            max_response_length=48,
        )
        correct: dict[str, list[Response]] = {p.id: [] for p in posed}
        for generation in generations:
            if generation.correct:
                correct[generation.problem].append(generation)
        return correct

    # Half as many problems again as would do if every one gave its full share.
    needed = -(-config.responses * 3 // (2 * config.per_problem))
    unguided = responses("unguided", problems[:needed], [None] * needed)
    solved = [p for p in problems[:needed] if unguided[p.id]]
    solutions = [unguided[p.id][0].text for p in solved]
    sets = {"sft_unguided": unguided}
    for condition, kind in GUIDED.items():
        context = dataclasses.replace(study.config.sdpo.teacher.context, kind=kind)
        turns = [guided_content(context, p, s) for p, s in zip(solved, solutions, strict=True)]
        sets[condition] = responses(kind, solved, turns)
    names = [p.id for p in solved]
    chosen = matched(sets, names, responses=config.responses, per_problem=config.per_problem)
    if len(chosen["sft_unguided"]) < config.responses:
        logger.warning(
            "section 4, seed %d: only %d matched responses instead of %d; raise sft.samples or per_problem",
            seed,
            len(chosen["sft_unguided"]),
            config.responses,
        )
    paths = {condition: folder / f"{condition}.jsonl.gz" for condition in sets}
    prompts = {p.id: study.chat.render(p.messages, thinking=True) for p in solved}
    for condition, path in paths.items():
        rows = [{"prompt": prompts[g.problem], "response": g.text} for g in chosen[condition]]
        write_records(path, rows)
    return paths
