"""One of two processes that meet again and again, and say so; process 1 is late once.

python -m tests.multi_device.beat WORKDIR COORDINATOR PROCESS
"""

import logging
import sys
import time
from pathlib import Path

import jax

from sdistill.clock import Clock
from sdistill.distributed.heartbeat import Heartbeat
from sdistill.distributed.processes import check_agreement, gathered

EVERY, PATIENCE = 0.1, 1.5


def main() -> None:
    workdir, coordinator, process = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    jax.distributed.initialize(coordinator, 2, int(process))
    check_agreement("settings")
    clock, step = Clock(), 0

    def doing() -> tuple[str, float]:
        return f"step {step + 1}: {clock.doing}", clock.seconds

    with Heartbeat(Path(workdir), doing, every=EVERY, patience=PATIENCE):
        while step < 60:
            with clock.spent_on("verify"):
                time.sleep(0.1)
                if process == "1" and step == 5:
                    time.sleep(4)
                values = gathered([f"{step} of {process}"])
                assert values == [f"{step} of 0", f"{step} of 1"]
            step += 1
    print("all steps made")


if __name__ == "__main__":
    main()
