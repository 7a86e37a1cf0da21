"""Runs a program under limits. `sandbox` starts this file in an interpreter of its own.

    python -I -S -c "<this file>" '{"seconds": 6, ...}'

It uses the standard library only, and is passed as text, so that a user who may not read the file can run it.
Installed packages can be imported, but none of them runs code at the start (`-S`): that took four fifths of
the time to start. The program is `solution.py` in the working directory. With a `function`, standard input
has one JSON argument a line, and standard output gets the JSON of the function's result.
"""

import builtins
import json
import os
import resource
import sys
import traceback
import types
from typing import Any

SOURCE = "solution.py"
MAX_RECURSION = 50_000  # as in LiveCodeBench
MAX_FRAMES = 100  # of an error, the last ones; Python 3.13 takes seconds to print thousands
# Modules and names that competition sites and LiveCodeBench's runner provide without an import.
MODULES = ["string", "re", "collections", "heapq", "bisect", "copy", "math", "random", "itertools"]
MODULES += ["functools", "operator", "json", "typing"]


def limit(seconds: int, memory: int, file: int, processes: int | None) -> None:
    """Limits this process and its children for good: hard limits are set, too."""
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_FSIZE: file,
        resource.RLIMIT_CORE: 0,
    }
    if processes is not None:
        limits[resource.RLIMIT_NPROC] = processes
    for name, value in limits.items():
        hard = resource.getrlimit(name)[1]  # a stricter limit stays: only root may raise it
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))


def provided_names() -> dict[str, Any]:
    """The names that a program can use without an import."""
    names: dict[str, Any] = {}
    exec("\n".join(f"from {module} import *" for module in MODULES), names)
    exec(f"import {', '.join(MODULES)}", names)  # last: `copy.copy` must not replace the module `copy`
    return {name: value for name, value in names.items() if not hasattr(builtins, name)}


def call(function: str, names: dict[str, Any]) -> None:
    """Calls a function of the program, or that method of its class `Solution`.

    The arguments come from standard input. What the function itself prints goes to standard error.
    """
    if "Solution" in names and hasattr(names["Solution"], function):
        found = getattr(names["Solution"](), function)
    elif function in names:
        found = names[function]
    else:
        raise NameError(f"there is no function {function!r}, and no class Solution with such a method")
    arguments = [json.loads(line) for line in sys.stdin.read().splitlines() if line.strip()]
    output, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps(found(*arguments)), file=output, flush=True)


def main() -> None:
    """Runs the program; its errors are printed without the frames of this file."""
    job = json.loads(sys.argv[1])
    function = job.pop("function")
    sys.argv = [SOURCE]
    sys.path = [os.getcwd(), *sys.path, *job.pop("packages")]
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    sys.setrecursionlimit(MAX_RECURSION)
    module = types.ModuleType("__main__" if function is None else "solution")
    sys.modules[module.__name__] = module
    names = vars(module)
    names |= provided_names()
    limit(**job)
    try:
        with open(SOURCE, encoding="utf-8") as file:
            exec(compile(file.read(), SOURCE, "exec"), names)
        if function is not None:
            call(function, names)
        sys.stdout.flush()
    except Exception as error:
        assert error.__traceback__ is not None
        traceback.print_exception(error.with_traceback(error.__traceback__.tb_next), limit=-MAX_FRAMES)
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    main()
