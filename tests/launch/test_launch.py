"""launch/environment.sh, driven with stand-ins for Python: no installs, no network."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Answers what the script asks a Python and writes down what it makes; a venv holds a copy of it.
STAND_IN = """#!/bin/sh
case "$*" in
  "-c import sys"*) echo "$VERSION" ;;
  "-c import venv"*) exit "$VENV_STATUS" ;;
  "-V") echo "Python $VERSION" ;;
  "-m venv --clear "*) echo venv >>"$CALLS"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
  "-m pip install "*) echo "$*" >>"$CALLS"; eval "$PIP_ENDS" ;;
  *) exit 64 ;;
esac
"""


class Checkout:
    """The files the script reads, in a path with a space, and a PATH without a real Python."""

    def __init__(self, folder: Path):
        self.root, self.bin, self.calls_file = folder / "a copy", folder / "bin", folder / "calls"
        (self.root / "launch").mkdir(parents=True)
        self.bin.mkdir()
        for name in ["requirements.txt", "pyproject.toml", "launch/environment.sh"]:
            shutil.copy(ROOT / name, self.root / name)
        for tool in ["bash", "cat", "cksum", "cp", "dirname", "grep", "mkdir", "rm"]:
            (self.bin / tool).symlink_to(shutil.which(tool))

    def add_python(self, name: str) -> None:
        (self.bin / name).write_text(STAND_IN)
        (self.bin / name).chmod(0o755)

    def prepare(self, *extras, version="3.12.1", venv_status=0, pip_ends="exit 0", **environment):
        """Runs prepare_environment from another directory, with an empty HOME."""
        source = 'set -euo pipefail; source "$0"; prepare_environment "$@"; echo "ready: $python"'
        return subprocess.run(
            ["bash", "-c", source, self.root / "launch/environment.sh", *extras],
            env=dict(PATH=str(self.bin), HOME="", CALLS=self.calls_file, VERSION=version)
            | dict(VENV_STATUS=str(venv_status), PIP_ENDS=pip_ends)
            | environment,
            cwd=self.bin,
            text=True,
            capture_output=True,
        )

    def calls(self) -> list[str]:
        """What was called since the last look: "venv", or the arguments of pip."""
        lines = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        self.calls_file.unlink(missing_ok=True)
        return lines


@pytest.mark.parametrize(
    ("pythons", "settings", "message"),
    [
        ([], {}, "found: none among python3.13 python3.12 python3.11 python3"),
        (["python3"], {"version": "3.9.2"}, "found: python3 is 3.9.2"),
        (["python3"], {"version": "3.14.0"}, "found: python3 is 3.14.0"),
        (["python3"], {"PYTHON": "/no/python"}, "found: none among /no/python"),
        (["python3.12"], {"venv_status": 1}, "sudo apt install python3.12-venv"),
        (["python3"], {"pip_ends": "exit 1"}, "pip could not install"),
    ],
)
def test_a_failure_names_what_is_missing_and_the_way_out(tmp_path, pythons, settings, message):
    checkout = Checkout(tmp_path)
    for name in pythons:
        checkout.add_python(name)
    result = checkout.prepare(**settings)
    assert result.returncode == 1
    assert message in result.stderr and "run this again" in result.stderr


def test_a_current_environment_is_used_as_it_is(tmp_path):
    checkout = Checkout(tmp_path)
    checkout.add_python("python3")
    first = checkout.prepare("dev")
    assert first.stdout.endswith(f"ready: {checkout.root}/.venv/bin/python\n"), first.stderr
    making, installing = checkout.calls()
    assert making == "venv" and "dev" in installing
    for extras in [["dev"], []]:  # fewer extras are there already
        assert checkout.prepare(*extras).returncode == 0
        assert checkout.calls() == []


def test_what_changed_is_installed_and_what_is_broken_is_made_afresh(tmp_path):
    checkout = Checkout(tmp_path)
    checkout.add_python("python3")
    checkout.prepare()
    assert len(checkout.calls()) == 2
    checkout.prepare("dev")
    assert len(checkout.calls()) == 1
    with open(checkout.root / "requirements.txt", "a") as requirements:
        requirements.write("another-package\n")
    checkout.prepare()
    [installing] = checkout.calls()
    assert "dev" in installing  # what was there stays
    checkout.prepare("wandb", pip_ends="exit 1")  # pip undid what it began
    assert checkout.prepare("dev").returncode == 0
    assert len(checkout.calls()) == 1
    checkout.prepare("wandb", pip_ends="kill -9 $$")  # half the packages may be there
    checkout.calls()
    checkout.prepare()
    assert checkout.calls()[0] == "venv"
    checkout.prepare(version="3.13.0")
    assert checkout.calls()[0] == "venv"


def test_the_jax_build_follows_the_machine(tmp_path):
    checkout = Checkout(tmp_path)
    checkout.add_python("python3")
    checkout.prepare(TPU_ACCELERATOR_TYPE="v5p-8")
    assert checkout.calls()[1].endswith("--editable .[tpu]")
