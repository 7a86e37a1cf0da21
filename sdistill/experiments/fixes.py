"""The fixes proposed since the paper, each on top of SDPO or GRPO, against both and the base."""

import dataclasses

from sdistill.analysis.records import Cell, Record, Results
from sdistill.experiments.config import FixesConfig
from sdistill.experiments.study import Study, add_base, add_run, on_policy_datasets


def fixes_section(study: Study[FixesConfig]) -> list[Record]:
    """Every run under every seed; differences to the base and to plain SDPO."""
    results, training = Results("fixes"), list[Record]()
    for seed in study.config.seeds:
        add_base(study, results, seed, on_policy_datasets(study), section="fixes")
        for condition, run in study.config.runs().items():
            directory = study.train("fixes", condition, dataclasses.replace(run, seed=seed))
            training += add_run(results, condition, seed, directory)
    pairs = []
    for cell in results.cells():
        if cell.condition != "base":
            pairs.append((cell, Cell("base", 0, cell.dataset)))
        if cell.condition not in ("base", "sdpo"):
            pairs.append((cell, Cell("sdpo", cell.step, cell.dataset)))
    return results.records() + results.differences(pairs) + training
