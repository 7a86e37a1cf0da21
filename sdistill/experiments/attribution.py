"""Where the training signal fell in section 5, or in the runs of the fixes, and which words rose and fell."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdistill.analysis.attribution import ATTRIBUTION, GROUPINGS, Tokens, measured, tokens_of
from sdistill.analysis.records import Cell, Record, Results
from sdistill.analysis.word_changes import word_changes
from sdistill.experiments.config import FixesConfig
from sdistill.experiments.on_policy import runs as on_policy_runs
from sdistill.experiments.study import Study, name_of, on_policy_datasets
from sdistill.storage import read_responses
from sdistill.types import Response

Seeds = Mapping[int, Path]
"""Seed → directory of a run."""


def on_policy_attribution(study: Study) -> list[Record]:
    """Of the runs of section 5."""
    return attribution(study, "on_policy", list(on_policy_runs(study, study.config.seeds[0], None)))


def fixes_attribution(study: Study[FixesConfig]) -> list[Record]:
    """Of the runs of the fixes, and of what they are put on."""
    return attribution(study, "fixes", list(study.config.runs()))


def attribution(study: Study[Any], section: str, conditions: Sequence[str]) -> list[Record]:
    """Signal and divergence by groups of tokens, and the words that changed, of the runs of a section."""
    results, records = Results(ATTRIBUTION), list[Record]()
    base = {seed: study.directory(section, "base", seed) for seed in study.config.seeds}
    for condition in conditions:
        runs = {seed: study.directory(section, condition, seed) for seed in study.config.seeds}
        records += signal_records(results, condition, runs)
        for split in on_policy_datasets(study):
            if split != "trained":  # another run has other problems
                records += word_records(results, condition, split, runs, base)
    return records


def signal_records(results: Results, condition: str, runs: Seeds) -> list[Record]:
    """By class after every so many steps; by place and by entropy over the whole run, at its last step."""
    records = list[Record]()
    whole: dict[int, list[Response]] = {seed: [] for seed in runs}
    steps = sorted({step for run in runs.values() for step in _steps(run, "train")})
    for step in steps:
        windows = {seed: read_responses(_file(run, "train", step)) for seed, run in runs.items()}
        records += _estimates(results, Cell(condition, step, "train"), windows, ["class"])
        for seed, generations in windows.items():
            whole[seed] += generations
    groupings = [grouping for grouping in GROUPINGS if grouping != "class"]
    return records + (
        _estimates(results, Cell(condition, steps[-1], "train"), whole, groupings) if steps else []
    )


def _estimates(
    results: Results, cell: Cell, generations: Mapping[int, Sequence[Response]], groupings: Sequence[str]
) -> list[Record]:
    """One record a seed and one over all of them, of every group."""
    found = {seed: tokens_of(rows) for seed, rows in generations.items()}
    kept: dict[int | str, list[Tokens]] = {seed: [t] for seed, t in found.items() if t is not None}
    if not kept:
        return []
    n: dict[int | str, int] = {seed: len(generations[seed]) for seed in generations}
    kept["all"], n["all"] = [t for tokens in kept.values() for t in tokens], sum(n[seed] for seed in kept)
    return [
        results.record(cell, seed, metric, estimate, n[seed])
        for seed, tokens in kept.items()
        for grouping in groupings
        for metric, estimate in measured(tokens, grouping).items()
    ]


def word_records(results: Results, condition: str, split: str, runs: Seeds, base: Seeds) -> list[Record]:
    """Of each word that is shown: how often the base says it, the change, its adjusted p-value, its z-score.

    Metrics are `word_base:WORD`, `word_change:WORD`, `word_p:WORD` and `word_z:WORD`.
    """
    steps = {seed: max(_steps(run, split), default=0) for seed, run in runs.items()}
    ours = {seed: read_responses(_file(run, split, steps[seed])) for seed, run in runs.items()}
    theirs = {seed: read_responses(_file(run, split, 0)) for seed, run in base.items()}
    cell, n = Cell(condition, max(steps.values()), name_of(split)), sum(map(len, ours.values()))
    records = []
    for word in word_changes(ours, theirs):
        for metric, value in (
            ("base", word.before),
            ("change", word.change),
            ("p", word.p),
            ("z", word.z),
        ):
            records.append(results.record(cell, "all", f"word_{metric}:{word.word}", value, n))
    return records


def _file(run: Path, dataset: str, step: int) -> Path:
    return run / f"{dataset}-{step:06d}.jsonl.gz"


def _steps(run: Path, dataset: str) -> list[int]:
    """Steps that a run has kept a file of this data set after."""
    found = (re.fullmatch(rf"{re.escape(dataset)}-(\d+)\.jsonl\.gz", path.name) for path in run.glob("*.gz"))
    return sorted(int(match[1]) for match in found if match)
