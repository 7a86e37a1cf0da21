"""Section 4: off-policy self-distillation, SFT on the model's own correct responses.

The training sets differ in the context that their responses were sampled under, and in nothing else. Measured
are accuracy, length and epistemic words after training, and their paired differences to the base.
"""

import logging
from dataclasses import replace
from pathlib import Path

from sdistill.analysis.measure import BASE, Cell, Results
from sdistill.config import Kind
from sdistill.data.catalogue import open_problems
from sdistill.experiments.config import StudyConfig, evaluation_of
from sdistill.experiments.study import Study
from sdistill.generate import Prompted, guided_prompts
from sdistill.match import matched
from sdistill.sample import queries_for
from sdistill.storage import write_records
from sdistill.types import Condition, Measurement, Response, group_by_problem

logger = logging.getLogger(__name__)

GUIDED: tuple[Kind, ...] = ("answer", "solution")
"""Contexts that training responses are sampled under, besides none."""


def sft_section(study: Study[StudyConfig]) -> list[Measurement]:
    """SFT on matched sets of unguided and guided correct responses, against the base."""
    config, results = study.config.sft.train, Results("sft")
    for seed in study.config.seeds:
        study.add_base(results, seed, evaluation_of(config, "sft.train").datasets, "on_policy")
        for condition, source in _matched_sets(study, seed).items():
            examples = replace(config.examples, source=str(source))
            study.train(results, condition, replace(config, seed=seed, examples=examples))
    return results.measurements(lambda cell: [Cell(BASE, 0, cell.dataset)])


def _matched_sets(study: Study[StudyConfig], seed: int) -> dict[Condition, Path]:
    """Training sets of the same problems with as many correct responses each, under three contexts."""
    config = study.config.sft
    folder = study.workdir / "runs" / "sft" / "data" / f"seed{seed}"

    def correct(name: str, prompts: list[Prompted]) -> dict[str, list[Response]]:
        """Problem → its correct responses, among those sampled."""
        problems, contents = zip(*prompts, strict=True)
        queries = queries_for(problems, config.num_samples, contents)
        path = folder / f"{name}.jsonl.gz"
        responses = study.respond(path, queries, max_response_length=48, seed=seed, step=2)
        return group_by_problem(response for response in responses if response.correct)

    # Sample without a context. Half as many problems again as would do if every one gave its full share.
    needed = -(-config.responses * 3 // (2 * config.per_problem))
    problems = open_problems(config.split, study.config.sdpo.data_dir)[:needed]
    sets = {"none": correct("none", [(problem, None) for problem in problems])}
    # Sample under contexts made of the first correct response.
    solved = [(p, sets["none"][p.id][0].text) for p in problems if p.id in sets["none"]]
    for kind in GUIDED:
        sets[kind] = correct(
            kind, guided_prompts(replace(study.config.sdpo.teacher.context, kind=kind), solved)
        )
    # Take as many responses to each problem from every set.
    names = [problem.id for problem, _ in solved]
    chosen = matched(sets, names, responses=config.responses, per_problem=config.per_problem)
    if (count := len(chosen["none"])) < config.responses:
        logger.warning(
            "section 4, seed %d: only %d matched responses instead of %d; raise sft.num_samples or "
            "sft.per_problem",
            seed,
            count,
            config.responses,
        )
    plain = {problem.id: study.chat.render(problem.messages, thinking=True) for problem, _ in solved}
    paths = {Condition("sft", kind): folder / f"sft_{kind}.jsonl.gz" for kind in sets}
    for path, responses in zip(paths.values(), chosen.values(), strict=True):
        write_records(path, [{"prompt": plain[r.problem], "response": r.text} for r in responses])
    return paths
