import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sdistill.tasks.workers import MAX_REQUEST, WorkerDied, WorkerPool
from tests.tasks.odd_worker import Broken, Odd

ROOT = Path(__file__).parents[2]
MEMORY = 1 << 30


@pytest.fixture
def pool():
    with_two = WorkerPool(Odd, count=2, deadline=30.0, memory=MEMORY)
    yield with_two
    with_two.close()


@pytest.fixture
def hasty():
    one = WorkerPool(Odd, count=1, deadline=0.3, memory=MEMORY)
    yield one
    one.close()


def ended(pid):
    """Whether a process is gone, or waits only for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def workers():
    """Processes of this one that are workers."""
    children = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pids in children for pid in pids]
    return [command for command in commands if b"odd_worker" in command]


def test_one_worker_serves_one_call_after_the_other(pool, capfd):
    """It starts with the first call, holds no JAX, and what it prints is no result."""
    assert not workers()
    assert [pool.call("double", n) for n in range(5)] == [0, 2, 4, 6, 8]
    assert len(workers()) == 1 and pool.call("pid") == pool.call("pid")
    assert "jax" not in pool.call("modules")
    assert [pool.call("chatter") for _ in range(3)] == ["done"] * 3
    assert capfd.readouterr() == ("", "")
    assert pool.counts == {"calls": 11}


def test_threads_share_the_workers(pool):
    def call(n):
        pool.call("sleep", 0.05)
        return pool.call("pid"), pool.call("double", n)

    with ThreadPoolExecutor(6) as threads:
        results = list(threads.map(call, range(12)))
    assert [double for _, double in results] == [2 * n for n in range(12)]
    assert len({pid for pid, _ in results}) == 2


@pytest.mark.parametrize(("method", "arguments"), [("sleep", [60]), ("spin", []), ("power", [])])
def test_a_late_result_ends_the_worker(hasty, method, arguments):
    """In a sleep, in Python, and in C that holds the interpreter's lock; called from another thread."""
    pid = hasty.call("pid")
    raised = []

    def call():
        start = time.monotonic()
        try:
            hasty.call(method, *arguments)
        except TimeoutError as error:
            raised.append((error, time.monotonic() - start))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(30)
    ((error, seconds),) = raised
    assert "0.3 s" in str(error) and 0.3 <= seconds < 20
    assert ended(pid)
    assert hasty.counts == {"calls": 2, "timed out": 1}
    assert hasty.call("double", 1) == 2


@pytest.mark.parametrize(("method", "arguments"), [("kill", []), ("fill", [1 << 31])])
def test_a_call_that_ends_two_workers_is_given_up(pool, method, arguments):
    """By a signal, and by more memory than the worker has."""
    with pytest.raises(WorkerDied, match="Odd"):
        pool.call(method, *arguments)
    assert pool.counts == {"calls": 1, "died": 2}
    assert pool.call("double", 1) == 2


def test_a_call_is_repeated_when_its_worker_died(pool, tmp_path):
    assert pool.call("die_once", str(tmp_path / "mark")) == "second"
    os.kill(pool.call("pid"), 9)  # while it is idle
    assert pool.call("double", 1) == 2
    assert pool.counts["died"] == 2


def test_a_request_may_not_be_larger_than_the_pipe_takes_at_once(pool):
    assert pool.call("double", "x" * (MAX_REQUEST - 100))
    with pytest.raises(ValueError, match=f"{MAX_REQUEST} at most"):
        pool.call("double", "x" * MAX_REQUEST)


def test_closing_ends_workers_even_in_the_middle(pool):
    idle = pool.call("pid")
    thread = threading.Thread(target=lambda: pytest.raises(RuntimeError, pool.call, "sleep", 60))
    thread.start()
    wait_until(lambda: pool.counts["calls"] == 2)
    time.sleep(0.1)
    pool.close()
    thread.join(30)
    assert not thread.is_alive()
    assert ended(idle) and not workers()
    with pytest.raises(RuntimeError, match="closed"):
        pool.call("double", 1)
    pool.close()


def test_a_pool_that_is_forgotten_ends_its_workers():
    forgotten = WorkerPool(Odd, count=1, deadline=30.0, memory=MEMORY)
    pid = forgotten.call("pid")
    del forgotten
    wait_until(lambda: ended(pid))


def test_a_worker_that_cannot_start_is_an_error(capfd):
    broken = WorkerPool(Broken, count=1, deadline=1.0, memory=MEMORY)
    with pytest.raises(RuntimeError, match="Broken did not start"):
        broken.call("double", 1)
    assert "no such library" in capfd.readouterr().err


OWNER = """
import os, signal, sys, threading, _thread
from sdistill.tasks.workers import WorkerPool
from tests.tasks.odd_worker import Odd
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
pool = WorkerPool(Odd, count=1, deadline={deadline}, memory=1 << 30)
print(pool.call("pid"), flush=True)
{then}
"""


def owner(then, deadline=30.0):
    """Runs another interpreter that owns a worker; its process, and the worker's id."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER.format(then=then, deadline=deadline)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    return process, int(process.stdout.readline())


@pytest.mark.parametrize("then", ["pass", "sys.exit(3)", "raise SystemExit", "sys.stderr.close(); 1 / 0"])
def test_no_worker_outlives_its_interpreter(then):
    process, pid = owner(then)
    process.communicate(timeout=30)
    assert ended(pid)


def test_an_interrupt_ends_the_worker():
    interrupted = """
try:
    pool.call("sleep", 60)
except KeyboardInterrupt:
    print(len(pool._processes), pool.call("double", 1))
"""
    process, pid = owner(interrupted)
    time.sleep(0.3)  # it is in the call by now; were it not, it would end with an error
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert out == "0 2\n" and ended(pid)


@pytest.mark.parametrize("call", ["'sleep', 0", "'spin'"])
def test_no_worker_outlives_an_owner_that_is_killed(call):
    """An idle one sees its pipe close; one that is stuck runs out of the time the kernel gives it."""
    process, pid = owner(f"pool.call({call}); sys.stdin.read()", deadline=0.5)
    time.sleep(0.2)
    process.kill()
    process.communicate()
    wait_until(lambda: ended(pid))
