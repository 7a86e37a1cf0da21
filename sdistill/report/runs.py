"""A run's directory as a report reads it: all there is, and notes on what is not.

A study that was interrupted, or that another version of sdistill wrote, is reported as far as it can be
read. Only what would make figures wrong is an error.
"""

import functools
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdistill.analysis.attribution import ATTRIBUTION
from sdistill.analysis.probes import PROBES
from sdistill.analysis.records import Record
from sdistill.report.claims import Claim, judge
from sdistill.report.lookup import ACROSS, POOLED, SECTIONS
from sdistill.report.ranking import FIXES

RESULTS = "results.jsonl"
IDENTITY = ("section", "condition", "seed", "step", "dataset", "metric", "value")
OPTIONAL = ("n", "ci_low", "ci_high")
SETTINGS = {"config.json": "Settings", "environment.json": "Versions, devices, seeds"}


@dataclass(frozen=True)
class Run:
    """What was read of a run.

    Attributes:
      name: That of its directory, with as many of those above it as tell it from the other runs read.
      path: Its directory.
      records: The lines of its `results.jsonl`.
      settings: The JSON files of `SETTINGS` that it has, by name.
      notes: What is missing or could not be read, in sentences.
    """

    name: str
    path: Path
    records: list[Record]
    settings: dict[str, Any]
    notes: tuple[str, ...]

    @functools.cached_property
    def claims(self) -> list[Claim]:
        """The paper's claims as this run judges them."""
        return judge(self.records)


def read_run(path: Path) -> Run:
    """Reads a run's directory.

    Raises:
      FileNotFoundError: if it is not one: it has neither results nor runs.
      ValueError: naming file and line, if a line of the results is not a record.
    """
    notes: list[str] = []
    records: list[Record] = []
    if (path / RESULTS).is_file():
        records = _read_records(path / RESULTS, notes)
    elif (path / "runs").is_dir():
        notes.append(f"No {RESULTS}: the study was interrupted before its first section was complete.")
    else:
        raise FileNotFoundError(f"neither {RESULTS} nor runs/ in {path}: not the directory of a study")
    unknown = sorted({r["section"] for r in records} - {*SECTIONS, FIXES, PROBES, ATTRIBUTION})
    if unknown:
        notes.append(f"Sections that this version does not know, and does not show: {', '.join(unknown)}.")
    settings = {}
    for name in SETTINGS:
        try:
            settings[name] = _read_object(path / name)
        except FileNotFoundError:
            notes.append(f"No {name} in this run.")
        except ValueError as error:
            notes.append(f"{name} could not be read: {error}.")
    return Run(path.resolve().name, path, records, settings, tuple(notes))


def _read_object(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("not an object with fields")
    return content


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Reads several runs, and gives each a name of its own.

    Raises:
      FileNotFoundError, ValueError: as `read_run`; ValueError also if a directory is given twice.
    """
    parts = [path.resolve().parts for path in paths]
    if len(set(parts)) < len(parts):
        raise ValueError(f"{', '.join(map(str, paths))}: name each run once")
    depth = next(d for d in itertools.count(1) if len({part[-d:] for part in parts}) == len(parts))
    runs = [read_run(path) for path in paths]
    return [replace(run, name="/".join(part[-depth:])) for run, part in zip(runs, parts, strict=True)]


def _read_records(path: Path, notes: list[str]) -> list[Record]:
    """The records; notes say what was left out or filled in."""
    lines = path.read_bytes().split(b"\n")  # text may hold characters that `str.splitlines` splits at
    complete, rest = lines[:-1], lines[-1]  # every line that was written whole ends with a newline
    records, filled, other_seeds = [], 0, set()
    for number, line in enumerate(complete, 1):
        try:
            record = json.loads(line, parse_constant=lambda name: None)  # NaN: undefined
        except ValueError as error:
            raise ValueError(f"{path}:{number}: not JSON: {error}") from error
        if not isinstance(record, dict) or (missing := [key for key in IDENTITY if key not in record]):
            lacking = ", ".join(missing) if isinstance(record, dict) else "keys"
            raise ValueError(f"{path}:{number}: record without {lacking}")
        if not isinstance(record["seed"], int) and record["seed"] not in (POOLED, ACROSS):
            other_seeds.add(str(record["seed"]))
            continue
        filled += any(key not in record for key in OPTIONAL)
        records.append(dict.fromkeys(OPTIONAL) | record)
    if rest.strip():
        notes.append(f"The last line of {RESULTS} was cut short by an interruption, and is left out.")
    if filled:
        notes.append(f"{filled} records of {RESULTS} have no interval: an earlier version wrote none.")
    if other_seeds:
        kinds = ", ".join(sorted(other_seeds))
        notes.append(f"Records of seed {kinds} were left out: this version does not know what it means.")
    return records
