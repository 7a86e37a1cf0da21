"""Runs a program under limits: what `sandbox` starts, in an interpreter of its own.

    python -I -S -c "<this file>" '{"seconds": 6, ...}'

It needs nothing but the standard library, and is handed over as text, so that it can be run by a user who
may not read it. Installed packages can be imported, but none of them runs code at the start (`-S`): that took
four fifths of the time to start. The program is `solution.py` in the working directory. With a `function`,
standard input has one JSON argument a line, and standard output gets the JSON of what the function returns.
"""

import builtins
import importlib
import json
import os
import resource
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

SOURCE = "solution.py"
RECURSION = 50_000  # LiveCodeBench's own
FRAMES = 100  # shown of an error, the last ones: of all there may be, Python 3.13 takes seconds
# Names that competition sites and LiveCodeBench's runner provide without an import.
PROVIDED = ["string", "re", "collections", "heapq", "bisect", "copy", "math", "random", "itertools"]
PROVIDED += ["functools", "operator", "json", "typing"]


def limit(seconds: int, memory: int, file: int, processes: int | None) -> None:
    """Limits this process and its children, for good: the hard limits are set, too."""
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_FSIZE: file,
        resource.RLIMIT_CORE: 0,
    }
    if processes is not None:
        limits[resource.RLIMIT_NPROC] = processes
    for name, value in limits.items():
        hard = resource.getrlimit(name)[1]  # a stricter one is kept: raising it takes rights
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))


def provided_names() -> dict[str, Any]:
    """The names a program finds, built-in ones first."""
    names: dict[str, Any] = {}
    for module in map(importlib.import_module, PROVIDED):
        names[module.__name__] = module
        public = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
        # `collections` stays a module where another module has a name of the same sort.
        names |= {name: getattr(module, name) for name in public if name not in PROVIDED}
    return {name: value for name, value in names.items() if not hasattr(builtins, name)}


def call(function: Callable[..., Any]) -> None:
    """Calls a function with the arguments on standard input; what it prints itself goes to standard error."""
    arguments = [json.loads(line) for line in sys.stdin.read().splitlines() if line.strip()]
    result, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps(function(*arguments)), file=result, flush=True)


def find(names: dict[str, Any], function: str) -> Callable[..., Any]:
    """The function, or the method of that name of a `Solution`."""
    if "Solution" in names and hasattr(names["Solution"], function):
        return getattr(names["Solution"](), function)
    if function in names:
        return names[function]
    raise NameError(f"there is no function {function!r}, and no class Solution with such a method")


def main() -> None:
    """Runs the program; its errors are shown without the frames of this file."""
    job = json.loads(sys.argv[1])
    function = job.pop("function")
    sys.argv = [SOURCE]
    sys.path = [os.getcwd(), *sys.path, *job.pop("packages")]
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    sys.setrecursionlimit(RECURSION)
    module = types.ModuleType("__main__" if function is None else "solution")
    names = vars(module)
    names |= provided_names()
    sys.modules[module.__name__] = module
    limit(**job)
    try:
        with open(SOURCE, encoding="utf-8") as file:
            exec(compile(file.read(), SOURCE, "exec"), names)
        if function is not None:
            call(find(names, function))
        sys.stdout.flush()
    except Exception as error:
        assert error.__traceback__ is not None
        traceback.print_exception(error.with_traceback(error.__traceback__.tb_next), limit=-FRAMES)
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    main()
