"""Runs a Python program in a process of its own, under limits and as isolated as the machine permits."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sdistill.settings import require_positive
from sdistill.tasks import confined

NOBODY = 65534  # Linux's user without rights
# New namespaces have their own network and their own processes, which all end with the first of them.
NAMESPACES = ("unshare", "--user", "--net", "--ipc", "--pid", "--fork", "--kill-child")
DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--no-new-privs")


@dataclass(frozen=True)
class Limits:
    """The resources of one run of a program."""

    seconds: int = 6  # of processor time; LiveCodeBench's limit
    wall_seconds: float = 15.0  # by the clock; longer, because other programs run, too
    memory: int = 1 << 30  # bytes of address space
    file: int = 1 << 24  # bytes of each file it writes, standard output among them
    processes: int = 32  # and threads, where the machine can count them (see `Isolation`)

    def __post_init__(self) -> None:
        require_positive(self, "seconds", "wall_seconds", "memory", "file", "processes")


@dataclass(frozen=True)
class Isolation:
    """How programs are kept apart from the machine, besides the limits."""

    namespaces: bool  # a program has no network, sees no other processes, and leaves none behind
    nobody: bool  # it runs as another user, who may change nothing; only root can do that

    @property
    def counts_processes(self) -> bool:
        """Whether `Limits.processes` is in force: the kernel counts by user, and exempts root."""
        return self.nobody or (self.namespaces and os.geteuid() != 0)

    def __str__(self) -> str:
        network = "no network" if self.namespaces else "NETWORK OPEN"
        user = "as nobody" if self.nobody else "as this user"
        count = "processes limited" if self.counts_processes else "number of processes not limited"
        left = "none outlives its run" if self.namespaces else "a daemon outlives its run"
        return f"{network}; {user}; {count}; {left}"


@dataclass(frozen=True)
class Run:
    """The result of one run of a program."""

    status: Literal["done", "failed", "timeout"]
    output: str
    error: str  # standard error, and the name of the signal that killed it


@functools.cache
def isolation() -> Isolation:
    """The strongest isolation that works here, found by trying. Raises RuntimeError if no program runs."""
    users = [True, False] if os.geteuid() == 0 else [False]
    for candidate in [Isolation(namespaces, nobody) for namespaces in (True, False) for nobody in users]:
        try:
            trial = run("print(6 * 7)", "", Limits(), isolated=candidate)
        except OSError as error:  # there is no such command, or no such right
            trial = Run("failed", "", str(error))
        if trial.output == "42\n":
            return candidate
    raise RuntimeError(f"programs cannot be run here: {trial.error}")


def run(
    source: str, stdin: str, limits: Limits, *, function: str | None = None, isolated: Isolation | None = None
) -> Run:
    """Runs a program once; `isolated=None` is the strongest isolation that works here.

    A `function` is called with the JSON values on the lines of `stdin`; its result is the output, as JSON.
    """
    isolated = isolated or isolation()
    user = NOBODY if isolated.nobody else None
    job = {
        # The kernel kills a second later than `run` judges, so a killed program has exceeded its time.
        "seconds": limits.seconds + 1,
        "memory": limits.memory,
        "file": limits.file,
        "processes": limits.processes if isolated.counts_processes else None,
        "packages": sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}),
        "function": function,
    }
    prefix = [*DIE_WITH_PARENT, *NAMESPACES] if isolated.namespaces else []
    program = [sys.executable, "-I", "-S", "-c", Path(confined.__file__).read_text(encoding="utf-8")]
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as input_file,
        tempfile.TemporaryFile() as output_file,
        tempfile.TemporaryFile() as error_file,
    ):
        Path(folder, confined.SOURCE).write_text(source, encoding="utf-8")
        input_file.write(stdin.encode())
        input_file.seek(0)
        if user is not None:
            shutil.chown(folder, user, user)
        process = subprocess.Popen(
            [*prefix, *program, json.dumps(job)],
            cwd=folder,
            # Nothing of the caller's environment, which may hold secrets.
            env={"PATH": os.defpath, "HOME": folder, "LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1"},
            stdin=input_file,
            stdout=output_file,
            stderr=error_file,
            start_new_session=True,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )
        exit_code, seconds, late = _wait(process, limits.wall_seconds)
        output, error = (
            os.pread(file.fileno(), limits.file, 0).decode(errors="replace")
            for file in (output_file, error_file)
        )
    if late or seconds >= limits.seconds:
        return Run("timeout", output, error)
    if exit_code < 0:
        error += f"killed by {signal.Signals(-exit_code).name}"
    return Run("failed" if exit_code else "done", output, error)


def _wait(process: subprocess.Popen[bytes], wall_seconds: float) -> tuple[int, float, bool]:
    """Exit code, processor seconds, and whether the program was killed after `wall_seconds`."""
    late = threading.Event()

    def end() -> None:
        late.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(wall_seconds, end)
    timer.start()
    try:
        # WNOWAIT keeps its number reserved until the timer has ended and the process group is dead.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    finally:
        timer.cancel()
        timer.join()
        os.killpg(process.pid, signal.SIGKILL)
        # Unlike Popen.wait, wait4 returns the processor time of the program and its children.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_utime + usage.ru_stime, late.is_set()
