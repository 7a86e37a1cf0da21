"""Writes the table of docs/scale.md: compiles the programs of the paper's runs that docs/scale.jsonl lacks.

    python launch/compile_table.py

A line of that file is one program of one run. It is made again if the run's layout changes; after a change
of the programs themselves, remove the lines. A program of an 8B model takes some minutes; an interrupted
command continues where it was. Equal programs are compiled once.
"""

import importlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for configs/ and launch/, wherever this is called from

from configs.paper import common, section3
from launch import compile_check
from launch.compile_check import Report, Settings
from launch.results_tables import markdown
from sdistill.config import TrainConfig
from sdistill.distributed.mesh import AXES
from sdistill.mesh_choice import GIB
from sdistill.settings import ConfigError
from sdistill.storage import write_atomically

LINES, DOCS = ROOT / "docs" / "scale.jsonl", ROOT / "docs" / "scale.md"
BEGIN, END = "<!-- written by launch/compile_table.py -->", "<!-- until here -->"
TRAINING, SAMPLING = ("gradient", "update"), ("decode", "prefill", "reshard", "admit")

Line = dict[str, Any]
"""A report as JSON, with `run`, `layout` and `compiler`."""


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


def programs_of(config: Settings) -> tuple[str, ...]:
    """The names of a run's programs."""
    return TRAINING + SAMPLING if isinstance(config, TrainConfig) else SAMPLING


def layout_of(config: Settings) -> dict[str, Any]:
    """Which settings of a run shape its programs: the mesh, and the sizes that decide on memory."""
    sizes = asdict(compile_check.workload_of(config))
    return {"mesh": asdict(config.mesh), **{name: sizes[name] for name in sizes if name != "model"}}  # type: ignore


def read_lines() -> list[Line]:
    """All lines of the file."""
    return [json.loads(line) for line in LINES.read_text().splitlines()] if LINES.exists() else []


def current(lines: Iterable[Line]) -> list[Line]:
    """Lines of runs that still have this layout."""
    layouts = {run: layout_of(settings_of(run)) for run, _ in runs()}
    return [line for line in lines if line["layout"] == layouts.get(line["run"])]


def compile_missing() -> None:
    """Compiles what is missing, and writes each program's line as soon as it is compiled."""
    compiler = f"jax {version('jax')}, libtpu {version('libtpu')}"
    lines = read_lines()
    known = {line["key"]: Report.from_json(line) for line in lines}
    lines = current(lines)
    for name in TRAINING[:1] + SAMPLING + TRAINING[1:]:  # of all runs the largest first
        for run, topology in runs():
            config = settings_of(run)
            if name not in programs_of(config) or (run, name) in ((x["run"], x["program"]) for x in lines):
                continue
            (found,) = compile_check.check(config, topology, name, known)
            print(f"{run} {name}: {found.memory.total / GIB:.2f} GiB", flush=True)
            known[found.key] = found
            lines.append({"run": run, "layout": layout_of(config), "compiler": compiler, **found.to_json()})
            write_atomically(LINES, "".join(json.dumps(line) + "\n" for line in lines).encode())


# ── The table ────────────────────────────────────────────────────────────────────────────────────

UNKNOWN = "–"


def table(lines: Iterable[Line]) -> str:
    """The table, in the order of the runs, and which programs were not compiled."""
    reports: dict[str, dict[str, Report]] = {}
    for line in lines:
        reports.setdefault(line["run"], {})[line["program"]] = Report.from_json(line)
    rows, missing = [], []
    for run, topology in runs():
        config, compiled = settings_of(run), reports.get(run, {})
        if lacking := [name for name in programs_of(config) if name not in compiled]:
            missing.append(f"`{run}` ({', '.join(lacking)})")
        rows.append(_row(run, topology, config, compiled))
    text = markdown([*rows[0]], [[*row.values()] for row in rows])
    return text + (f"\n\nNot compiled: {'; '.join(missing)}." if missing else "")


def _row(run: str, topology: str, config: Settings, compiled: Mapping[str, Report]) -> dict[str, str]:
    """What is known of a run, by column; an estimate (≈) of gradient and sampling that were not compiled."""
    work, mesh = compile_check.workload_of(config), config.mesh
    assert mesh is not None  # the paper's runs name theirs
    estimates = {stage: f"≈ {sum(parts.values()) / GIB:.0f}" for stage, parts in work.estimate(mesh).items()}
    sampling = [compiled[name] for name in SAMPLING if name in compiled]
    largest = max(sampling, key=lambda report: report.memory.total, default=None)
    memory = max((report.memory for report in compiled.values()), key=lambda m: m.total, default=None)
    is_complete = all(name in compiled for name in programs_of(config))

    def gib(name: str, otherwise: str = UNKNOWN) -> str:
        return f"{compiled[name].memory.total / GIB:.1f}" if name in compiled else otherwise

    def bound(name: str, unit: float) -> str:
        if name not in compiled:
            return UNKNOWN
        seconds, reason = compiled[name].bound
        return f"{seconds / unit:.1f} ({reason})"

    sampled = f"{gib(largest.program)} ({largest.program})" if largest else estimates["decoding"]
    return {
        "config": f"`{run}`",
        "slice": topology,
        "mesh": " × ".join(f"{axis} {size}" for axis in AXES if (size := getattr(mesh, axis)) > 1),
        "rows": str(work.micro_batch_size or UNKNOWN),
        "slots": str(work.slots),
        "gradient, GiB": gib("gradient", estimates.get("gradient", UNKNOWN)),
        "update, GiB": gib("update"),
        "largest while sampling, GiB": sampled,
        "spare": UNKNOWN if memory is None else memory.spare,
        "gradient, s at least": bound("gradient", 1),
        "decoding, ms a token at least": bound("decode", 1e-3),
        "step, h at least": f"{compile_check.step_hours(compiled.values()):.2g}" if is_complete else UNKNOWN,
    }


def with_table(text: str, lines: Iterable[Line]) -> str:
    """A document with the table of these lines between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(lines)}\n{END}{after}"


def main() -> None:
    """Compiles what is missing, then writes the table."""
    compile_check.without_tpu()
    try:
        compile_missing()
    except ConfigError as error:
        sys.exit(f"error: {error}")
    finally:
        write_atomically(DOCS, with_table(DOCS.read_text(), current(read_lines())).encode())


if __name__ == "__main__":
    main()
