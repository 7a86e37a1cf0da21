"""Section 4: off-policy self-distillation, SFT on the model's own correct responses.

The training sets differ in the context that their responses were sampled under, and in nothing else. Measured
are accuracy, length and epistemic words after training, and their paired differences to the base.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sdistill.analysis.measure import BASE, Cell, Results
from sdistill.config import Kind
from sdistill.contexts import guided_content
from sdistill.data.catalogue import open_problems
from sdistill.experiments.config import StudyConfig
from sdistill.experiments.study import Study, add_base, add_run
from sdistill.match import matched
from sdistill.storage import write_records
from sdistill.tasks.problem import Problem
from sdistill.types import Condition, Measurement, Response

logger = logging.getLogger(__name__)

GUIDED: tuple[Kind, ...] = ("answer", "solution")
"""Contexts that training responses were sampled under, besides none."""


def sft_section(study: Study[StudyConfig]) -> list[Measurement]:
    """SFT on matched sets of unguided and guided correct responses, against the base."""
    config, results = study.config.sft, Results("sft")
    evaluation, examples = config.train.evaluation, config.train.examples
    assert evaluation is not None  # StudyConfig has checked
    for seed in study.config.seeds:
        add_base(study, results, seed, evaluation.datasets)
        for condition, source in matched_sets(study, seed).items():
            run = replace(config.train, seed=seed, examples=replace(examples, source=str(source)))
            add_run(results, condition, seed, study.train("sft", condition, run))
    cells = [cell for cell in results.cells() if cell.condition != BASE]
    return results.measurements() + results.differences((c, Cell(BASE, 0, c.dataset)) for c in cells)


def matched_sets(study: Study[StudyConfig], seed: int) -> dict[Condition, Path]:
    """Training sets of the same problems with as many correct responses each, under three contexts."""
    config = study.config.sft
    problems = open_problems(config.split, study.config.sdpo.data_dir)
    folder = study.workdir / "runs" / "sft" / "data" / f"seed{seed}"

    def correct(
        name: str, problems: Sequence[Problem], contents: Sequence[str | None]
    ) -> dict[str, list[Response]]:
        """Problem → its correct responses, among those sampled with these user turns."""
        responses = study.generate(
            folder / f"{name}.jsonl.gz",
            problems,
            contents,
            num_samples=config.num_samples,
            seed=seed,
            stream=2,
            max_response_length=48,
        )
        found: dict[str, list[Response]] = {p.id: [] for p in problems}
        for response in responses:
            if response.correct:
                found[response.problem].append(response)
        return found

    # Half as many problems again as would do if every one gave its full share.
    needed = -(-config.responses * 3 // (2 * config.per_problem))
    unguided = correct("none", problems[:needed], [None] * needed)
    solved = [p for p in problems[:needed] if unguided[p.id]]
    solutions = [unguided[p.id][0].text for p in solved]
    sets = {"none": unguided}
    for kind in GUIDED:
        context = replace(study.config.sdpo.teacher.context, kind=kind)
        turns = [guided_content(context, p, s) for p, s in zip(solved, solutions, strict=True)]
        sets[kind] = correct(kind, solved, turns)
    names = [p.id for p in solved]
    chosen = matched(sets, names, responses=config.responses, per_problem=config.per_problem)
    if (count := len(chosen["none"])) < config.responses:
        logger.warning(
            "section 4, seed %d: only %d matched responses instead of %d; raise sft.num_samples or "
            "sft.per_problem",
            seed,
            count,
            config.responses,
        )
    prompts = {p.id: study.chat.render(p.messages, thinking=True) for p in solved}
    paths = {Condition("sft", kind): folder / f"sft_{kind}.jsonl.gz" for kind in sets}
    for path, responses in zip(paths.values(), chosen.values(), strict=True):
        write_records(path, [{"prompt": prompts[r.problem], "response": r.text} for r in responses])
    return paths
