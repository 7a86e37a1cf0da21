"""Joins the processes of a run, then runs a module in each: `python -m` for several hosts.

    python launch/join.py sdistill.train --config configs/signs/sdpo.py --workdir runs/sdpo

On TPU VMs, under GKE, Slurm and Open MPI the processes find each other by themselves. The port at which
they meet is JAX's own choice, or that of the environment variable JAX_COORDINATOR_PORT. Elsewhere, such
as on GPU machines side by side, each process is told where process 0 is, how many there are, and which
one it is:

    python launch/join.py --coordinator HOST:PORT --processes 2 --process 0 sdistill.train ...
"""

import argparse
import os
import runpy
import sys
import traceback
from collections.abc import Sequence

import jax


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: joins, then runs the module with its arguments."""
    parser = argparse.ArgumentParser(prog="python launch/join.py", description=main.__doc__)
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0; a free port")
    parser.add_argument("--processes", type=int, help="how many there are")
    parser.add_argument("--process", type=int, help="which one this is, from 0")
    parser.add_argument("module", help="what would follow `python -m`")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the module")
    given = parser.parse_args(argv)
    where = (given.coordinator, given.processes, given.process)
    if None in where and where != (None, None, None):
        parser.error("--coordinator, --processes and --process are given together or not at all")
    try:
        jax.distributed.initialize(*where)
    except ValueError as error:  # found no other processes, or numbers that do not fit
        parser.error(
            f"{error} Where processes cannot find each other, give --coordinator, --processes and "
            f"--process; a single one needs no joining: python -m {given.module}"
        )
    sys.argv = [given.module, *given.arguments]
    sys.path[0] = os.getcwd()  # as with `python -m`
    run(given.module)


def run(module: str) -> None:
    """Runs it. A failure ends this process at once.

    An orderly exit would wait for the others, and they for this one; so they are told by the connection that
    breaks, within JAX's heartbeat of 100 s.
    """
    status = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    except SystemExit as error:
        if error.code in (None, 0):
            return
        if isinstance(error.code, int):
            status = error.code
        else:
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
