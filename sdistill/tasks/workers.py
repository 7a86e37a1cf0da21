"""A pool of worker processes, which are killed when a call takes too long.

A worker is a fresh interpreter that holds an instance of a class and calls its methods. So it holds no JAX,
and it can be started from any thread of a process that does. There are no signals: the calling thread waits
on a pipe, and kills.
"""

import contextlib
import importlib
import json
import math
import os
import resource
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

MAX_REQUEST = 1 << 15  # bytes; far below the buffer of a pipe, so that sending a request never blocks
START_SECONDS = 120.0  # to import; far more than it takes, because a busy machine is no reason to fail
SPARE_SECONDS = 2.0  # of processor time beyond the deadline, after which the kernel ends a worker
PACKAGE_ROOT = Path(__file__).parents[2]


class WorkerDied(RuntimeError):
    """Two workers died, one after the other, during the same call."""


class Worker(NamedTuple):
    """A process, and the pipe to it."""

    process: subprocess.Popen[bytes]
    connection: Connection


class WorkerPool:
    """Worker processes, which start when they are first needed.

    Any number of threads may call; at most `count` calls run at a time. The pool ends its workers when it is
    closed or collected, or at the interpreter's exit.

    Attributes:
      deadline: Seconds for a call.
      counts: Numbers of `calls`, of calls that `timed out`, and of workers that `died` by themselves.
      close: Ends all workers, whatever they are doing; there can be no calls afterwards.
    """

    def __init__(self, actor: type, *, count: int, deadline: float, memory: int):
        """At most `count` workers, each with an instance of the class `actor` and `memory` bytes."""
        self.counts: Counter[str] = Counter()
        self.deadline = deadline
        self._name = actor.__name__
        self._arguments = [actor.__module__, actor.__name__, str(deadline), str(memory)]
        self._counting = threading.Lock()
        self._free = threading.Semaphore(count)
        self._idle: list[Worker] = []  # append and pop are atomic
        self._processes: set[subprocess.Popen[bytes]] = set()
        self.close = weakref.finalize(self, _end_all, self._processes)

    def call(self, method: str, *arguments: Any) -> Any:
        """The result of a method of the actor; arguments and result are plain JSON values.

        If the worker dies during the call, another one repeats it, once.

        Raises:
          TimeoutError: at the deadline; the worker has been killed.
          WorkerDied: if the second worker died, too.
          ValueError: for a request above `MAX_REQUEST` bytes.
        """
        request = json.dumps([method, *arguments]).encode()
        if len(request) > MAX_REQUEST:
            raise ValueError(f"a request of {len(request)} bytes; workers take {MAX_REQUEST} at most")
        with self._free:
            self._count("calls")
            for _ in range(2):
                worker = self._idle.pop() if self._idle else self._start()
                try:
                    worker.connection.send_bytes(request)
                    if not worker.connection.poll(self.deadline):
                        raise TimeoutError(f"no answer in {self.deadline} s")
                    result = json.loads(worker.connection.recv_bytes())
                except TimeoutError:
                    self._end(worker)
                    self._count("timed out")
                    raise
                except (EOFError, OSError):
                    self._end(worker)
                    self._count("died")
                except BaseException:  # such as an interrupt: the state of the worker is unknown
                    self._end(worker)
                    raise
                else:
                    self._idle.append(worker)
                    return result
        raise WorkerDied(f"two workers with a {self._name} died during the same call")

    def _start(self) -> Worker:
        ours, theirs = Pipe()
        paths = [str(PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        with theirs:
            # It inherits no file but the pipe, gets no terminal signals, and does not import from the
            # caller's folder.
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(theirs.fileno()), *self._arguments],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        worker = Worker(process, ours)
        self._processes.add(process)
        try:
            if not self.close.alive:  # checked after the start, so that closing in between leaks no worker
                raise RuntimeError(f"the workers with a {self._name} are closed")
            with contextlib.suppress(EOFError, OSError):
                if ours.poll(START_SECONDS) and ours.recv_bytes():
                    return worker
            raise RuntimeError(f"a worker with a {self._name} did not start; its message is above")
        except BaseException:
            self._end(worker)
            raise

    def _end(self, worker: Worker) -> None:
        worker.connection.close()
        _end_all({worker.process})
        self._processes.discard(worker.process)

    def _count(self, event: str) -> None:
        with self._counting:
            self.counts[event] += 1


def _end_all(processes: set[subprocess.Popen[bytes]]) -> None:
    while processes:
        process = processes.pop()
        process.kill()
        process.wait()


def serve(connection: Connection, module: str, actor: str, deadline: float, memory: int) -> None:
    """The life of a worker: it serves requests until its pipe is closed, at the latest when its owner ends.

    A worker that is stuck when its owner is killed does not notice. The kernel ends it, because its processor
    time is limited anew for each request.
    """
    instance = getattr(importlib.import_module(module), actor)()
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection.send_bytes(b"ready")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # libraries complain about odd answers
    while True:
        try:
            method, *arguments = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        limit = math.ceil(time.process_time() + deadline + SPARE_SECONDS)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        connection.send_bytes(json.dumps(getattr(instance, method)(*arguments)).encode())


def core_count() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), sys.argv[2], sys.argv[3], float(sys.argv[4]), int(sys.argv[5]))
