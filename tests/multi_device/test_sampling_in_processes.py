"""Two processes of four devices each sample what one process with one device samples."""

import json
import socket

import numpy as np
import pytest

from sdistill.engine.types import Completions
from tests.processes import Commands


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    one, four_each = Commands(folder, devices=1), Commands(folder, devices=4)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    program = "tests.multi_device.sample"
    files = [folder / f"{i}.npz" for i in range(2)]
    mesh = json.dumps({"data": 2, "fsdp": 2, "tensor": 2})
    started = [four_each.start(program, file, mesh, coordinator, 2, i) for i, file in enumerate(files)]
    usages = []
    for process in started:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        usages.append(json.loads(out.splitlines()[-1]))
    one.succeed(program, folder / "one.npz", json.dumps({}))
    return [loaded(file) for file in files], loaded(folder / "one.npz"), usages


def loaded(file) -> Completions:
    with np.load(file) as arrays:
        return Completions(*arrays.values())


def test_every_process_gets_its_own_responses(outcomes):
    parts, _, _ = outcomes
    assert [len(part.lengths) for part in parts] == [4, 9]


def test_they_are_those_of_one_device(outcomes):
    parts, whole, _ = outcomes
    ours = Completions(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    for name in ("ids", "lengths", "finish"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(whole, name), err_msg=name)
    np.testing.assert_allclose(ours.log_probs, whole.log_probs, atol=1e-4)
    assert 0 < whole.finished.sum() < 13


def test_they_follow_one_schedule(outcomes):
    usages = outcomes[2]
    assert usages[0] == usages[1]
    assert usages[0]["completed"] == 13
