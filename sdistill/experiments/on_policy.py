"""Sections 5 and 6, SDPO against GRPO on all problems and on few; and the published fixes on top of both.

Measured are accuracy, length and epistemic words of every evaluation, their paired differences to the base
and between the runs, and the training metrics.
"""

from dataclasses import replace

from sdistill.analysis.measure import BASE, Cell, Results
from sdistill.config import GRPOConfig, SDPOConfig
from sdistill.experiments.config import FixesConfig, Runs, StudyConfig, evaluation_of
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
    # A fixed teacher against an EMA teacher, and the first context against the others.
    kinds = [context.kind for context in config.contexts]
    baselines = {Condition("sdpo", k, "fixed"): [Condition("sdpo", k, "ema")] for k in kinds}
    baselines[Condition("sdpo", kinds[0], "fixed")] += [Condition("sdpo", k, "fixed") for k in kinds[1:]]
    pairs = []
    for cell in results.cells():
        if cell.condition != BASE:
            pairs.append((cell, Cell(BASE, 0, cell.dataset)))
        for other in baselines.get(cell.condition, []):
            pairs.append((cell, Cell(other, cell.step, cell.dataset)))
    return results.measurements(pairs)


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
                else:
                    study.train(results, condition, _narrow(run))
                for dataset in map(name_of, config.evaluation.datasets):
                    if size is None or dataset != "trained":
                        results.alias(Cell(condition, 0, dataset), Cell(BASE, 0, dataset), seed)
    pairs = []
    for cell in results.cells():
        if cell.condition == BASE:
            continue
        pairs.append((cell, Cell(cell.condition, 0, cell.dataset)))
        if cell.condition.num_problems == sizes[0]:  # the fewest problems against the most
            others = [replace(cell.condition, num_problems=size) for size in sizes[-2:] if size != sizes[0]]
            pairs += [(cell, Cell(other, cell.step, cell.dataset)) for other in others]
    return results.measurements(pairs)


def _narrow(run: GRPOConfig | SDPOConfig) -> GRPOConfig | SDPOConfig:
    """A run on few problems: the base has to be evaluated on just these before the first step."""
    evaluation = evaluation_of(run, run.objective)
    return replace(run, evaluation=replace(evaluation, at_start=("trained",)))


def fixes_section(study: Study[FixesConfig]) -> list[Measurement]:
    """Every fix under every seed, against the base and against plain SDPO."""
    config, results = study.config, Results("fixes")
    for seed in config.seeds:
        study.add_base(results, seed, config.evaluation.datasets, "fixes")
        for condition, run in config.runs().items():
            study.train(results, condition, replace(run, seed=seed))
    sdpo, pairs = Condition("sdpo"), []
    for cell in results.cells():
        if cell.condition != BASE:
            pairs.append((cell, Cell(BASE, 0, cell.dataset)))
        if cell.condition not in (BASE, sdpo):
            pairs.append((cell, Cell(sdpo, cell.step, cell.dataset)))
    return results.measurements(pairs)
