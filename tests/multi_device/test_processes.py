"""Two processes: who lags is named, and who was started with other packages."""

import re
import signal
import socket
import time

import pytest

from tests.processes import ROOT, Commands

pytestmark = pytest.mark.slow


def start(folder, workdir, packages=(None, None)):
    """Both processes; each finds the packages in its folder first."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    program, started = "tests.multi_device.beat", []
    for process, first in enumerate(packages):
        path = {"PYTHONPATH": f"{first}:{ROOT}"} if first else {}
        commands = Commands(folder, JAX_PLATFORMS="cpu", **path)
        started.append(commands.start(program, workdir, coordinator, process))
    return started


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What process 0 said of a run whose process 1 is late once, and later stopped for some seconds."""
    folder = tmp_path_factory.mktemp("beats")
    processes = start(folder, folder / "run")
    beat = folder / "run" / "heartbeats" / "1.json"
    try:
        while not (beat.exists() and re.search(r"step [2-5]\d:", beat.read_text())):
            assert all(process.poll() is None for process in processes)
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGSTOP)
        time.sleep(4)
    finally:
        processes[1].send_signal(signal.SIGCONT)
    ends = [process.communicate(timeout=120) for process in processes]
    for process, (out, err) in zip(processes, ends, strict=True):
        assert process.returncode == 0 and "all steps made" in out, err
    return [err for _, err in ends]


def test_a_process_that_works_while_others_wait_is_named(printed):
    first, second = printed
    assert re.search(
        rf"process 1 on {socket.gethostname()} has been at step 6: verify for \d s; "
        "1 of 2 processes wait for it",
        first,
    )
    assert "has been at" not in second  # one says it for all


def test_a_process_that_is_stopped_is_named_with_what_it_did_last(printed):
    assert re.search(
        rf"process 1 on {socket.gethostname()} has given no sign of life for \d s; its last was from "
        r"step \d+: verify",
        printed[0],
    )


def test_each_is_named_once_and_its_return_is_told(printed):
    told = re.findall(r"^process 1 (on|goes on)\b", printed[0], re.MULTILINE)
    assert len(told) >= 4 and told == ["on", "goes on"] * (len(told) // 2)


def test_packages_that_differ_are_named_with_the_process(tmp_path):
    other = tmp_path / "packages" / "optax-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: optax\nVersion: 0.0.1\n")
    for process in start(tmp_path, tmp_path / "run", (None, other.parent)):
        _, err = process.communicate(timeout=120)
        assert process.returncode != 0
        assert "process 1 differs from process 0: 'optax 0.0.1' there, 'optax 0." in err
    assert not (tmp_path / "run").exists()
