"""Trains in a child process that is killed again and again, at random moments, until it is done.

    python -m tests.kills WORKDIR KILLS

Prints how often it was killed. Children are forked before JAX has started anything: each begins at once.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from ml_collections import ConfigDict

from configs.signs import sdpo
from sdistill.config import SDPOConfig
from sdistill.settings import parse
from sdistill.train import train

STEPS = 24
LIFETIME = 0.5, 4.0  # seconds at most; a child takes about two to its first step


def get_config() -> ConfigDict:
    config = sdpo.get_config("tiny")
    config.update({"steps": STEPS, "checkpoint_every": 1})
    config.evaluation.update({"every": 4, "at_start": ["k3_test"], "datasets": ["k3_test"]})
    config.evaluation.num_problems = 4
    return config


def let_live(workdir: Path, rng: random.Random, last: int) -> None:
    """Returns at a random moment, from before the child's first step on; early enough for the kills to come.

    Args:
      workdir: The child's.
      rng: Says when.
      last: The step after which steps would no longer do for one a kill.
    """
    began, end = steps_made(workdir), time.monotonic() + rng.uniform(*LIFETIME)
    while time.monotonic() < end and steps_made(workdir) == began:
        time.sleep(0.005)
    if steps_made(workdir) + 2 < last:
        time.sleep(rng.uniform(0, 0.3))


def steps_made(workdir: Path) -> int:
    """Of which there is a checkpoint; those being written have other names."""
    found = [path.name for path in (workdir / "checkpoints").glob("*")]
    return max((int(name) for name in found if name.isdigit()), default=0)


def main() -> None:
    workdir, kills = Path(sys.argv[1]), int(sys.argv[2])
    rng, killed = random.Random(0), 0
    while not (workdir / "model" / "config.json").exists():
        child = os.fork()
        if child == 0:
            train(parse(SDPOConfig, get_config().to_dict()), workdir)
            os._exit(0)
        if killed < kills:
            let_live(workdir, rng, STEPS - (kills - killed))
            os.kill(child, signal.SIGKILL)
            killed += 1
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    print(f"{killed} kills")


if __name__ == "__main__":
    main()
