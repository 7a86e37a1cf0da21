"""Sections 5 and 6, SDPO against GRPO on all problems and on few; and the published fixes on top of both.

Measured are accuracy, length and epistemic words of every evaluation, their paired differences to the base
and between the runs, and the training metrics.
"""

from collections.abc import Iterator
from dataclasses import replace

from sdistill.analysis.measure import BASE, Cell, Results
from sdistill.experiments.config import FixesConfig, Runs, StudyConfig
from sdistill.experiments.study import Study, name_of
from sdistill.types import Condition, Measurement


def runs(config: StudyConfig, seed: int, num_problems: int | None) -> Runs:
    """The training runs of section 5, on the first `num_problems` problems of the pool, or on all."""
    grpo, sdpo = config.grpo, config.sdpo
    rollouts = replace(grpo.rollouts, num_problems=num_problems)
    chosen: Runs = {Condition("grpo", num_problems=num_problems): replace(grpo, seed=seed, rollouts=rollouts)}
    rollouts = replace(sdpo.rollouts, num_problems=num_problems)
    for context in config.contexts:
        fixed = replace(
            sdpo.teacher,
            context=replace(sdpo.teacher.context, kind=context.kind),
            max_prompt_length=context.max_prompt_length,
            weights="fixed",
        )
        for teacher in (fixed, replace(fixed, weights="ema", ema_rate=config.ema_rate)):
            condition = Condition("sdpo", context.kind, teacher.weights, num_problems)
            chosen[condition] = replace(sdpo, seed=seed, rollouts=rollouts, teacher=teacher)
    return chosen


def on_policy_section(study: Study[StudyConfig]) -> list[Measurement]:
    """GRPO, and SDPO under each context with a fixed and an EMA teacher, against the base."""
    config, results = study.config, Results("on_policy")
    for seed in config.seeds:
        study.add_base(results, seed, config.evaluation.datasets, "on_policy")
        for condition, run in runs(config, seed, None).items():
            study.train(results, condition, run)
            for dataset in map(name_of, config.evaluation.datasets):  # step 0 of every run is the base
                results.alias(Cell(condition, 0, dataset), Cell(BASE, 0, dataset), seed)
    first, *others = [context.kind for context in config.contexts]

    def baselines(cell: Cell) -> Iterator[Cell]:
        """The base; of a fixed teacher, the EMA teacher, and of the first context, the others."""
        yield Cell(BASE, 0, cell.dataset)
        if cell.condition.teacher == "fixed":
            yield replace(cell, condition=replace(cell.condition, teacher="ema"))
            for kind in others if cell.condition.context == first else ():
                yield replace(cell, condition=replace(cell.condition, context=kind))

    return results.measurements(baselines)


def coverage_section(study: Study[StudyConfig]) -> list[Measurement]:
    """GRPO and SDPO (the last context, fixed teacher) on increasing numbers of distinct problems."""
    config, results, sizes = study.config, Results("coverage"), [*study.config.coverage, None]
    for seed in config.coverage_seeds:
        study.add_base(results, seed, config.evaluation.datasets, "on_policy")
        for method in (Condition("grpo"), Condition("sdpo", config.contexts[-1].kind, "fixed")):
            for size in sizes:
                condition = replace(method, num_problems=size)
                run = runs(config, seed, size)[condition]
                if size is None:  # section 5 has run it
                    study.add_run(results, condition, run, study.directory("on_policy", condition, seed))
                else:  # the base has to be evaluated on just these problems before the first step
                    evaluation = replace(config.evaluation, at_start=("trained",))
                    study.train(results, condition, replace(run, evaluation=evaluation))
                for dataset in map(name_of, config.evaluation.datasets):
                    if size is None or dataset != "trained":
                        results.alias(Cell(condition, 0, dataset), Cell(BASE, 0, dataset), seed)

    def baselines(cell: Cell) -> Iterator[Cell]:
        """A run's own start; of the fewest problems, the most."""
        yield replace(cell, step=0)
        if cell.condition.num_problems == sizes[0]:
            for size in sizes[1:][-2:]:
                yield replace(cell, condition=replace(cell.condition, num_problems=size))

    return results.measurements(baselines)


def fixes_section(study: Study[FixesConfig]) -> list[Measurement]:
    """Every fix under every seed, against the base and against plain SDPO."""
    config, results = study.config, Results("fixes")
    for seed in config.seeds:
        study.add_base(results, seed, config.evaluation.datasets, "fixes")
        for condition, run in config.runs().items():
            study.train(results, condition, replace(run, seed=seed))
    sdpo = Condition("sdpo")

    def baselines(cell: Cell) -> Iterator[Cell]:
        yield Cell(BASE, 0, cell.dataset)
        if cell.condition != sdpo:
            yield replace(cell, condition=sdpo)

    return results.measurements(baselines)
