"""Sequences that are split over devices have the loss and the gradients that they have on one."""

import json

import numpy as np
import pytest

from tests.processes import Commands


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("context")
    commands = Commands(folder, devices=8)
    printed = commands.succeed("tests.multi_device.compare_context", folder).splitlines()
    facts = json.loads(next(line for line in printed if line.startswith("{")))
    arrays = {}
    for name in facts:
        with np.load(folder / f"{name}.npz") as file:
            arrays[name] = list(file.values())
    return arrays, facts


@pytest.mark.parametrize("name", ["plain", "splash"])
def test_loss_and_gradients_are_those_of_one_device(outcomes, name):
    arrays, _ = outcomes
    loss, *gradients = arrays["one"]
    assert loss > 0.01 and len(gradients) == 3 + 2 * 11
    assert all(np.abs(gradient).max() > 1e-6 for gradient in gradients)
    for ours, theirs in zip(arrays[name], arrays["one"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


def test_parameters_are_split_over_the_context_axis_too(outcomes):
    _, facts = outcomes
    assert facts["one"]["shard"] == [1, 32, 48]
    assert facts["plain"] == {"shard": [1, 4, 48], "gathers": True}
    assert facts["splash"] == {"shard": [1, 8, 24], "gathers": True}
