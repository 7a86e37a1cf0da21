"""launch/join.py: processes that find each other, or are told, run the same module together."""

import json
import os
import runpy
import socket
import subprocess
import sys

import pytest

from tests.launch.desk import ROOT

JOIN = str(ROOT / "launch/join.py")

# Prints who it is; process 0 also whether somebody listens at the port.
WHO = """
import json, socket, sys
import jax
if jax.process_index() == 0:
    socket.create_connection(("localhost", int(sys.argv[1]))).close()
print(json.dumps([__name__, sys.argv[1:], jax.process_index(), jax.process_count()]))
"""


def start(folder, *arguments, **settings):
    """A process in a directory that has the module `who`."""
    (folder / "who.py").write_text(WHO)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return subprocess.Popen(
        [sys.executable, JOIN, *map(str, arguments)],
        cwd=folder,
        env=environment | {"JAX_PLATFORMS": "cpu"} | settings,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def slurm(process, port):
    """What Slurm says to one of two processes, and launch/pod/worker.sh to those of a TPU VM."""
    found = {
        "JOB_ID": "1",
        "STEP_NODELIST": "localhost",
        "NTASKS": "2",
        "PROCID": f"{process}",
        "LOCALID": "0",
    }
    return {f"SLURM_{name}": value for name, value in found.items()} | {"JAX_COORDINATOR_PORT": str(port)}


def test_two_processes_run_a_module_together(tmp_path):
    """Process 0 finds the others by what Slurm says, and its port in the environment; process 1 is told."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    where = ("--coordinator", f"localhost:{port}", "--processes", 2, "--process", 1)
    processes = [
        start(tmp_path, "who", port, "--flag", **slurm(0, port)),
        start(tmp_path, *where, "who", port, "--flag"),
    ]
    for index, process in enumerate(processes):
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert json.loads(out.splitlines()[-1]) == ["__main__", [str(port), "--flag"], index, 2]


def test_a_process_that_is_alone_is_told_what_to_do(tmp_path):
    out, err = start(tmp_path, "who").communicate(timeout=120)
    assert "python -m who" in err and "--coordinator" in err
    assert out == ""


def test_half_an_address_is_refused(capsys):
    with pytest.raises(SystemExit):
        runpy.run_path(JOIN)["main"](["--coordinator", "localhost:1", "who"])
    assert "are given together or not at all" in capsys.readouterr().err
