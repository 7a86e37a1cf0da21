"""A model on eight devices, data=2 × fsdp=2 × tensor=2, is what it is on one."""

import numpy as np
import pytest

from tests.processes import Commands, assert_same_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    commands = Commands(folder, devices=8)
    commands.succeed("tests.multi_device.compare_models", folder)
    return folder


def test_the_kernel_for_tpu_on_each_device_computes_what_plain_attention_does_on_one(folder):
    with np.load(folder / "one.npz") as one, np.load(folder / "eight.npz") as eight:
        assert one.files == eight.files and len(one.files) == 1 + 3 + 2 * 11  # logits, and two stacks
        for name in one.files:
            np.testing.assert_allclose(eight[name], one[name], atol=2e-5 * np.abs(one[name]).max())


def test_a_model_that_was_loaded_onto_the_mesh_is_saved_as_it_was(folder):
    assert_same_files(folder / "one", folder / "source")
    assert_same_files(folder / "eight", folder / "source")
