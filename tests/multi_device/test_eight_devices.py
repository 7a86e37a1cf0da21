"""The checks of eight_devices.py, in a process of their own: JAX fixes the number of devices at its start."""

import pytest

from tests.processes import Commands

CHECKS = "tests/multi_device/eight_devices.py"


@pytest.mark.parametrize("which", ["not long", pytest.param("long", marks=pytest.mark.long)])
def test_eight_devices_compute_what_one_computes(which, data_dir):
    printed = Commands(data_dir, devices=8).succeed("pytest", CHECKS, "-m", which, "-p", "no:cacheprovider")
    assert " passed" in printed and "skipped" not in printed
