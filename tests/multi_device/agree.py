"""One of two processes that agree on their settings.

python -m tests.multi_device.agree COORDINATOR PROCESS
"""

import sys

import jax

from sdistill.distributed.processes import check_agreement

if __name__ == "__main__":
    coordinator, process = sys.argv[1:]
    jax.distributed.initialize(coordinator, 2, int(process))
    check_agreement("settings")
