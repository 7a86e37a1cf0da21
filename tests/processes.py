"""Commands in processes of their own, how to kill them, and what they leave behind."""

import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event

ROOT = Path(__file__).parents[1]


class Commands:
    """Runs `python -m` commands that share prepared data sets, and compiled programs with all other tests.

    With `devices`, each sees as many CPU devices and no others; `optimized` commands compile as users' do.
    `folder` is the directory that they run in.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        devices: int | None = None,
        optimized: bool = False,
        folder: Path = ROOT,
        **environment: str,
    ):
        self.folder = folder
        if optimized:
            environment |= {"XLA_FLAGS": ""}
        if devices is not None:
            forced = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
            environment |= {"XLA_FLAGS": forced, "JAX_PLATFORMS": "cpu"}
        self.environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "TFDS_DATA_DIR": str(data_dir),
            "COLUMNS": "200",
            **environment,
        }

    def start(self, *arguments: object, stdin: int | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", *map(str, arguments)],
            stdin=stdin,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def start_two(
        self, *arguments: object, more: tuple[Sequence[object], Sequence[object]] = ((), ())
    ) -> list[subprocess.Popen[str]]:
        """The same command in two processes that find each other; with what each is told besides."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            coordinator = f"localhost:{free.getsockname()[1]}"
        join = ("launch.join", "--coordinator", coordinator, "--processes", 2, "--process")
        return [self.start(*join, i, *arguments, *more[i]) for i in range(2)]

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def succeed(self, *arguments: object) -> str:
        """Runs a command that must succeed; returns what it printed."""
        done = self.run(*arguments)
        printed = done.stdout + done.stderr
        assert done.returncode == 0, printed
        return printed

    def kill(self, *arguments: object, when: Callable[[], bool], after: float = 0.0) -> None:
        """Starts a command and kills it, as a power cut would, `after` seconds after `when` became true."""
        process = self.start(*arguments)
        try:
            while not when():
                assert process.poll() is None, f"ended before it was killed: {process.communicate()}"
                time.sleep(0.01)
            time.sleep(after)
            assert process.poll() is None, "ended before it was killed"
        finally:
            process.kill()
            process.communicate()


class ForkedCommands:
    """Runs commands one after the other in forks of one process, which has imported the package already."""

    def __init__(self, data_dir: Path):
        self._server = Commands(data_dir).start("tests.forks", stdin=subprocess.PIPE)

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        assert self._server.stdin is not None and self._server.stdout is not None
        print(json.dumps(list(map(str, arguments))), file=self._server.stdin, flush=True)
        answer = self._server.stdout.readline()
        assert answer, self._server.communicate()
        return subprocess.CompletedProcess(list(arguments), *json.loads(answer))

    def close(self) -> None:
        self._server.communicate()


def files_below(folder: Path) -> dict[str, bytes]:
    """The content of every file but checkpoints, which Orbax splits as it likes, and times, which differ."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not {"checkpoints", "tensorboard"} & set(path.parts)
    }


def assert_same_files(ours: Path, theirs: Path) -> None:
    a, b = files_below(ours), files_below(theirs)
    assert sorted(a) == sorted(b)
    assert [name for name in a if a[name] != b[name]] == []


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """What TensorBoard shows: (name, step) → value.

    An event file is a sequence of records: a length, its checksum, an Event, its checksum.
    """
    found = {}
    for path in sorted(folder.glob("events.*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            content = content[16 + length :]
    return found
