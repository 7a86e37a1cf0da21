"""Two processes of four devices have the loss and the gradients of one device, also if one learns nothing."""

import json
import socket

import numpy as np
import pytest

from tests.processes import Commands

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What both processes have, and what one device has."""
    folder = tmp_path_factory.mktemp("step")
    one, four_each = Commands(folder, devices=1), Commands(folder, devices=4)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    program, mesh = "tests.multi_device.step", json.dumps({"data": 2, "fsdp": 2, "tensor": 2})
    files = [folder / f"{i}.npz" for i in range(2)]
    started = [four_each.start(program, file, mesh, coordinator, 2, i) for i, file in enumerate(files)]
    for process in started:
        _, err = process.communicate(timeout=300)  # which a process that waits for ever would reach
        assert process.returncode == 0, err
    one.succeed(program, folder / "one.npz", "{}")
    return [loaded(file) for file in files], loaded(folder / "one.npz")


def loaded(file) -> dict[str, np.ndarray]:
    with np.load(file) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("process", [0, 1])
def test_rows_without_a_teacher_on_one_process_only(process, outcomes):
    ours, theirs = outcomes[0][process], outcomes[1]
    assert ours.keys() == theirs.keys() and theirs["half 0"] > 0.01
    names = [name for name in theirs if name.startswith("half")]
    assert len(names) == 1 + 14
    for name in names:
        scale = np.abs(theirs[name]).max()
        assert scale > 1e-6
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize("process", [0, 1])
def test_rows_without_a_teacher_on_both_have_no_gradient(process, outcomes):
    for name, value in outcomes[0][process].items():
        if name.startswith("none"):
            np.testing.assert_array_equal(value, 0, err_msg=name)
