"""Writes the tables of docs/scale.md: compiles the programs of the paper's runs that docs/scale.jsonl lacks.

    python launch/compile_table.py

A line there is one program of one run. It is made again if the run is laid out in another way; after a change
of the programs themselves, remove the lines. A program of an 8B model takes some minutes; what is interrupted
goes on where it was. Programs that are the same are compiled once.
"""

import importlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for configs/ and this folder, wherever this is called from

from configs.paper import common, section3
from launch import compile_check
from launch.compile_check import GIB, Report, Settings
from sdistill.config import TrainConfig
from sdistill.distributed.mesh import AXES
from sdistill.settings import ConfigError
from sdistill.storage import write_atomically

LINES, DOCS = ROOT / "docs" / "scale.jsonl", ROOT / "docs" / "scale.md"
BEGIN, END = "<!-- written by launch/compile_table.py -->", "<!-- until here -->"
LEARNING, SAMPLING = ("gradient", "update"), ("decode", "prefill", "reshard", "admit")

Line = dict[str, Any]
"""A report as JSON, and besides: `run`, `layout` and `compiler`."""


def runs() -> Iterator[tuple[str, str]]:
    """The paper's runs, as SECTION.py:WHAT:WHERE, and their slices.

    The others have the programs of one of these, or (GRPO) the same for sampling and a smaller gradient.
    """
    models = {name: model.layouts for name, model in common.MODELS.items()}
    for what, layouts in (
        *((f"section5_sdpo.py:{name}", models[name]) for name in models if name != "qwen3_8b_nothink"),
        ("section4_sft.py:guided", models["deepseek_7b"]),
        *((f"section3.py:{step}", section3.SLICES) for step in ("walk", "solution")),
    ):
        for where in layouts:
            yield f"{what}:{where}", common.TOPOLOGIES[where]


def settings_of(run: str) -> Settings:
    """The settings of a run."""
    section, arg = run.split(".py:")
    recipe = importlib.import_module(f"configs.paper.{section}").get_config(arg)
    return compile_check.settings_of(recipe.to_dict())


def layout_of(config: Settings) -> dict[str, Any]:
    """What of a run's settings makes other programs: its mesh, and the sizes that decide on its memory."""
    sizes = asdict(compile_check.workload_of(config))
    return {"mesh": asdict(config.mesh), **{name: sizes[name] for name in sizes if name != "model"}}


def read_lines() -> list[Line]:
    """All lines that are kept."""
    return [json.loads(line) for line in LINES.read_text().splitlines()] if LINES.exists() else []


def current(lines: Iterable[Line]) -> list[Line]:
    """Those of runs that are still laid out like that."""
    layouts = {run: layout_of(settings_of(run)) for run, _ in runs()}
    return [line for line in lines if line["layout"] == layouts.get(line["run"])]


def compile_missing() -> None:
    """Compiles what is missing, and keeps each program as soon as it is compiled."""
    compiler = f"jax {version('jax')}, libtpu {version('libtpu')}"
    lines = read_lines()
    known = {line["key"]: Report.from_json(line) for line in lines}
    lines = current(lines)
    for name in LEARNING[:1] + SAMPLING + LEARNING[1:]:  # of all runs the largest first
        for run, topology in runs():
            config = settings_of(run)
            if name not in names_of(config) or (run, name) in ((x["run"], x["program"]) for x in lines):
                continue
            (found,) = compile_check.check(config, topology, name, known)
            print(f"{run} {name}: {found.memory.total / GIB:.2f} GiB", flush=True)
            known[found.key] = found
            lines.append({"run": run, "layout": layout_of(config), "compiler": compiler, **found.to_json()})
            write_atomically(LINES, "".join(json.dumps(line) + "\n" for line in lines).encode())


def names_of(config: Settings) -> tuple[str, ...]:
    """The programs of a run."""
    return LEARNING + SAMPLING if isinstance(config, TrainConfig) else SAMPLING


UNKNOWN = "–"
TRAINING_COLUMNS = (
    *("config", "slice", "mesh", "rows", "slots", "gradient, GiB", "update, GiB"),
    *("largest while sampling, GiB", "spare", "gradient, s at least"),
    *("decoding, ms a token at least", "step, h at least"),
)
GENERATION_COLUMNS = (
    *("config", "slice", "mesh", "slots", "largest, GiB", "spare", "ms a token at least"),
    "all slots, h at least",
)


def tables(lines: Iterable[Line]) -> str:
    """The tables, in the order of the runs; and which programs were not compiled.

    For the gradient and for sampling, there is an estimate where nothing was.
    """
    reports: dict[str, dict[str, Report]] = {}
    for line in lines:
        reports.setdefault(line["run"], {})[line["program"]] = Report.from_json(line)
    training, generation, missing = [TRAINING_COLUMNS], [GENERATION_COLUMNS], []
    for run, _ in runs():
        config, of = settings_of(run), reports.get(run, {})
        if lacking := [name for name in names_of(config) if name not in of]:
            missing.append(f"`{run}` ({', '.join(lacking)})")
        if isinstance(config, TrainConfig):
            training.append(_training_row(run, config, of))
        else:
            generation.append(_generation_row(run, config, of))
    tables = [_markdown(rows) for rows in (training, generation) if len(rows) > 1]
    return "\n\n".join(tables + ([f"Not compiled: {'; '.join(missing)}."] if missing else []))


def _training_row(run: str, config: TrainConfig, of: Mapping[str, Report]) -> tuple[str, ...]:
    work = compile_check.workload_of(config)
    estimates = work.estimate(config.mesh)
    learning, sampling = (f"≈ {sum(parts.values()) / GIB:.0f}" for parts in estimates.values())
    return (
        *(f"`{run}`", _topology(run), _mesh(config), str(work.micro_batch_size), str(work.slots)),
        _largest(of, LEARNING[:1], otherwise=learning),
        _largest(of, LEARNING[1:]),
        _largest(of, SAMPLING, named=True, otherwise=sampling),
        _spare(of),
        _least(of, "gradient", "s"),
        _least(of, "decode", "ms"),
        _hours(config, of),
    )


def _generation_row(run: str, config: Settings, of: Mapping[str, Report]) -> tuple[str, ...]:
    return (
        *(f"`{run}`", _topology(run), _mesh(config), str(config.slots)),
        _largest(of, SAMPLING, named=True),
        _spare(of),
        _least(of, "decode", "ms"),
        _hours(config, of),
    )


def _topology(run: str) -> str:
    return dict(runs())[run]


def _largest(
    of: Mapping[str, Report], names: Sequence[str], named: bool = False, otherwise: str = UNKNOWN
) -> str:
    """GiB of the largest of these programs; something else if none was compiled."""
    found = [of[name] for name in names if name in of]
    if not found:
        return otherwise
    largest = max(found, key=lambda report: report.memory.total)
    return f"{largest.memory.total / GIB:.1f}" + (f" ({largest.program})" if named else "")


def _least(of: Mapping[str, Report], name: str, unit: str) -> str:
    """The least time of a program, and what it is due to."""
    if name not in of:
        return UNKNOWN
    seconds, due = of[name].least
    return f"{seconds * (1000 if unit == 'ms' else 1):.1f} ({due})"


def _hours(config: Settings, of: Mapping[str, Report]) -> str:
    """The least time of a step, once all that takes time in it is known."""
    lacking = [name for name in names_of(config) if name not in of]
    return UNKNOWN if lacking else f"{compile_check.step_hours(list(of.values())):.2g}"


def _mesh(config: Settings) -> str:
    return " × ".join(f"{axis} {size}" for axis in AXES if (size := getattr(config.mesh, axis)) > 1)


def _spare(of: Mapping[str, Report]) -> str:
    if not of:
        return UNKNOWN
    worst = max((report.memory for report in of.values()), key=lambda memory: memory.total)
    return f"{1 - worst.total / worst.limit:.0%}" if worst.fits else "does not fit"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "| " + " | ".join("---" for _ in rows[0]) + " |", *lines[1:]])


def with_tables(text: str, lines: Iterable[Line]) -> str:
    """A document with the tables of these lines between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables(lines)}\n{END}{after}"


def main() -> None:
    """Compiles what is missing, then writes the tables."""
    compile_check.without_tpu()
    try:
        compile_missing()
    except ConfigError as error:
        sys.exit(f"error: {error}")
    finally:
        write_atomically(DOCS, with_tables(DOCS.read_text(), current(read_lines())).encode())


if __name__ == "__main__":
    main()
