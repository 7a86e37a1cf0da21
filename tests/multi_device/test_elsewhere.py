"""A run goes on under another mesh: the same computation, rounded otherwise."""

import json

import pytest

from tests.processes import Commands


@pytest.mark.long
def test_a_run_that_moves_from_mesh_to_mesh_learns_the_same(tmp_path):
    commands = Commands(tmp_path, devices=8)
    printed = commands.succeed("tests.multi_device.elsewhere", tmp_path)
    runs = json.loads(next(line for line in printed.splitlines() if line.startswith('{"moved"')))
    assert [record["step"] for record in runs["moved"]] == [1, 2, 3, 4, 5, 6]
    for moved, stayed in zip(runs["moved"], runs["stayed"], strict=True):
        assert moved.keys() == stayed.keys()
        assert moved["train_accuracy"] == stayed["train_accuracy"] > 0  # the same responses, too
        for name, value in stayed.items():
            assert moved[name] == pytest.approx(value, rel=2e-3, abs=1e-5), (stayed["step"], name)
    assert printed.count("going on under another layout") == 2 and "mesh.tensor=2 there, 1 here" in printed
