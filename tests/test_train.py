"""Training runs: interrupted and resumed, refused, stopped, reported.

That every config and objective trains is in test_golden_runs.py.
"""

import contextlib
import dataclasses
import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.signs import pretrain
from configs.signs.common import CONTEXT, FULL_DIVERGENCE, MODEL, TINY_SLOTS
from sdistill.checkpoints import Preempted
from sdistill.config import AnyTrainConfig
from sdistill.distributed.rules import TRAINING, parameter_shardings
from sdistill.model.decoder import bind
from sdistill.model.folders import SIGNS_BASE
from sdistill.model.weights import load_pretrained, save_pretrained
from sdistill.settings import ConfigError, parse
from sdistill.storage import read_records, write_records
from sdistill.train import initial_state, train
from tests import tiny
from tests.processes import Commands, assert_same_files, files_below, scalars

STEPS = 6


def common(data_dir) -> dict[str, object]:
    """Settings of every run here."""
    return {
        **MODEL,
        "seed": 3,
        "steps": STEPS,
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2},
        "checkpoint_every": 2,
        "data_dir": str(data_dir),
    }


def settings(data_dir, **changes) -> dict[str, object]:
    """A short SDPO run with all that a run carries from step to step.

    The shipped base solves problems, so there is something to learn. The teacher moves, and a step makes two
    updates: its number is not the optimizer's.
    """
    return {
        **common(data_dir),
        "objective": "sdpo",
        "rollouts": {
            "split": "k3_pool",
            "num_problems": 6,
            "num_prompts": 4,
            "num_samples": 4,
            "max_prompt_length": 8,
            "max_response_length": 48,
            "slots": TINY_SLOTS,
            "mini_batch_size": 2,
        },
        "teacher": {
            "context": {"kind": "solution", **CONTEXT},
            "max_prompt_length": 64,
            "weights": "ema",
            "ema_rate": 0.3,
        },
        "loss": {"divergence": FULL_DIVERGENCE},
        "evaluation": {
            "every": 3,
            "at_start": ["k3_test"],
            "datasets": ["trained", "k3_test"],
            "num_problems": 8,
            "num_samples": 2,
            "max_prompt_length": 8,
            "max_response_length": 48,
            "slots": TINY_SLOTS,
        },
        **changes,
    }


def config_of(data_dir, **changes) -> AnyTrainConfig:
    return parse(AnyTrainConfig, settings(data_dir, **changes))


def sft_config(data_dir, path: Path, **changes) -> AnyTrainConfig:
    """SFT on four examples, which are written to `path`."""
    rows = [{"prompt": f"{n} 2 3 = 6 <think>", "response": "so </think> + +"} for n in (1, 2, 3, 4)]
    write_records(path, rows)
    examples = {"source": str(path), "batch_size": 2, "sequence_length": 16, "packed": False}
    values = {**common(data_dir), "objective": "sft", "examples": examples, **changes}
    return parse(AnyTrainConfig, values)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory) -> Path:
    """A model of one narrow layer that has learned nothing."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_pretrained(bind(tiny.WORDS, tiny.parameters(tiny.WORDS)), folder)
    return folder


class Watcher:
    """Takes the place of a progress bar: called after every step, it may end the run."""

    def __init__(self, after_step):
        self._after_step = after_step

    def add_task(self, *arguments, **keywords):
        return 0

    def remove_task(self, task):
        pass

    def update(self, task, completed, **keywords):
        self._after_step(completed)


class PowerCut(Exception):
    pass


def cut_power_at(step: int, workdir: Path) -> Watcher:
    """Ends a run after a step, once the checkpoints made so far are on disk."""

    def after_step(completed: int) -> None:
        if completed == step:
            if newest := step // 2 * 2:
                wait_for(workdir / "checkpoints" / str(newest))
            raise PowerCut

    return Watcher(after_step)


def wait_for(checkpoint: Path) -> None:
    """Until it is on disk."""
    deadline = time.monotonic() + 60
    while not checkpoint.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def compiled() -> dict[int, list[str]]:
    """What `uninterrupted` had compiled by the end of each step."""
    return {}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, data_dir, compiled) -> Path:
    workdir = tmp_path_factory.mktemp("uninterrupted")
    with tiny.compilations() as seen:
        watcher = Watcher(lambda step: compiled.update({step: list(seen)}))
        train(config_of(data_dir), workdir, progress=watcher)
    return workdir


def test_a_run_learns_and_leaves_its_files(uninterrupted):
    assert sorted(files_below(uninterrupted)) == [
        "config.json",
        "k3_test-000000.jsonl.gz",
        "k3_test-000003.jsonl.gz",
        "k3_test-000006.jsonl.gz",
        "metrics.jsonl",
        "model/config.json",
        "model/model.safetensors",
        "train-000002.jsonl.gz",
        "train-000004.jsonl.gz",
        "train-000006.jsonl.gz",
        "trained-000003.jsonl.gz",
        "trained-000006.jsonl.gz",
    ]
    metrics = read_records(uninterrupted / "metrics.jsonl")
    assert [record["step"] for record in metrics] == [1, 2, 3, 4, 5, 6]
    assert all(record["teacher_fraction"] > 0 and record["gradient_norm"] > 0 for record in metrics)
    assert all(0 < record["logprob_diff"] < 1e-4 for record in metrics)  # in float32 engine and step agree
    for step in (2, 4, 6):  # what is recorded is about the rollouts that are kept
        rollouts = read_records(uninterrupted / f"train-{step:06d}.jsonl.gz")
        assert len(rollouts) == 32
        for records, record in ((rollouts[:16], metrics[step - 2]), (rollouts[16:], metrics[step - 1])):
            assert record["train_accuracy"] == pytest.approx(np.mean([r["correct"] for r in records]))
            assert record["length"] == pytest.approx(np.mean([r["length"] for r in records]))
    before, after = load_pretrained(SIGNS_BASE), load_pretrained(uninterrupted / "model")
    for a, b in zip(tiny.leaves(nnx.state(before)), tiny.leaves(nnx.state(after)), strict=True):
        assert not np.array_equal(a, b)


def test_what_a_step_takes_is_shown_by_what_for_and_kept_nowhere_else(uninterrupted):
    shown = scalars(uninterrupted / "tensorboard")
    parts = ("generate", "reshard", "verify", "layout", "train")
    for step in range(1, STEPS + 1):
        seconds = [shown[f"seconds/{part}", step] for part in parts]
        assert min(seconds) > 0 and shown["seconds/step", step] == pytest.approx(sum(seconds))
        for part in ("generate", "train", "step"):
            assert shown[f"teraflops_per_second_and_device/{part}", step] > 0
        assert shown["speed/sampled_tokens_per_second_and_device", step] > 0
    assert {"logprob_diff", "loss"} < set(read_records(uninterrupted / "metrics.jsonl")[0])
    assert not any("second" in name for name in read_records(uninterrupted / "metrics.jsonl")[0])


def test_a_fixed_number_of_problems_is_trained_and_evaluated_on(uninterrupted):
    """|D| = 6; the data set `trained` repeats them, with new samples, up to its size."""
    trained_on = {
        r["problem"] for step in (2, 4, 6) for r in read_records(uninterrupted / f"train-{step:06d}.jsonl.gz")
    }
    assert len(trained_on) == 6
    evaluated = read_records(uninterrupted / "trained-000006.jsonl.gz")
    assert {r["problem"] for r in evaluated} == trained_on
    assert len({(r["problem"], r["sample"]) for r in evaluated}) == len(evaluated) == 16


def test_a_run_that_was_cut_resumes_to_the_same_bits(uninterrupted, tmp_path, data_dir):
    """Between two checkpoints, with all that a run carries; test_kills.py cuts at twenty other moments."""
    with pytest.raises(PowerCut):
        train(config_of(data_dir), tmp_path, progress=cut_power_at(3, tmp_path))
    assert not (tmp_path / "model").exists()
    steps = []
    train(config_of(data_dir), tmp_path, progress=Watcher(steps.append))
    assert steps == list(range(3, STEPS + 1))  # nothing is done twice that was kept
    assert_same_files(tmp_path, uninterrupted)


@pytest.mark.long
def test_the_gate_and_the_reference_survive_a_cut(tmp_path, data_dir):
    """GRPO with all that it takes from other weights, and a gate that is closed at step 5."""
    values = settings(data_dir, objective="grpo", evaluation=None)
    teacher = values.pop("teacher")
    anti = {"teacher": teacher, "gate": 0.9, "warmup": 2}
    values |= {"loss": {"kl_coefficient": 0.1, "anti_self_distillation": anti}}
    values["rollouts"] |= {"mini_batch_size": None}
    config = parse(AnyTrainConfig, values)
    train(config, tmp_path / "whole")
    metrics = read_records(tmp_path / "whole" / "metrics.jsonl")
    assert all(0 < record["logprob_diff"] < 1e-4 for record in metrics)
    shaped = [record["shaped"] for record in metrics]
    assert shaped[4] == 0 < min(shaped[0], shaped[5])  # by the mean over the steps before the cut
    with pytest.raises(PowerCut):
        train(config, tmp_path / "cut", progress=cut_power_at(5, tmp_path / "cut"))
    train(config, tmp_path / "cut")
    assert_same_files(tmp_path / "cut", tmp_path / "whole")


def test_one_mini_batch_is_no_mini_batch(tmp_path, data_dir):
    for size in (4, None):
        rollouts = settings(data_dir)["rollouts"] | {"mini_batch_size": size}
        train(config_of(data_dir, steps=2, evaluation=None, rollouts=rollouts), tmp_path / str(size))
    ours, theirs = files_below(tmp_path / "4"), files_below(tmp_path / "None")
    assert [name for name in theirs if ours[name] != theirs[name]] == ["config.json"]


def test_a_run_without_its_records_is_not_resumed(uninterrupted, tmp_path, data_dir):
    """The gate of anti-self-distillation is a function of them."""
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    shutil.rmtree(workdir / "model")
    (workdir / "metrics.jsonl").unlink()
    with pytest.raises(ConfigError, match="metrics.jsonl lacks steps before 6; remove checkpoints/"):
        train(config_of(data_dir), workdir)


def test_a_run_cut_while_it_wrote_the_final_weights_is_not_taken_for_finished(
    uninterrupted, tmp_path, data_dir
):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    (workdir / "model" / "config.json").unlink()  # it is written last
    train(config_of(data_dir), workdir)
    assert_same_files(workdir, uninterrupted)


def test_a_damaged_checkpoint_costs_time_and_nothing_else(uninterrupted, tmp_path, data_dir, caplog):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    shutil.rmtree(workdir / "model")
    newest = workdir / "checkpoints" / str(STEPS)
    largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    steps = []
    with caplog.at_level(logging.WARNING, "sdistill"):
        train(config_of(data_dir), workdir, progress=Watcher(steps.append))
    assert steps == [5, 6]
    assert any(
        "checkpoint of step 6" in message and "cannot be read" in message for message in caplog.messages
    )
    assert (workdir / "damaged_checkpoints" / "6").is_dir()
    shutil.rmtree(workdir / "damaged_checkpoints")
    assert_same_files(workdir, uninterrupted)


def test_a_finished_run_returns_its_model_at_once(uninterrupted, data_dir):
    times = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")}
    steps = []
    model = train(config_of(data_dir), uninterrupted, progress=Watcher(steps.append))
    assert steps == []
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")} == times
    expected = load_pretrained(uninterrupted / "model")
    tiny.assert_same_bits(nnx.state(model, nnx.Param), nnx.state(expected, nnx.Param))


@pytest.fixture
def small_disk(tmp_path):
    """A directory on a disk of its own, with room for a run and not for much more."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(tmp_path)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk is mounted, for which this user has no right")
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


@pytest.mark.slow
def test_a_full_disk_costs_checkpoints_and_nothing_else(small_disk, uninterrupted, data_dir, caplog):
    workdir, filler = small_disk / "run", small_disk / "filler"

    def after_step(completed: int) -> None:
        if completed == 3:
            wait_for(workdir / "checkpoints" / "2")
            with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
                while file.write(b"0" * 4096):
                    pass
        if completed == 5:  # the checkpoint of step 4 has failed
            filler.unlink()

    with caplog.at_level(logging.WARNING, "sdistill"):
        train(config_of(data_dir, evaluation=None), workdir, progress=Watcher(after_step))
    said = [message for message in caplog.messages if "No space left" in message]
    assert any("step 4 is not kept" in message for message in said)
    assert any("is not shown" in message for message in said)  # in TensorBoard
    ours, theirs = files_below(workdir), files_below(uninterrupted)
    learned = [name for name in theirs if name.startswith(("train-", "metrics", "model"))]
    assert len(learned) > 5 and {name: ours.get(name) for name in learned} == {n: theirs[n] for n in learned}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"seed": 4}, "seed=3 there, 4 here"),
        (
            {"optimizer": {"learning_rate": 2e-3, "warmup_steps": 2}},
            "optimizer.learning_rate=0.001 there, 0.002 here",
        ),
        ({"steps": 7}, "steps=6 there, 7 here"),
    ],
)
def test_other_settings_are_refused_in_the_same_directory(changes, field, uninterrupted, data_dir):
    with pytest.raises(ConfigError, match=field):
        train(config_of(data_dir, **changes), uninterrupted)


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_checkpoint(
    tmp_path, tiny_folder, data_dir
):
    changes = {
        "init_from": str(tiny_folder),
        "optimizer": {"learning_rate": 1e30, "warmup_steps": 0},
        "checkpoint_every": 1,
    }
    config = sft_config(data_dir, tmp_path / "examples.jsonl.gz", **changes)
    message = r"^step 2: .*\bgradient_norm=(nan|inf)\b.*hidden states are .*; lower optimizer.learning_rate"
    with pytest.raises(FloatingPointError, match=message):
        train(config, tmp_path / "run")
    wait_for(tmp_path / "run" / "checkpoints" / "1")
    assert [record["step"] for record in read_records(tmp_path / "run" / "metrics.jsonl")] == [1]
    steps = []
    with pytest.raises(FloatingPointError, match=message):  # it goes on from there, and fails again
        train(config, tmp_path / "run", progress=Watcher(steps.append))
    assert steps == [] and not (tmp_path / "run" / "model").exists()


def test_weights_that_are_not_finite_stop_the_run_at_its_first_step(tmp_path, tiny_folder, data_dir):
    model = load_pretrained(tiny_folder)
    model.norm_D[...] = jnp.full_like(model.norm_D[...], np.nan)
    save_pretrained(model, tmp_path / "nan")
    config = sft_config(data_dir, tmp_path / "examples.jsonl.gz", init_from=str(tmp_path / "nan"))
    with pytest.raises(FloatingPointError, match=r"^step 1: .*loss=nan.* not finite in row 0, row 1;"):
        train(config, tmp_path / "run")


def short_responses(data_dir, folder: Path, **changes) -> dict[str, object]:
    """A run whose responses are too short to hold an answer: cheap, and barren."""
    values = settings(data_dir, init_from=str(folder), evaluation=None, checkpoint_every=100)
    small = {"max_response_length": 2, "num_prompts": 2, "num_samples": 2, "mini_batch_size": None}
    values["rollouts"] |= small
    return values | changes


def test_a_run_without_any_success_is_reported_once(tmp_path, tiny_folder, data_dir, caplog):
    values = short_responses(data_dir, tiny_folder, steps=22, profile_steps=(2, 3))
    with caplog.at_level(logging.WARNING, "sdistill"):
        train(parse(AnyTrainConfig, values), tmp_path)
    warnings = [m for m in caplog.messages if "no rollout was correct for 20 steps" in m]
    assert len(warnings) == 1 and "rollouts.max_response_length=2" in warnings[0]
    metrics = read_records(tmp_path / "metrics.jsonl")
    assert all(record["teacher_fraction"] == 0 for record in metrics)
    assert len(list(tmp_path.glob("profile/**/*.xplane.pb"))) == 1
    start, end = load_pretrained(tiny_folder), load_pretrained(tmp_path / "model")
    tiny.assert_same_bits(nnx.state(end, nnx.Param), nnx.state(start, nnx.Param))


def test_nothing_compiles_after_the_second_step(uninterrupted, compiled):
    """The evaluation after step 3 may: it is the first of the trained problems."""
    assert compiled[1]  # the listener works
    assert compiled[3][len(compiled[2]) :] == []
    assert compiled[6][len(compiled[4]) :] == []


def test_nothing_compiles_after_the_second_step_of_grpo(tmp_path, tiny_folder, data_dir):
    values = short_responses(data_dir, tiny_folder, objective="grpo", steps=4, loss={})
    del values["teacher"]
    values["rollouts"] |= {"max_response_length": 3}  # shapes that no other test has compiled
    counts = {}
    with tiny.compilations() as seen:
        watcher = Watcher(lambda step: counts.update({step: list(seen)}))
        train(parse(AnyTrainConfig, values), tmp_path, progress=watcher)
    assert counts[1]  # the listener works
    assert counts[4][len(counts[2]) :] == []


def refuse_writes(monkeypatch, times: int) -> None:
    """The next writes of metrics fail, so many of them."""
    refused = iter(range(times))

    def write(path, records):
        if path.name == "metrics.jsonl" and next(refused, None) is not None:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_records(path, records)

    monkeypatch.setattr("sdistill.storage.write_records", write)


def test_records_that_fail_at_the_last_step_are_written_before_the_model(
    tmp_path, tiny_folder, data_dir, monkeypatch
):
    changes = {"init_from": str(tiny_folder), "steps": 2}
    config = sft_config(data_dir, tmp_path / "examples.jsonl.gz", **changes)
    refuse_writes(monkeypatch, 1)
    train(config, tmp_path / "run")
    assert [record["step"] for record in read_records(tmp_path / "run" / "metrics.jsonl")] == [1, 2]


def test_a_run_whose_records_cannot_be_written_is_not_finished(tmp_path, tiny_folder, data_dir, monkeypatch):
    changes = {"init_from": str(tiny_folder), "steps": 2, "checkpoint_every": 1}
    config = sft_config(data_dir, tmp_path / "examples.jsonl.gz", **changes)

    def after_step(completed: int) -> None:
        if completed == 1:
            refuse_writes(monkeypatch, 2)

    with pytest.raises(OSError, match=r"the records of step 2 cannot be written; .* goes on from step 1"):
        train(config, tmp_path / "run", progress=Watcher(after_step))
    assert not (tmp_path / "run" / "model").exists()
    train(config, tmp_path / "run")
    assert [record["step"] for record in read_records(tmp_path / "run" / "metrics.jsonl")] == [1, 2]


def test_a_run_told_to_end_keeps_what_could_not_be_written_before(
    tmp_path, tiny_folder, data_dir, monkeypatch
):
    config = sft_config(data_dir, tmp_path / "examples.jsonl.gz", init_from=str(tiny_folder))
    refuse_writes(monkeypatch, 1)
    watcher = Watcher(lambda completed: os.kill(os.getpid(), signal.SIGTERM) if completed == 2 else None)
    with pytest.raises(Preempted):
        train(config, tmp_path / "run", progress=watcher)
    assert [record["step"] for record in read_records(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
    assert (tmp_path / "run" / "checkpoints" / "2").exists()


def test_a_finished_model_is_read_as_the_run_computed_it(tmp_path, tiny_folder, data_dir):
    changes = {"init_from": str(tiny_folder), "steps": 1, "param_dtype": "bfloat16"}
    changes |= {"compute": {"dtype": "bfloat16"}}
    config = sft_config(data_dir, tmp_path / "examples.jsonl.gz", **changes)
    trained, read = train(config, tmp_path / "run"), train(config, tmp_path / "run")
    assert read.config == trained.config
    tiny.assert_same_bits(nnx.state(read, nnx.Param), nnx.state(trained, nnx.Param))
    for ours, theirs in zip(
        *(jax.tree.leaves(nnx.state(m, nnx.Param)) for m in (read, trained)), strict=True
    ):
        assert (ours.dtype, ours.sharding) == (theirs.dtype, theirs.sharding)


def test_a_config_that_is_refused_leaves_the_directory_to_the_corrected_one(tmp_path, data_dir):
    """The evaluation's data set, and the engine's sizes, are checked when the run is made."""
    config = config_of(data_dir)
    datasets = dataclasses.replace(config.evaluation, datasets=("no_such_split",))
    slots = dataclasses.replace(config.evaluation, max_response_length=10**6)
    for evaluation in (datasets, slots):
        with pytest.raises(ConfigError):
            train(dataclasses.replace(config, evaluation=evaluation), tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_more_problems_than_there_are_is_refused(tmp_path, data_dir):
    rollouts = settings(data_dir)["rollouts"] | {"num_problems": 100_000}
    with pytest.raises(ConfigError, match=r"rollouts.num_problems=100000: k3_pool has only \d+"):
        train(config_of(data_dir, rollouts=rollouts), tmp_path)


def test_a_model_too_small_for_the_tokenizer_is_refused(tmp_path, data_dir):
    config = dataclasses.replace(tiny.WORDS, vocab_size=160)
    save_pretrained(bind(config, tiny.parameters(config)), tmp_path / "small")
    changes = {"init_from": str(tmp_path / "small")}
    with pytest.raises(ConfigError, match=r"vocab_size=160 is smaller than the tokenizer's 166"):
        train(config_of(data_dir, **changes), tmp_path / "run")


@pytest.mark.parametrize("source", ["drawn", "loaded"])
def test_weights_are_laid_out_on_the_mesh_wherever_they_come_from(source, tiny_folder, tokenizer, data_dir):
    values = settings(data_dir, init_from=str(tiny_folder))
    if source == "drawn":
        values = pretrain.get_config("tiny").to_dict()
    mesh = tiny.one_device()
    params = initial_state(parse(AnyTrainConfig, values), mesh, tokenizer)[1].params
    expected = parameter_shardings(params, mesh, TRAINING)
    assert jax.tree.leaves(jax.tree.map(lambda x: x.sharding, params)) == jax.tree.leaves(expected)


def test_a_source_without_examples_is_refused(tmp_path, data_dir):
    config = sft_config(data_dir, tmp_path / "examples.jsonl.gz")
    (tmp_path / "examples.jsonl.gz").unlink()
    with pytest.raises(ConfigError, match=r"examples.source='.*examples.jsonl.gz' holds no examples"):
        train(config, tmp_path / "run")


@pytest.mark.long
def test_the_shipped_base_comes_from_its_config(tmp_path, data_dir):
    """Trains its first 50 steps again: same data, same order, same weights to start from."""
    values = pretrain.get_config().to_dict()
    shipped = {r["step"]: r["loss"] for r in read_records(SIGNS_BASE / "metrics.jsonl")}
    commands = Commands(data_dir, optimized=True)
    arguments = ["--config=configs/signs/pretrain.py", "--config.steps=50", f"--workdir={tmp_path / 'run'}"]
    commands.succeed("sdistill.train", *arguments)
    again = {r["step"]: r["loss"] for r in read_records(tmp_path / "run" / "metrics.jsonl")}
    compared = [step for step in again if step in shipped]
    assert len(compared) == 50
    for step in compared:
        assert again[step] == pytest.approx(shipped[step], rel=0.02), step
    model = json.loads((SIGNS_BASE / "config.json").read_text())
    assert {k: model[k] for k in values["model"]} == values["model"]
