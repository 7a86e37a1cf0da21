"""Sections 5 and 6: SDPO against GRPO, on all problems and on few."""

import dataclasses

from sdistill.analysis.records import Cell, Record, Results
from sdistill.config import GRPOConfig, SDPOConfig
from sdistill.experiments.study import Study, add_base, add_run, name_of, on_policy_datasets


def runs(study: Study, seed: int, problems: int | None) -> dict[str, GRPOConfig | SDPOConfig]:
    """Condition → training run, on the first `problems` problems of the pool."""
    config = study.config
    grpo, sdpo = config.grpo, config.sdpo
    rollouts = dataclasses.replace(grpo.rollouts, num_problems=problems)
    chosen: dict[str, GRPOConfig | SDPOConfig] = {
        "grpo": dataclasses.replace(grpo, seed=seed, rollouts=rollouts)
    }
    rollouts = dataclasses.replace(sdpo.rollouts, num_problems=problems)
    for context in config.contexts:
        teacher = dataclasses.replace(
            sdpo.teacher,
            context=dataclasses.replace(sdpo.teacher.context, kind=context.kind),
            max_prompt_length=context.max_prompt_length,
        )
        teachers = {
            "fixed": dataclasses.replace(teacher, weights="fixed"),
            "ema": dataclasses.replace(teacher, weights="ema", ema_rate=config.ema_rate),
        }
        for weights, each in teachers.items():
            chosen[f"sdpo_{context.kind}_{weights}"] = dataclasses.replace(
                sdpo, seed=seed, rollouts=rollouts, teacher=each
            )
    return chosen


def on_policy_section(study: Study) -> list[Record]:
    """GRPO, and SDPO under each context with a fixed and a moving teacher, against the base."""
    results, training = Results("on_policy"), list[Record]()
    for seed in study.config.seeds:
        add_base(study, results, seed, on_policy_datasets(study))
        for condition, run in runs(study, seed, None).items():
            training += add_run(results, condition, seed, study.train("on_policy", condition, run))
            for dataset in map(name_of, on_policy_datasets(study)):  # step 0 of every run is the base
                results.alias(Cell(condition, 0, dataset), Cell("base", 0, dataset), seed)
    kinds = [context.kind for context in study.config.contexts]
    against = {f"sdpo_{kind}_fixed": [f"sdpo_{kind}_ema"] for kind in kinds}
    against[f"sdpo_{kinds[0]}_fixed"] += [f"sdpo_{kind}_fixed" for kind in kinds[1:]]
    pairs = []
    for cell in results.cells():
        if cell.condition != "base":
            pairs.append((cell, Cell("base", 0, cell.dataset)))
        for other in against.get(cell.condition, []):
            pairs.append((cell, Cell(other, cell.step, cell.dataset)))
    return results.records() + results.differences(pairs) + training


def coverage_section(study: Study) -> list[Record]:
    """GRPO and SDPO (the last context, fixed teacher) on ever more distinct problems."""
    results, training = Results("coverage"), list[Record]()
    conditions = {"grpo": "grpo", "sdpo": f"sdpo_{study.config.contexts[-1].kind}_fixed"}
    sizes = [*map(str, study.config.coverage), "all"]
    for seed in study.config.coverage_seeds:
        add_base(study, results, seed, on_policy_datasets(study))
        for name, condition in conditions.items():
            for size in sizes:
                label = f"{name}_{size}"
                if size == "all":  # section 5 has run it
                    directory = study.directory("on_policy", condition, seed)
                else:
                    directory = study.train(
                        "coverage", label, narrow(runs(study, seed, int(size))[condition])
                    )
                training += add_run(results, label, seed, directory)
                for dataset in map(name_of, on_policy_datasets(study)):
                    if size == "all" or dataset != "trained":
                        results.alias(Cell(label, 0, dataset), Cell("base", 0, dataset), seed)
    pairs = []
    for cell in results.cells():
        if cell.condition == "base":
            continue
        pairs.append((cell, Cell(cell.condition, 0, cell.dataset)))
        name, _, size = cell.condition.partition("_")
        if size == sizes[0]:
            pairs += [
                (cell, Cell(f"{name}_{other}", cell.step, cell.dataset))
                for other in sizes[-2:]
                if other != size
            ]
    return results.records() + results.differences(pairs) + training


def narrow(run: GRPOConfig | SDPOConfig) -> GRPOConfig | SDPOConfig:
    """A run on few problems: the base has to be evaluated on just these before the first step."""
    assert run.evaluation is not None
    return dataclasses.replace(run, evaluation=dataclasses.replace(run.evaluation, at_start=("trained",)))
