"""A training that is told to end, or killed again and again, ends with the same bits as one that is not."""

import signal
import sys
import time

import pytest

from sdistill.storage import read_records
from tests.processes import Commands, assert_same_files

KILLS = 20


@pytest.fixture(scope="module")
def commands(tmp_path_factory, data_dir):
    return Commands(data_dir, optimized=True)


@pytest.fixture(scope="module")
def whole(commands, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert "\n0 kills\n" in f"\n{commands.succeed('tests.kills', folder, 0)}"
    return folder


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has loaded JAX")
def test_twenty_kills_at_random_moments_change_nothing(commands, whole, tmp_path):
    printed = commands.succeed("tests.kills", tmp_path, KILLS)
    assert f"\n{KILLS} kills\n" in f"\n{printed}"
    assert_same_files(tmp_path, whole)


@pytest.mark.long
def test_a_notice_of_preemption_keeps_the_last_step_and_exits_well(commands, whole, tmp_path):
    """Although the next checkpoint is far away."""
    arguments = ["sdistill.train", "--config", "tests/kills.py", "--workdir", tmp_path]
    arguments += ["--config.checkpoint_every=100"]
    process = commands.start(*arguments)
    while not (tmp_path / "k3_test-000004.jsonl.gz").exists():  # the evaluation after four steps
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    told = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "told to end; everything is kept" in out, err
    assert time.monotonic() - told < 30
    done = read_records(tmp_path / "metrics.jsonl")
    assert 4 <= len(done) < 24
    commands.succeed(*arguments)
    for name in ("metrics.jsonl", "model/model.safetensors", "k3_test-000024.jsonl.gz"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
