import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sdistill.settings import ConfigError, parse
from sdistill.tasks.sandbox import Isolation, Limits, isolation, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are confined on Linux only")

SHORT = Limits(seconds=1, wall_seconds=0.5)


@pytest.fixture(params=[True, False], ids=["isolated", "limited"])
def isolated(request):
    """As this machine permits, and without namespaces, which is what is left where it permits none."""
    if not request.param:
        return Isolation(False, False)
    if not isolation().namespaces:
        pytest.skip(f"no namespaces here: {isolation()}")
    return isolation()


def test_output_and_input(isolated):
    done = run("print(int(input()) + 1, 'ü')", "41\n", Limits(), isolated=isolated)
    assert (done.status, done.output, done.error) == ("done", "42 ü\n", "")


@pytest.mark.parametrize(
    "source", ["print(1); exit()", "print(1); quit(0)", "import numpy; print(numpy.ones(1)[0])"]
)
def test_what_programs_are_used_to(source):
    done = run(source, "", Limits())
    assert (done.status, float(done.output), done.error) == ("done", 1.0, "")


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("def f(:", "SyntaxError"),
        ("input()", "EOFError"),
        ("import sys; sys.exit(2)", ""),
        ("f = lambda n: f(n + 1)\nf(0)", "RecursionError"),
        ("while True: print('x' * 1000)", "File too large"),
        ("open('big', 'wb').write(bytes(1 << 25))", "File too large"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import resource as r; r.setrlimit(r.RLIMIT_CPU, (99, 99))", "not allowed to raise"),
    ],
)
def test_errors_and_limits(source, error):
    failed = run(source, "", Limits())
    assert failed.status == "failed" and error in failed.error
    assert "confined" not in failed.error and "main()" not in failed.error


def test_memory_is_limited(isolated):
    assert "MemoryError" in run("x = [0] * 10**9", "", Limits(), isolated=isolated).error


@pytest.mark.parametrize("source", ["while True: pass", "sum(range(10**12))", "import time; time.sleep(60)"])
def test_time_is_limited(isolated, source):
    start = time.monotonic()
    assert run(source, "", SHORT, isolated=isolated).status == "timeout"
    assert time.monotonic() - start < 20


def test_a_program_that_took_too_long_is_late_even_if_it_ended():
    source = "import time\nwhile time.process_time() < 1.2: pass\nprint('done')"
    late = run(source, "", Limits(seconds=1, wall_seconds=30.0))
    assert (late.status, late.output) == ("timeout", "done\n")


def test_nothing_is_seen_of_the_caller(isolated, monkeypatch):
    monkeypatch.setenv("A_SECRET", "xyzzy")
    source = "import os\nprint(sorted(os.listdir()), 'A_SECRET' in os.environ)\nprint(os.getcwd())"
    first, second = (run(source, "", Limits(), isolated=isolated).output.splitlines() for _ in range(2))
    assert first[0] == second[0] == "['solution.py'] False"
    assert first[1] != second[1] and not Path(first[1]).exists()


def test_isolation_is_what_it_says():
    found = isolation()
    network = "import socket\nsocket.create_connection(('127.0.0.1', 1), 2)"
    error = run(network, "", Limits()).error
    assert ("unreachable" in error) == found.namespaces
    assert ("no network" in str(found)) == found.namespaces
    assert ("NETWORK OPEN" in str(found)) != found.namespaces
    identity = run("import os; print(os.getpid())", "", Limits()).output
    assert (identity == "1\n") == found.namespaces
    if found.counts_processes:
        bomb = "import os, time\nfor _ in range(99):\n    if os.fork() == 0: time.sleep(9)"
        assert "BlockingIOError" in run(bomb, "", Limits()).error


def marked(mark):
    """Whether a process has this text in its command line."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes():
                return True
        except OSError:
            continue
    return False


DAEMON = """
import os, sys
if os.fork() == 0:
    {detach}
    os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(60)  # {mark}"])
print("parent is done")
"""


def test_no_process_is_left(isolated):
    """A child ends with its program; one that made itself a daemon does where there are namespaces."""
    for number, detach in enumerate(["pass", "os.setsid()"][: 1 + isolated.namespaces]):
        mark = f"daemon{number}-{os.getpid()}-{isolated.namespaces}"
        source = DAEMON.format(detach=detach, mark=mark)
        assert run(source, "", Limits(), isolated=isolated).output == "parent is done\n"
        time.sleep(0.1)
        assert not marked(mark)


def test_no_program_outlives_a_caller_that_is_killed():
    if not isolation().namespaces:
        pytest.skip(f"it does here: {isolation()}")
    mark = f"orphan-{os.getpid()}"
    sleep = [sys.executable, "-c", f"import time; time.sleep(60)  # {mark}"]
    source = f"import os\nos.execv({sys.executable!r}, {sleep})"
    code = f"from sdistill.tasks.sandbox import *; run({source!r}, '', Limits())"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    wait_until(lambda: any_program(mark, process.pid))
    process.kill()
    process.wait()
    wait_until(lambda: not marked(mark))


def wait_until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def any_program(mark, owner):
    """Whether a process other than the owner, whose code holds the mark, too, has the mark."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\x00")
        except OSError:
            continue
        if int(path.parent.name) != owner and words[1:2] == [b"-c"] and mark.encode() in words[2]:
            return True
    return False


def test_runs_from_threads():
    outputs = {}

    def ask(n):
        outputs[n] = run(f"print({n})", "", Limits()).output

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert outputs == {n: f"{n}\n" for n in range(4)}


@pytest.mark.parametrize("name", ["seconds", "wall_seconds", "memory", "file", "processes"])
def test_limits_are_positive(name):
    value = 0.0 if name == "wall_seconds" else 0
    with pytest.raises(ConfigError, match=f"config.{name}={value} must be positive"):
        parse(Limits, {name: value})
