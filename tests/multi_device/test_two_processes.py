"""Two processes of four devices each have the responses, the loss and the gradients of one device."""

import json

import numpy as np
import pytest

from sdistill.engine.types import Completions
from tests import tiny
from tests.multi_device import pair
from tests.processes import Commands


def loaded(file) -> dict[str, np.ndarray]:
    with np.load(file) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pair")


@pytest.fixture(scope="module")
def printed(folder):
    """What both print; the second has a package of another version at the end."""
    other = folder / "packages" / "optax-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: optax\nVersion: 0.0.1\n")
    found = []
    for process in Commands(folder, devices=4).start_two("tests.multi_device.pair", folder, other.parent):
        out, err = process.communicate(timeout=300)  # which a process that waits for ever would reach
        assert process.returncode == 0, err
        found.append(json.loads(out.splitlines()[-1]))
    return found


def test_responses_are_those_of_one_device(printed, folder):
    parts = [Completions(*loaded(folder / f"completions{i}.npz").values()) for i in range(2)]
    assert [len(part.lengths) for part in parts] == [4, 9]  # every process gets its own
    ours = Completions(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    theirs, _ = pair.sample(tiny.one_device())
    for name in ("ids", "lengths", "finish"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
    np.testing.assert_allclose(ours.log_probs, theirs.log_probs, atol=1e-4)
    assert 0 < theirs.finished.sum() < 13


def test_both_follow_one_schedule(printed):
    assert printed[0]["stats"] == printed[1]["stats"] and printed[0]["stats"]["completed"] == 13


def test_gradients_are_those_of_one_device_also_if_a_process_has_nothing_to_learn(printed, folder):
    theirs = pair.gradients(tiny.one_device())
    for process in range(2):
        ours = loaded(folder / f"gradients{process}.npz")
        assert ours.keys() == theirs.keys() and theirs["half 0"] > 0.01
        names = [name for name in theirs if name.startswith("half")]
        assert len(names) == 1 + 14
        for name in names:
            scale = np.abs(theirs[name]).max()
            assert scale > 1e-6
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-5 * scale, err_msg=name)
        for name in theirs.keys() - set(names):  # no row has a teacher
            np.testing.assert_array_equal(ours[name], 0, err_msg=name)


def test_packages_that_differ_are_named_with_the_process(printed):
    for found in printed:
        expected = "process 1 differs from process 0: 'optax 0.0.1' there, 'optax 0."
        assert found["disagreement"].startswith(expected)
