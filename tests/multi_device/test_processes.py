"""Two processes of a run that were started with other packages."""

import socket

import pytest

from tests.processes import ROOT, Commands

pytestmark = pytest.mark.slow


def test_packages_that_differ_are_named_with_the_process(tmp_path):
    other = tmp_path / "packages" / "optax-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: optax\nVersion: 0.0.1\n")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    processes = []
    for process, packages in enumerate((ROOT, f"{other.parent}:{ROOT}")):  # found first
        commands = Commands(tmp_path, JAX_PLATFORMS="cpu", PYTHONPATH=str(packages))
        processes.append(commands.start("tests.multi_device.agree", coordinator, process))
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode != 0
        assert "process 1 differs from process 0: 'optax 0.0.1' there, 'optax 0." in err
