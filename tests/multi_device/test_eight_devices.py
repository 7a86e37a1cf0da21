"""Eight devices, data=2 × fsdp=2 × tensor=2, compute what one device computes."""

import json

import numpy as np
import pytest

from sdistill.engine.types import Completions
from tests.processes import Commands


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    return Commands(folder, devices=8)


@pytest.fixture(scope="module")
def outcomes(commands, tmp_path_factory):
    folder = tmp_path_factory.mktemp("outcomes")
    printed = commands.succeed("tests.multi_device.compare", folder).splitlines()
    reports = json.loads(next(line for line in printed if line.startswith("{")))
    for name, report in reports.items():
        with np.load(folder / f"{name}.npz") as file:
            arrays = list(file.values())
        leaves = len(arrays[5:]) // 2
        report["rollouts"] = Completions(*arrays[:5])
        report["params"], report["moments"] = arrays[5 : 5 + leaves], arrays[5 + leaves :]
    return reports["single"], reports["multiple"]


def test_the_work_is_split(outcomes):
    single, multiple = outcomes
    assert single["devices"] == 1 and single["shard"] == [1, 32, 48]
    assert multiple["devices"] == 8 and multiple["shard"] == [1, 16, 24]  # layers, fsdp × tensor


def test_the_step_is_the_same(outcomes):
    single, multiple = outcomes
    assert single["metrics"].keys() == multiple["metrics"].keys()
    for name, pair in single["metrics"].items():
        assert multiple["metrics"][name] == pytest.approx(pair, rel=1e-5, abs=1e-6), name
    for name in ("params", "moments"):
        assert len(single[name]) == len(multiple[name]) == 14
    for ours, theirs in zip(multiple["moments"], single["moments"], strict=True):  # a tenth of the gradient
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())
    for ours, theirs, moment in zip(multiple["params"], single["params"], single["moments"], strict=True):
        sure = np.abs(moment) > 1e-6  # Adam's first step is ± the rate: rounding decides where there is none
        assert sure.mean() > 0.5
        np.testing.assert_allclose(ours[sure], theirs[sure], rtol=1e-5, atol=1e-5)


def test_the_responses_are_the_same(outcomes):
    ours, theirs = (outcome["rollouts"] for outcome in outcomes)
    np.testing.assert_array_equal(ours.ids, theirs.ids)
    np.testing.assert_array_equal(ours.lengths, theirs.lengths)
    np.testing.assert_array_equal(ours.finished, theirs.finished)
    np.testing.assert_allclose(ours.log_probs, theirs.log_probs, atol=1e-4)
    assert theirs.lengths.max() == 6 and theirs.finished.any()


def test_the_second_step_compiles_nothing(outcomes):
    for outcome in outcomes:
        first, again = outcome["compilations"]
        assert first > 0
        assert again == 0


def test_sampling_sends_neither_weights_nor_caches_between_devices(commands):
    """A step sends a residual stream and a block of probabilities a row; beginning a row sends nothing."""
    width, block, rows = 32, 128, 4
    sent = json.loads(commands.succeed("tests.multi_device.collectives").splitlines()[-1])
    assert {kind for kind, _ in sent["decode"]} >= {"all-reduce"}  # the programs are really split
    largest = max(size for _, size in sent["decode"])
    assert largest <= max(rows * block, 16 * 16)  # the round's tokens of all rows, for the host
    assert max(size for kind, size in sent["decode"] if kind == "all-reduce") <= rows * width
    assert sent["admit"] == []


def test_where_the_config_names_no_mesh_one_is_chosen_that_fits(commands):
    chosen = json.loads(commands.succeed("tests.multi_device.choose").splitlines()[-1])
    assert chosen["enough"] == [{"data": 8, "fsdp": 1, "tensor": 1, "context": 1}, 1]
    assert chosen["tight"] == [{"data": 4, "fsdp": 2, "tensor": 1, "context": 1}, 2]
    assert chosen["refused"] == [
        "mesh tensor=4 cannot split kv_heads=2 of the model; make an axis smaller",
        "mesh tensor=1 × context=4 cannot split kv_heads=2 of the model; make an axis smaller",
    ]
