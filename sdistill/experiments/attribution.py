"""Where the training signal fell in runs of section 5 or of the fixes, and which words they use more or less.

Measured are shares of the tokens and of the signal and the mean divergence, by class of token after each
interval of steps, and by place and by entropy over the whole run; and the change of each word against the
base.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sdistill.analysis.attribution import ATTRIBUTION, GROUPINGS, signal_by_group, tokens_of, word_changes
from sdistill.analysis.measure import BASE, Cell, Results
from sdistill.experiments.config import FixesConfig, StudyConfig
from sdistill.experiments.study import Study, name_of
from sdistill.storage import read_responses, responses_file, responses_files
from sdistill.types import Condition, Measurement, Response, Seed

Directories = Mapping[int, Path]
"""Seed → directory of a run."""


def attribution_section(study: Study[StudyConfig] | Study[FixesConfig]) -> list[Measurement]:
    """Of the runs of section 5; or of those of the fixes, and of plain GRPO and SDPO."""
    config, results, found = study.config, Results(ATTRIBUTION), list[Measurement]()
    if isinstance(config, FixesConfig):
        section, conditions = "fixes", [*config.runs()]
    else:
        section, conditions = "on_policy", [*config.conditions().values()]
    base = {seed: study.directory(section, BASE, seed) for seed in config.seeds}
    for condition in conditions:
        runs = {seed: study.directory(section, condition, seed) for seed in config.seeds}
        found += _signal(results, condition, runs)
        for split in config.evaluation.datasets:
            if split != "trained":  # the problems of `trained` differ between runs
                found += _words(results, condition, split, runs, base)
    return found


def _signal(results: Results, condition: Condition, runs: Directories) -> list[Measurement]:
    """By class at every step with a file of rollouts; by place and entropy over the run, at its last step."""
    found = list[Measurement]()
    whole: dict[int, list[Response]] = {seed: [] for seed in runs}
    steps = sorted({step for run in runs.values() for step in _steps(run, "train")})
    for step in steps:
        part = {seed: read_responses(responses_file(run, "train", step)) for seed, run in runs.items()}
        found += _estimates(results, Cell(condition, step, "train"), part, ["class"])
        for seed, responses in part.items():
            whole[seed] += responses
    if steps:
        groupings = [grouping for grouping in GROUPINGS if grouping != "class"]
        found += _estimates(results, Cell(condition, steps[-1], "train"), whole, groupings)
    return found


def _estimates(
    results: Results, cell: Cell, responses: Mapping[int, Sequence[Response]], groupings: Sequence[str]
) -> list[Measurement]:
    """One measurement a seed and one over all of them, of every group."""
    tokens = {seed: found for seed, rows in responses.items() if (found := tokens_of(rows)) is not None}
    parts: list[tuple[Seed, list[int]]] = [*((seed, [seed]) for seed in tokens), ("all", [*tokens])]
    return [
        results.measurement(cell, name, measure, estimate, n, group=group)
        for name, part in parts
        if (n := sum(len(responses[seed]) for seed in part))
        for grouping in groupings
        for (measure, group), estimate in signal_by_group([tokens[s] for s in part], grouping).items()
    ]


def _words(
    results: Results, condition: Condition, split: str, runs: Directories, base: Directories
) -> list[Measurement]:
    """Of each word: its rate under the base, the change, the adjusted p-value, and the z-score."""
    steps = {seed: max(_steps(run, split), default=0) for seed, run in runs.items()}
    ours = {seed: read_responses(responses_file(run, split, steps[seed])) for seed, run in runs.items()}
    theirs = {seed: read_responses(responses_file(run, split, 0)) for seed, run in base.items()}
    cell, n = Cell(condition, max(steps.values()), name_of(split)), sum(map(len, ours.values()))
    return [
        results.measurement(cell, "all", measure, value, n, group=word)
        for (measure, word), value in word_changes(ours, theirs).items()
    ]


def _steps(run: Path, dataset: str) -> list[int]:
    """Steps after which a run has written responses to a data set."""
    return [step for name, step in responses_files(run) if name == dataset]
