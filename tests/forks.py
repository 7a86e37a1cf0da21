"""Runs commands in forks of a process that has imported what they need: each starts at once.

    python -m tests.forks

Reads a command a line, as JSON: the module and its arguments. Prints exit code and output, as JSON. JAX is
imported here, and started in forks only.
"""

import json
import os
import runpy
import sys
import tempfile
import traceback
from typing import NoReturn

import sdistill.evaluate
import sdistill.generate
import sdistill.match
import sdistill.study
import sdistill.train  # noqa: F401


def execute(module: str, arguments: list[str]) -> NoReturn:
    """Becomes the command, as `python -m` would."""
    sys.argv, status = [module, *arguments], 1
    sys.modules.pop(module, None)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        else:
            status = end.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    for line in sys.stdin:
        module, *arguments = json.loads(line)
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            child = os.fork()
            if child == 0:
                os.dup2(out.fileno(), sys.stdout.fileno())
                os.dup2(err.fileno(), sys.stderr.fileno())
                execute(module, arguments)
            _, status = os.waitpid(child, 0)
            printed = [file.read() for file in (out, err) if file.seek(0) == 0]
            print(json.dumps([os.waitstatus_to_exitcode(status), *printed]), flush=True)


if __name__ == "__main__":
    main()
