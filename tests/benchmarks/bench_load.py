"""Measures what loading a model takes beyond the model: host memory and time.

    python -m tests.benchmarks.bench_load [--width 768] [--layers 8] [--json]

A model of random bfloat16 weights is written to a temporary folder, several files of it, and loaded as
bfloat16 and as float32. Each is loaded twice: the first time compiles, the second is measured. On a CPU the
parameters themselves lie in host memory; they are not counted. Linux only: it asks /proc for the peak.
"""

import argparse
import ctypes
import gc
import json
import os
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table
from safetensors import safe_open

from sdistill.model.config import ModelConfig
from sdistill.model.weights import load_pretrained, new_model, save_pretrained

MB = 2**20


def memory(field: str) -> int:
    """Bytes that the kernel counts for this process: `VmRSS` now, `VmHWM` at most since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def return_large_arrays() -> None:
    """Has every array of 1 MB or more given back to the system when it is freed.

    To be called before any is made: the heap keeps what it once got, and that would count as ours.
    """
    m_mmap_threshold = -3
    ctypes.CDLL("libc.so.6").mallopt(m_mmap_threshold, MB)


def settle() -> None:
    """Gives what is free back to the system, and starts to look for the peak again."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def write_model(folder: Path, width: int, layers: int) -> None:
    """A model of random bfloat16 weights in files of 40 MB."""
    config = ModelConfig(
        vocab_size=16_384,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        head_dim=64,
        tie_word_embeddings=False,
    )
    model = new_model(config, seed=0)
    params = jax.tree.map(lambda x: x.astype("bfloat16"), nnx.state(model, nnx.Param))
    nnx.update(model, params)
    save_pretrained(model, folder, shard_bytes=40 * MB)


def forget(folder: Path) -> None:
    """Has the files read from disk again, as far as the system follows the advice."""
    for path in folder.glob("*.safetensors"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(folder: Path, dtype: str) -> dict[str, float]:
    """Loads once to compile and once to measure."""
    load_pretrained(folder, dtype=dtype)
    forget(folder)
    settle()
    before, start = memory("VmRSS"), time.perf_counter()
    params = nnx.state(load_pretrained(folder, dtype=dtype), nnx.Param)
    jax.block_until_ready(params)
    seconds = time.perf_counter() - start
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    return {"parameters": size, "beyond": memory("VmHWM") - before - size, "seconds": seconds}


def largest_tensor(folder: Path) -> int:
    """Bytes of the largest tensor in the files."""
    sizes = []
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            sizes += [2 * int(np.prod(file.get_slice(name).get_shape())) for name in file.keys()]  # noqa: SIM118
    return max(sizes)


def main() -> None:
    """Prints the table, or its numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--json", action="store_true", help="numbers in bytes and seconds")
    args = parser.parse_args()
    return_large_arrays()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder, args.width, args.layers)
        files = [path.stat().st_size for path in folder.glob("*.safetensors")]
        largest, found = largest_tensor(folder), {t: measure(folder, t) for t in ("bfloat16", "float32")}
    if args.json:
        print(json.dumps({"files": files, "largest": largest, **found}))
        return
    table = Table("as", "files", "parameters", "largest tensor", "peak beyond parameters", "seconds", "MB/s")
    for dtype, figures in found.items():
        sizes = (sum(files), figures["parameters"], largest, figures["beyond"])
        rate = f"{sum(files) / MB / figures['seconds']:.0f}"
        table.add_row(dtype, *(f"{size / MB:.0f} MB" for size in sizes), f"{figures['seconds']:.2f}", rate)
    Console().print(table)


if __name__ == "__main__":
    main()
