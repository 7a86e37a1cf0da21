"""Compiles the programs of a run for a TPU slice, with no TPU at hand, and says whether they fit.

    python launch/compile_check.py --config configs/paper/section5_sdpo.py:qwen3_8b --topology v5p:2x2x2
    python launch/compile_check.py --config configs/paper/section3.py:walk --topology v5e:2x4

It takes the configs of `sdistill.train` and of `sdistill.generate`. The compiler is the one that runs on
TPUs (`pip install -e .[tpu]`); no weights are needed and none are allocated. Programs are those of the
longest rows and the fullest cache that the config allows. Exit code 1 if one of them does not fit. What the
figures mean is in docs/scale.md, whose table `launch/compile_table.py` writes.
"""

import argparse
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # for configs/ and launch/, wherever this is called from

from configs.paper.shapes import SHAPES
from launch.programs import Program, per_chip, sampling_programs, shaped_params, training_programs
from sdistill import command
from sdistill.config import AnyTrainConfig, TrainConfig
from sdistill.distributed.mesh import MeshConfig, make_mesh
from sdistill.flops import DEVICE_FLOPS
from sdistill.generate import GenerateConfig
from sdistill.mesh_choice import GIB, Workload, choose_mesh, sampling_workload, training_workload
from sdistill.model.config import ComputeConfig, ModelConfig
from sdistill.model.folders import CONFIG_FILE, SIGNS_BASE
from sdistill.model.hugging_face import from_hugging_face
from sdistill.settings import ConfigError, parse, require

USED = re.compile(r"(?:Used |temporaries \()([\d.]+)([KMGT])")  # in the compiler's two sentences about memory
AVAILABLE = re.compile(r"(?: of |available HBM \()([\d.]+)([KMGT])")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

Settings = AnyTrainConfig | GenerateConfig


@dataclass(frozen=True)
class Chip:
    """A TPU chip (https://docs.cloud.google.com/tpu/docs, the page of each version).

    Attributes:
      flops: Peak FLOP/s of bfloat16 matrix products.
      bandwidth: Bytes a second between HBM and the core.
      slices: Shapes in which chips are rented, that the compiler knows by `VERSION:SHAPE`.
    """

    flops: float
    bandwidth: float
    slices: tuple[str, ...]


_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
_SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")

CHIPS: Mapping[str, Chip] = {
    "v4": Chip(DEVICE_FLOPS["TPU v4"], 1228e9, _CUBES),
    "v5e": Chip(DEVICE_FLOPS["TPU v5e"], 819e9, _SQUARES),
    "v5p": Chip(DEVICE_FLOPS["TPU v5"], 2765e9, _CUBES),
    "v6e": Chip(DEVICE_FLOPS["TPU v6e"], 1638e9, _SQUARES),
}
"""By the version in a topology's name."""


def chip_of(topology: str) -> Chip:
    """The chip of a slice such as `v5p:2x2x2`.

    Raises:
      ConfigError: for other names; lists those that are known.
    """
    version, _, shape = topology.partition(":")
    if version not in CHIPS or shape not in CHIPS[version].slices:
        known = "; ".join(f"{name}: {', '.join(chip.slices)}" for name, chip in CHIPS.items())
        raise ConfigError(f"topology={topology!r} is not known; give VERSION:SHAPE, one of {known}")
    return CHIPS[version]


@dataclass(frozen=True)
class Memory:
    """Bytes of a chip's HBM while a program runs.

    Attributes:
      arguments: What it takes.
      outputs: What it returns and does not write over its arguments.
      temporaries: What it needs besides, its own code included.
      resident: What else of the run is in memory meanwhile.
      limit: What there is for programs.
    """

    arguments: float
    outputs: float
    temporaries: float
    resident: float
    limit: float

    @property
    def total(self) -> float:
        """All of it together."""
        return self.arguments + self.outputs + self.temporaries + self.resident

    @property
    def fits(self) -> bool:
        """Whether the limit allows it."""
        return self.total <= self.limit

    @property
    def spare(self) -> str:
        """The share of the limit that is left, for people."""
        return f"{1 - self.total / self.limit:.0%}" if self.fits else "does not fit"


@dataclass(frozen=True)
class Report:
    """What is known of one program.

    Attributes:
      program: Its name.
      key: The same for equal programs on the same slice.
      topology: Of the slice.
      times: How often a step of the run calls it, if all rows are as long as they may be.
      compile_seconds: On this machine.
      memory: Of each chip, as the compiler says.
      flops: Of each chip, by the model's shape, if all chips share them evenly.
      traffic: Bytes that each chip reads from and writes to HBM at least, by the shapes.
    """

    program: str
    key: str
    topology: str
    times: float
    compile_seconds: float
    memory: Memory
    flops: float
    traffic: float

    @property
    def bound(self) -> tuple[float, str]:
        """Seconds that the program takes at least, and whether `arithmetic` or `memory` is the reason."""
        chip = chip_of(self.topology)
        seconds = {"arithmetic": self.flops / chip.flops, "memory": self.traffic / chip.bandwidth}
        return max((value, name) for name, value in seconds.items())

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"fits": self.memory.fits, "total": self.memory.total}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Report":
        """From what `to_json` gave; other keys are ignored."""
        own = {field.name: values[field.name] for field in fields(cls)}
        return cls(**own | {"memory": Memory(**values["memory"])})


def check(
    config: Settings, topology: str, only: str | None = None, known: Mapping[str, Report] | None = None
) -> Iterator[Report]:
    """Compiles the programs of a run for a slice; yields each report as soon as its program is compiled.

    Args:
      config: Of the run.
      topology: Of the slice.
      only: The name of a program, to leave out the others.
      known: Reports by key. Their programs are not compiled again.

    Raises:
      ConfigError: if slice, program or model are not known, the mesh is not the slice's size, or the compiler
        is missing.
    """
    chip_of(topology)  # refuses unknown ones
    mesh = mesh_on(topology, config)
    limit = memory_limit(mesh)
    programs = programs_of(config, mesh)
    require(only in (None, *programs), f"program={only!r} must be one of {', '.join(programs)}")
    with jax.set_mesh(mesh):
        for name, program in programs.items():
            if only in (None, name):
                yield report(name, program, topology, mesh.size, limit, known or {})


# ── What a config describes ──────────────────────────────────────────────────────────────────────


def settings_of(values: Mapping[str, Any]) -> Settings:
    """The settings of a training run, or of a generation, which has no objective."""
    return parse(AnyTrainConfig, values) if "objective" in values else parse(GenerateConfig, values)


def model_of(config: Settings) -> ModelConfig:
    """The shape of the config's model: its own, or that of the name or folder in `init_from`."""
    if isinstance(config, TrainConfig):
        compute, model = config.compute, config.model
    else:
        compute, model = ComputeConfig(dtype=config.dtype), None
    name = str(config.init_from)
    model = model or SHAPES.get(name)
    if model is None:
        path = (SIGNS_BASE if name == "signs_base" else Path(name)) / CONFIG_FILE
        require(
            path.is_file(),
            f"config.init_from={name!r}: no folder with a config.json, nor one of {', '.join(SHAPES)}; fetch "
            f"it with `hf download {name} config.json --local-dir FOLDER` and give "
            "--config.init_from=FOLDER",
        )
        model = from_hugging_face(path)
    return replace(model, compute=compute)


def workload_of(config: Settings) -> Workload:
    """The sizes of the run that decide on its memory."""
    if isinstance(config, TrainConfig):
        return training_workload(config, model_of(config))
    return sampling_workload(model_of(config), config)


def programs_of(config: Settings, mesh: Mesh) -> dict[str, Program]:
    """By name. A step of a generation is one response in every slot."""
    model = model_of(config)
    if model.compute.attention == "auto":  # what it stands for on a TPU
        model = replace(model, compute=replace(model.compute, attention="splash"))
    if isinstance(config, TrainConfig):
        return training_programs(config, model, mesh)
    params, num_prompts = shaped_params(model, config.dtype, mesh), config.slots / config.num_samples
    return sampling_programs(model, mesh, params, None, config, num_prompts)


def mesh_on(topology: str, config: Settings) -> Mesh:
    """The config's mesh, or one that fits, over the chips of a slice that need not be here."""
    # A host has four chips unless this says otherwise, and one chip is less than a host.
    bounds = {"chips_per_host_bounds": (1, 1, 1)} if topology.endswith(":1x1") else {}
    try:
        chips = topologies.get_topology_desc(platform="tpu", topology_name=topology, **bounds).devices
    except Exception as error:  # of many classes: no libtpu, another version of it, a name it refuses
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"no TPU compiler for {topology} ({reason}); get it with `pip install -e .[tpu]`"
        ) from error
    if config.mesh is None:
        limit = memory_limit(make_mesh(MeshConfig(data=len(chips)), chips))
        return make_mesh(choose_mesh(workload_of(config), len(chips), limit), chips)
    mesh = make_mesh(config.mesh, chips)
    require(
        mesh.size == len(chips),
        f"config.mesh has {mesh.size} devices, {topology} has {len(chips)}; make an axis of the mesh larger",
    )
    return mesh


# ── What the compiler says ───────────────────────────────────────────────────────────────────────


def memory_limit(mesh: Mesh) -> float:
    """Bytes of HBM that a program may have: the compiler names them when a program needs too much."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    too_much = jax.ShapeDtypeStruct((2**40,), jnp.float32, sharding=everywhere)
    try:
        jax.jit(jnp.negative).lower(too_much).compile()
    except jax.errors.JaxRuntimeError as error:
        if found := AVAILABLE.search(str(error)):
            return _bytes(found)
        raise
    raise AssertionError("the compiler accepted a program of 4 TiB")


def report(
    name: str, program: Program, topology: str, chips: int, limit: float, known: Mapping[str, Report]
) -> Report:
    """Compiles a program, unless an equal one is known."""
    began = time.perf_counter()
    lowered, resident = program.lower(), per_chip(program.resident)
    key = f"{topology} {hashlib.sha256(lowered.as_text().encode()).hexdigest()[:16]}"
    if key in known:
        memory, seconds = replace(known[key].memory, resident=resident), known[key].compile_seconds
    else:
        memory = Memory(*compiled_sizes(program, lowered), resident, limit)
        seconds = time.perf_counter() - began
    work = {"flops": program.flops / chips, "traffic": program.traffic}
    return Report(name, key, topology, program.times, seconds, memory, **work)


def compiled_sizes(program: Program, lowered: jax.stages.Lowered) -> tuple[float, float, float]:
    """Bytes of a program's arguments, outputs and temporaries, whether it fits or not."""
    try:
        sizes: Any = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if not (found := USED.search(str(error))):
            raise
        arguments = per_chip((program.arguments, program.keywords.get("accumulated")))
        return arguments, 0, _bytes(found) - arguments
    return (
        sizes.argument_size_in_bytes,
        sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        sizes.temp_size_in_bytes + sizes.generated_code_size_in_bytes,
    )


def _bytes(found: re.Match[str]) -> float:
    number, unit = found.groups()
    return float(number) * UNITS[unit.upper()]


# ── Output ───────────────────────────────────────────────────────────────────────────────────────


def table(reports: Sequence[Report]) -> Table:
    """The reports for people: GiB, TFLOP, GB and seconds of a chip."""
    limit = reports[0].memory.limit / GIB
    table = Table(title=f"Each chip of {reports[0].topology}, which has {limit:.2f} GiB for programs")
    for found in reports:
        memory, (seconds, reason) = found.memory, found.bound
        row = {
            "program": found.program,
            "GiB": f"{memory.total / GIB:.2f}",
            "spare": memory.spare,
            "arguments": f"{memory.arguments / GIB:.2f}",
            "outputs": f"{memory.outputs / GIB:.2f}",
            "temporary": f"{memory.temporaries / GIB:.2f}",
            "resident": f"{memory.resident / GIB:.2f}",
            "TFLOP": f"{found.flops / 1e12:.3g}",
            "GB moved": f"{found.traffic / 1e9:.3g}",
            "at least": f"{seconds:.3g} s" + (" a token" if found.program == "decode" else ""),
            "due to": reason,
            "times a step": f"{found.times:.0f}",
        }
        if not table.columns:
            for column in row:
                table.add_column(column, justify="left" if column in ("program", "due to") else "right")
        table.add_row(*row.values())
    return table


def step_hours(reports: Iterable[Report]) -> float:
    """Least hours of a step in which every row is as long as it may be."""
    return sum(found.times * found.bound[0] for found in reports) / 3600


def without_tpu() -> None:
    """Lets this process compile for chips that it does not have."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU host to ask
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nor a chip that only one process may have
    jax.config.update("jax_platforms", "cpu")


def main() -> None:
    """Checks as the command line says."""
    without_tpu()
    parser = command.Parser(AnyTrainConfig, GenerateConfig)
    parser.add_argument("--topology", required=True, help="Slice to compile for, such as v5p:2x2x2.")
    parser.add_argument("--program", help="Compile this program only.")
    parser.add_argument("--json", action="store_true", help="Print one line of JSON per program.")
    command.start(parser, compile_and_print)


def compile_and_print(values: dict[str, Any], given: argparse.Namespace) -> None:
    """Prints the table, or lines of JSON, and exits with 1 if a program does not fit."""
    reports = []
    for found in check(settings_of(values), given.topology, given.program):
        reports.append(found)
        if given.json:
            print(json.dumps(found.to_json()), flush=True)
    if not given.json:
        Console(width=200).print(table(reports))
        if given.program is None:
            print(f"A step takes at least {step_hours(reports):.2f} h if all responses are cut.")
    sys.exit(0 if all(found.memory.fits for found in reports) else 1)


if __name__ == "__main__":
    main()
