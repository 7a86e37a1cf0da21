"""What TensorBoard is shown of a run, and what is recorded of it."""

import time

import jax.numpy as jnp
import pytest

from sdistill import monitor as monitor_module
from sdistill.clock import Clock, StepCost
from sdistill.engine.types import EngineStats
from sdistill.flops import peak_flops
from sdistill.monitor import Monitor, Profiler
from tests import tiny
from tests.processes import scalars


def usage(**changes):
    figures = {"total": 4, "completed": 4, "errors": 0, "tokens": 100, "steps": 30, "occupancy": 0.75}
    return EngineStats(**figures | {"seconds": 1.25, "reshard_seconds": 0.25} | changes)


def test_figures_times_and_speed_are_shown(tmp_path):
    monitor = Monitor(tmp_path, {}, tiny.one_device())
    spent = StepCost({"generate": 1.5, "train": 0.5}, {"generate": 3e12, "train": 2e12}, usage())
    monitor.show(1, {"loss": 0.5}, spent)
    monitor.show(2, {"loss": 0.25}, StepCost({"train": 1.0}, {"train": 1e12}, None))
    monitor.show(3, {"loss": 0.25}, StepCost({"generate": 1.0}, {}, usage(occupancy=0.0)))
    monitor.close()
    found = scalars(tmp_path / "tensorboard")
    assert found["train/loss", 1] == 0.5 and found["train/loss", 2] == 0.25
    assert found["seconds/generate", 1] == 1.5 and found["seconds/step", 1] == 2
    assert found["speed/sampled_tokens_per_second_and_device", 1] == 50
    assert found["speed/slots_busy", 1] == 0.75
    assert found["teraflops_per_second_and_device/generate", 1] == 2
    assert found["teraflops_per_second_and_device/train", 1] == 4
    assert found["teraflops_per_second_and_device/step", 1] == 2.5
    assert ("speed/sampled_tokens_per_second_and_device", 2) not in found
    assert ("speed/slots_busy", 3) not in found  # no response has waited for a slot
    assert not any(name.startswith("mfu") for name, _ in found)  # a CPU's peak is not known


def test_utilisation_is_arithmetic_over_time_and_peak(tmp_path, monkeypatch):
    monkeypatch.setattr(monitor_module, "peak_flops", lambda kind: 10e12)
    monitor = Monitor(tmp_path, {}, tiny.one_device())
    monitor.show(1, {}, StepCost({"train": 1.0, "verify": 3.0}, {"train": 4e12}, None))
    monitor.close()
    found = scalars(tmp_path / "tensorboard")
    assert found["mfu/train", 1] == pytest.approx(0.4) and found["mfu/step", 1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("cpu", None),
    ],
)
def test_devices_are_known_by_the_names_that_jax_gives_them(kind, peak):
    assert peak_flops(kind) == peak


def test_a_clock_adds_up_and_begins_anew(monkeypatch):
    now = iter([0.0, 0.0, 1.0, 5.0, 7.0, 7.0, 10.0, 20.0, 21.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = Clock()
    for what in ("verify", "verify", "train"):
        with clock.measure(what):
            pass
    assert clock.read() == ({"verify": 3, "train": 3}, {}, None)
    with clock.measure("verify"):
        pass
    assert clock.read().seconds == {"verify": 1}


def test_a_block_within_a_block_has_its_own_time(monkeypatch):
    now = iter([0.0, 0.0, 1.0, 5.0, 7.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = Clock()
    with clock.measure("layout"), clock.measure("score"):
        clock.add_flops("score", 2.0)
        clock.add_flops("score", 3.0)
    assert clock.read() == ({"layout": 1 + 2, "score": 4}, {"score": 5.0}, None)


def test_bringing_parameters_to_the_sampler_is_told_from_generating(monkeypatch):
    now = iter([0.0, 0.0, 2.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = Clock()
    with clock.measure("generate"):
        clock.observe(usage())
    assert clock.read().seconds == {"generate": 1.75, "reshard": 0.25}


def test_chosen_steps_are_profiled_and_no_others(tmp_path):
    profiler = Profiler(tmp_path, (2, 3))
    traces = []
    for number in range(1, 5):
        with profiler.step(number):
            jnp.ones(3).sum().block_until_ready()
        traces.append(len(list(tmp_path.glob("profile/**/*.xplane.pb"))))
    assert traces == [0, 0, 1, 1]


def test_a_step_that_fails_leaves_its_profile(tmp_path):
    profiler = Profiler(tmp_path, (1, 3))
    with pytest.raises(ZeroDivisionError), profiler.step(1):
        raise ZeroDivisionError
    assert len(list(tmp_path.glob("profile/**/*.xplane.pb"))) == 1
