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
from typing import IO, Literal

from sdistill.settings import require_positive
from sdistill.tasks import confined

NOBODY = 65534  # Linux' user without rights
# New namespaces have no network but their own, and no processes but their own, which all end with the first.
NAMESPACES = ("unshare", "--user", "--net", "--ipc", "--pid", "--fork", "--kill-child")
DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--no-new-privs")


@dataclass(frozen=True)
class Limits:
    """What one run of a program may use.

    Attributes:
      seconds: Processor time; LiveCodeBench's limit.
      wall_seconds: Time by the clock, which is longer because other programs run, too.
      memory: Bytes of address space.
      file: Bytes of a file it writes, standard output among them.
      processes: Processes and threads, where the machine can count them (see `Isolation`).
    """

    seconds: int = 6
    wall_seconds: float = 15.0
    memory: int = 1 << 30
    file: int = 1 << 24
    processes: int = 32

    def __post_init__(self) -> None:
        require_positive(self, "seconds", "wall_seconds", "memory", "file", "processes")


@dataclass(frozen=True)
class Isolation:
    """What keeps programs apart from the machine, besides the limits.

    Attributes:
      namespaces: Whether a program has no network, sees no other processes, and leaves none behind.
      nobody: Whether it runs as another user, who may change nothing; only root can do that.
    """

    namespaces: bool
    nobody: bool

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
    """What came of a run.

    Attributes:
      end: `done`, `failed` with an error or a signal, or `time` if it used up its time.
      output: Its standard output.
      error: Its standard error; where it was killed, the signal's name.
    """

    end: Literal["done", "failed", "time"]
    output: str
    error: str


@functools.cache
def isolation() -> Isolation:
    """The strongest isolation that works here, found out by trying.

    Raises:
      RuntimeError: where no program runs at all, with what it said.
    """
    root = os.geteuid() == 0
    for candidate in (Isolation(a, b) for a in (True, False) for b in ([True, False] if root else [False])):
        try:
            tried = run("print(6 * 7)", "", Limits(), isolated=candidate)
        except OSError as error:  # there is no such command, or no such right
            tried = Run("failed", "", str(error))
        if tried.output == "42\n":
            return candidate
    raise RuntimeError(f"programs cannot be run here: {tried.error}")


def run(
    source: str,
    text: str,
    limits: Limits,
    *,
    function: str | None = None,
    isolated: Isolation | None = None,
) -> Run:
    """Runs a program once.

    Args:
      source: The program.
      text: Its standard input.
      limits: What it may use.
      function: Called with the JSON values on the lines of `text`; its result is the output, as JSON.
      isolated: How; None for the strongest that works here.
    """
    isolated = isolated or isolation()
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as stdin,
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
    ):
        Path(folder, confined.SOURCE).write_text(source, encoding="utf-8")
        stdin.write(text.encode())
        stdin.seek(0)
        if isolated.nobody:
            shutil.chown(folder, NOBODY, NOBODY)
        process = subprocess.Popen(
            _command(limits, function, isolated),
            cwd=folder,
            # Nothing of the caller's environment, which may hold secrets.
            env={"PATH": os.defpath, "HOME": folder, "LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1"},
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            user=NOBODY if isolated.nobody else None,
            group=NOBODY if isolated.nobody else None,
            extra_groups=[] if isolated.nobody else None,
        )
        status, seconds, late = _wait(process, limits.wall_seconds)
        output, error = _read(stdout, limits.file), _read(stderr, limits.file)
    if late or seconds >= limits.seconds:
        return Run("time", output, error)
    if status < 0:
        error += f"killed by {signal.Signals(-status).name}"
    return Run("failed" if status else "done", output, error)


def _command(limits: Limits, function: str | None, isolated: Isolation) -> list[str]:
    job = {
        # The kernel kills a second later than `run` judges: so what it killed has used more than its time.
        "seconds": limits.seconds + 1,
        "memory": limits.memory,
        "file": limits.file,
        "processes": limits.processes if isolated.counts_processes else None,
        "packages": sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}),
        "function": function,
    }
    program = [sys.executable, "-I", "-S", "-c", Path(confined.__file__).read_text(encoding="utf-8")]
    prefix = [*DIE_WITH_PARENT, *NAMESPACES] if isolated.namespaces else []
    return [*prefix, *program, json.dumps(job)]


def _wait(process: subprocess.Popen[bytes], wall_seconds: float) -> tuple[int, float, bool]:
    """Exit status, processor seconds, and whether it was killed because it took too long."""
    late = threading.Event()

    def end() -> None:
        late.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(wall_seconds, end)
    timer.start()
    try:
        # Left in the process table until the timer is gone and its group dead: its number stays its own.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    finally:
        timer.cancel()
        timer.join()
        os.killpg(process.pid, signal.SIGKILL)
        # Not Popen.wait: only this tells the processor time of the program and of its children.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_utime + usage.ru_stime, late.is_set()


def _read(file: IO[bytes], size: int) -> str:
    file.seek(0)
    return file.read(size).decode(errors="replace")
