"""A run's directory as a report reads it: what is there, and notes on what is missing.

A study that was interrupted, or that another version of sdistill wrote, is reported as far as it can be read.
Only what would make the report wrong is an error.
"""

import functools
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sdistill.report.claims import Claim, judge
from sdistill.report.lookup import HEADINGS, Index
from sdistill.types import Measurement

RESULTS = "results.jsonl"
SETTINGS = {"config.json": "Settings", "environment.json": "Versions, devices, seeds"}


@dataclass(frozen=True)
class Run:
    """A run as read from disk.

    Attributes:
      name: That of its directory, with as many parents as tell it from the other runs.
      index: The measurements of its `results.jsonl`.
      settings: The JSON files of `SETTINGS` that it has, by name.
      notes: What is missing or could not be read, in sentences.
    """

    name: str
    path: Path
    index: Index
    settings: dict[str, Any]
    notes: tuple[str, ...]

    @functools.cached_property
    def claims(self) -> list[Claim]:
        """The paper's claims as this run judges them."""
        return judge(self.index)


def read_run(path: Path, name: str = "") -> Run:
    """Reads a run's directory, whose name is that of the run unless another is given.

    Raises:
      FileNotFoundError: if it is not one: it has neither results nor runs.
      ValueError: naming file and line, if a line of the results is not a measurement.
    """
    notes: list[str] = []
    measurements: list[Measurement] = []
    if (path / RESULTS).is_file():
        measurements = _read_measurements(path / RESULTS, notes)
    elif (path / "runs").is_dir():
        notes.append(f"No {RESULTS}: the study was interrupted before its first section was complete.")
    else:
        message = f"neither {RESULTS} nor runs/ in {path}: not the directory of a study"
        if (path / "checkpoints").is_dir():
            message += (
                f"; it is a training run: `tensorboard --logdir {path}` shows its curves, and "
                f"`python -m sdistill.evaluate --model {path}/model` measures its model"
            )
        raise FileNotFoundError(message)
    unknown = sorted({m.section for m in measurements} - {*HEADINGS})
    if unknown:
        notes.append(f"Sections that this version does not know, and does not show: {', '.join(unknown)}.")
    settings = {}
    for file in SETTINGS:
        try:
            found = json.loads((path / file).read_text(encoding="utf-8"))
            if not isinstance(found, dict):
                raise ValueError("not an object with fields")
            settings[file] = found
        except FileNotFoundError:
            notes.append(f"No {file} in this run.")
        except ValueError as error:
            notes.append(f"{file} could not be read: {error}.")
    return Run(name or path.resolve().name, path, Index(measurements), settings, tuple(notes))


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Reads several runs, and gives each a name of its own.

    Raises:
      FileNotFoundError, ValueError: as `read_run`; ValueError also if a directory is given twice.
    """
    parts = [path.resolve().parts for path in paths]
    if len(set(parts)) < len(parts):
        raise ValueError(f"{', '.join(map(str, paths))}: name each study once")
    depth = next(d for d in itertools.count(1) if len({part[-d:] for part in parts}) == len(parts))
    return [read_run(path, "/".join(part[-depth:])) for path, part in zip(paths, parts, strict=True)]


def _read_measurements(path: Path, notes: list[str]) -> list[Measurement]:
    """The measurements; notes say which lines were left out."""
    # Every whole line ends with a newline; text may hold characters that `str.splitlines` splits at.
    *complete, rest = path.read_bytes().split(b"\n")
    measurements, other_seeds = [], set()
    for number, line in enumerate(complete, 1):
        try:
            values = json.loads(line, parse_constant=lambda name: None)  # NaN: undefined
            known = {field.name: values[field.name] for field in fields(Measurement) if field.name in values}
            measurement = Measurement.from_json(known)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}:{number}: not a measurement: {error}") from error
        if isinstance(measurement.seed, int) or measurement.seed in ("all", "any"):
            measurements.append(measurement)
        else:
            other_seeds.add(str(measurement.seed))
    if rest.strip():
        notes.append(f"The last line of {RESULTS} was cut short by an interruption, and is left out.")
    if other_seeds:
        kinds = ", ".join(sorted(other_seeds))
        notes.append(f"Measurements of seed {kinds} were left out: this version does not know these seeds.")
    return measurements
