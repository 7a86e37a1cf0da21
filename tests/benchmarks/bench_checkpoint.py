"""Times checkpoints of a gigabyte: how long training waits for one, and how long it takes to be on disk.

    python -m tests.benchmarks.bench_checkpoint [--gigabytes 1] [--saves 7] [--directory DIR]

Each is waited for before the next begins. The floors are one thread's: to copy as many bytes in memory, for
the wait, and to write and sync as many to the same disk, for the writing.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sdistill.checkpoints import Checkpoints

ARRAYS = 64


def timed_save(checkpoints: Checkpoints, step: int, arrays: dict[str, jax.Array]) -> tuple[float, float]:
    """Seconds until training may go on, and until all is on disk."""
    start = time.perf_counter()
    checkpoints.save(step, arrays, {"next": step})
    waited = time.perf_counter() - start
    checkpoints.wait()
    return waited, time.perf_counter() - start


def floors(arrays: dict[str, jax.Array], folder: Path) -> tuple[float, float]:
    """Seconds to copy the bytes in memory, and to write them to the disk and sync."""
    whole = np.concatenate([np.asarray(x).ravel() for x in arrays.values()])
    start = time.perf_counter()
    whole.copy()
    copied = time.perf_counter() - start
    start = time.perf_counter()
    with open(folder / "floor", "wb") as file:
        file.write(whole.data)
        file.flush()
        os.fsync(file.fileno())
    written = time.perf_counter() - start
    (folder / "floor").unlink()
    return copied, written


def quartiles(values: np.ndarray) -> str:
    """In: 1, 2, 3. Out: `2.00 (1.50 to 2.50)`."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Prints one line a figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--saves", type=int, default=7)
    parser.add_argument("--directory", type=Path, default=None, help="on the disk to be measured")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=args.directory))
    try:
        size = int(args.gigabytes * 1e9 / ARRAYS / 4)
        keys = jax.random.split(jax.random.key(0), ARRAYS)
        arrays = {f"layer{i}": jax.random.normal(key, (size,), jnp.float32) for i, key in enumerate(keys)}
        jax.block_until_ready(arrays)
        checkpoints = Checkpoints(folder / "checkpoints")
        timed_save(checkpoints, 0, arrays)  # what is made once
        times = [timed_save(checkpoints, step, arrays) for step in range(1, args.saves + 1)]
        checkpoints.close()
        rest = [floors(arrays, folder) for _ in range(args.saves)]
    finally:
        shutil.rmtree(folder)
    waited, written = (np.asarray(column) for column in zip(*times, strict=True))
    copied, synced = (np.asarray(column) for column in zip(*rest, strict=True))
    print(f"state {ARRAYS * size * 4 / 1e9:.2f} GB, {args.saves} checkpoints; medians (quartiles)")
    print(f"training waits      {quartiles(waited)} s   one copy in memory  {quartiles(copied)} s")
    print(f"written after       {quartiles(written)} s   one write and sync  {quartiles(synced)} s")
    print(f"waits, of writing   {quartiles(100 * waited / written)} %")


if __name__ == "__main__":
    main()
