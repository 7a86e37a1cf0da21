"""launch/compile_check.py: with the TPU compiler where libtpu is installed, and what it says elsewhere."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.experimental import topologies

from configs.paper import section3, section5_sdpo
from launch import compile_check
from sdistill.config import SDPOConfig
from sdistill.distributed.mesh import MeshConfig, make_mesh
from sdistill.generate import GenerateConfig
from sdistill.settings import ConfigError, parse

ROOT = Path(__file__).parents[2]
CONFIG = parse(SDPOConfig, section5_sdpo.get_config("qwen3_8b:tiny").to_dict())
ON_FOUR = dataclasses.replace(CONFIG, mesh=MeshConfig(fsdp=2, context=2))
PIP = r"pip install -e \.\[tpu\]"

with_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed; pip install -e .[tpu] brings the TPU compiler, no TPU is needed",
)


@pytest.mark.parametrize("topology", ["v5q:2x2", "v5e:3x3", "v5e", "", "v5p:4x4"])
def test_an_unknown_slice_is_refused_with_those_that_are_known(topology):
    with pytest.raises(ConfigError) as error:
        next(compile_check.check(ON_FOUR, topology))
    assert f"topology={topology!r} is not known" in str(error.value)
    assert "v5e: 1x1, 2x2, 2x4, 4x4" in str(error.value) and "v5p: 2x2x1" in str(error.value)


def test_without_the_compiler_the_command_that_installs_it_is_named(monkeypatch):
    def missing(**_):
        raise FileNotFoundError("libtpu.so")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    with pytest.raises(ConfigError, match=rf"no TPU compiler for v5e:2x2 \(libtpu.so\); .*{PIP}"):
        next(compile_check.check(ON_FOUR, "v5e:2x2"))


@pytest.mark.parametrize(
    ("chips", "message"),
    [
        (2, "mesh data=1 × fsdp=2 × tensor=1 × context=2 needs 4 devices, 2 found; make an axis smaller"),
        (8, "config.mesh has 4 devices, v5e:2x4 has 8; make an axis of the mesh larger"),
    ],
)
def test_a_mesh_of_another_size_is_refused(monkeypatch, chips, message):
    slices = dataclasses.make_dataclass("Slices", ["devices"])
    monkeypatch.setattr(topologies, "get_topology_desc", lambda **_: slices(jax.devices() * chips))
    with pytest.raises(ConfigError) as error:
        next(compile_check.check(ON_FOUR, "v5e:2x4"))
    assert str(error.value) == message


def test_a_config_without_an_objective_is_a_generation():
    settings = compile_check.settings_of(section3.get_config("walk:tiny").to_dict())
    assert isinstance(settings, GenerateConfig) and compile_check.model_of(settings).vocab_size > 0
    assert compile_check.settings_of(section5_sdpo.get_config("qwen3_8b:tiny").to_dict()) == CONFIG


@pytest.mark.parametrize("step", ["walk", "solution"])
def test_a_generation_only_samples(step):
    settings = compile_check.settings_of(section3.get_config(f"{step}:tiny").to_dict())
    programs = compile_check.programs_of(settings, make_mesh(settings.mesh))
    assert list(programs) == ["reshard", "prefill", "admit", "decode"]
    assert programs["decode"].times == settings.max_response_length  # of as many responses as there are slots
    assert programs["prefill"].times * 8 * programs["prefill"].arguments[1].shape[0] == settings.slots


def test_a_model_whose_shape_is_not_known_is_refused():
    config = dataclasses.replace(CONFIG, init_from="some/model", model=None)
    with pytest.raises(ConfigError, match="hf download some/model config.json --local-dir FOLDER"):
        compile_check.model_of(config)


def test_the_least_time_is_by_what_is_slower():
    """At v5e's 197 TFLOP/s and 819 GB/s."""
    memory = compile_check.Memory(1.0, 0.0, 0.0, 0.0, 2.0)
    known = compile_check.Report("update", "", "v5e:2x2", 1.0, 1.0, memory, flops=394e12, traffic=819e9)
    assert known.bound == (2.0, "arithmetic")
    assert dataclasses.replace(known, traffic=3 * 819e9).bound == (3.0, "memory")


@pytest.mark.parametrize("version", compile_check.CHIPS)
def test_all_slices_that_are_listed_are_known(version):
    for shape in compile_check.CHIPS[version].slices:
        assert compile_check.chip_of(f"{version}:{shape}") is compile_check.CHIPS[version]


def run(*arguments):
    """The command, on a machine without a TPU."""
    command = [sys.executable, "launch/compile_check.py", "--topology", "v5e:2x2", *arguments]
    environment = os.environ | {"TPU_SKIP_MDS_QUERY": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False)


TINY = ("--json", "--config", "configs/paper/section5_sdpo.py:qwen3_8b:tiny")
ON_FOUR_CHIPS = ("--config.mesh.fsdp=2", "--config.mesh.context=2")


@pytest.mark.long
@with_compiler
def test_a_tiny_run_fits_on_four_chips():
    done = run(*TINY, *ON_FOUR_CHIPS)
    assert done.returncode == 0, done.stderr
    reports = {report["program"]: report for report in map(json.loads, done.stdout.splitlines())}
    assert list(reports) == ["reshard", "prefill", "admit", "decode", "gradient", "update"]
    assert all(report["fits"] and report["total"] > 0 for report in reports.values())
    gradient, decode = reports["gradient"], reports["decode"]
    assert 15 * 2**30 < gradient["memory"]["limit"] < 16 * 2**30
    assert gradient["flops"] > decode["flops"] > 0 and gradient["traffic"] > decode["traffic"] > 0


@pytest.fixture
def walk(monkeypatch):
    """A tiny generation on four chips, in a process that may compile for them."""
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    settings = compile_check.settings_of(section3.get_config("walk:tiny").to_dict())
    return dataclasses.replace(settings, mesh=MeshConfig(fsdp=4), slots=32)


@with_compiler
def test_what_is_known_is_not_compiled_again(walk, monkeypatch):
    (first,) = compile_check.check(walk, "v5e:2x2", "reshard")
    assert first.memory.fits and 15 * 2**30 < first.memory.limit < 16 * 2**30
    again = compile_check.Report.from_json(json.loads(json.dumps({**first.to_json(), "run": "beside"})))
    assert again == first
    monkeypatch.setattr(jax.stages.Lowered, "compile", None)
    monkeypatch.setattr(compile_check, "memory_limit", lambda _: 0.0)
    (found,) = compile_check.check(walk, "v5e:2x2", "reshard", {first.key: again})
    assert found == first


@with_compiler
def test_what_does_not_fit_ends_in_exit_code_1():
    """A model of 8 billion parameters: what the compiler says of its update is understood."""
    done = run(
        "--config", "configs/paper/section5_sdpo.py:qwen3_8b", "--config.mesh.fsdp=4", "--program=update"
    )
    assert done.returncode == 1 and "does not fit" in done.stdout


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_the_command_itself_says_how_to_get_the_compiler():
    done = run(*TINY, *ON_FOUR_CHIPS)
    assert done.returncode == 1 and "pip install -e .[tpu]" in done.stderr
    assert "Traceback" not in done.stderr
