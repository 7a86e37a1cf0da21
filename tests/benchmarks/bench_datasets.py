"""How long DAPO-Math-17k takes to prepare, and what the iterators cost a training step.

    python -m tests.benchmarks.bench_datasets
    python -m tests.benchmarks.bench_datasets --problems 1000 --copies 3

The file of the first is made up, in the schema and the size of the public one: problems of ordinary length,
integers for answers, all of them repeated `copies` times, under ids that differ.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sdistill.data.catalogue import open_corpus, open_problems
from sdistill.data.pipelines import example_batches, problem_batches
from sdistill.data.prepare import prepare
from sdistill.text.tokenizer import SIGNS_TOKENIZER, SentencePieceTokenizer
from tests.data.files import dapo_row

STEP = 0.38  # seconds, of SDPO on the puzzle; see README
PAUSE = 0.2  # seconds
WORDS = ("let", "the", "triangle", "be", "$x_1 + y^2$", "=", "\\frac{3}{4}", "and", "find", "all", "integers")


def write_dapo(path: Path, problems: int, copies: int) -> None:
    """Writes the file: every problem once, then all again."""
    rng = random.Random(0)
    texts = [f"Problem {i}: " + " ".join(rng.choices(WORDS, k=rng.randint(20, 90))) for i in range(problems)]
    answers = [str(rng.randint(-50, 5000)) for _ in range(problems)]
    writer = None
    for copy in range(copies):
        rows = [dapo_row(f"{copy}-{i}", texts[i], answers[i]) for i in range(problems)]
        table = pa.Table.from_pylist(rows)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def bench_prepare(folder: Path, problems: int, copies: int) -> list[tuple[str, str]]:
    """Seconds to prepare that file, and to open what was prepared."""
    path = folder / "dapo-math-17k.parquet"
    write_dapo(path, problems, copies)
    start = time.perf_counter()
    with Progress() as progress:
        prepare("dapo_math_17k", folder, files=[path], progress=progress)
    middle = time.perf_counter()
    assert len(open_problems("dapo_math_17k", folder)) == problems
    end = time.perf_counter()
    size = path.stat().st_size / 2**20
    return [
        (
            f"prepare {problems * copies:,} rows ({size:.0f} MiB), {problems:,} distinct",
            f"{middle - start:.1f} s",
        ),
        (f"open {problems:,} problems", f"{end - middle:.2f} s"),
    ]


def bench_iterators(folder: Path, batches: int) -> list[tuple[str, str]]:
    """How long a step waits for its batch, and what a batch costs where nothing runs meanwhile.

    Steps are pauses here, shorter than real ones.
    """
    tokenizer = SentencePieceTokenizer(SIGNS_TOKENIZER)
    problems = open_problems("k3_pool", folder)
    corpus = open_corpus("validation", folder)
    shape = {"batch_size": 64, "sequence_length": 200, "seed": 0}
    iterators = {
        f"{batch} problems of {len(some):,}": problem_batches(some, batch_size=batch, seed=0)
        for batch, some in [(16, problems), (256, problems), (64, problems[:8]), (64, problems[:1])]
    }
    iterators |= {
        "64 examples": example_batches(corpus, tokenizer, packed=False, **shape),
        "64 packed rows": example_batches(corpus, tokenizer, packed=True, **shape),
    }
    lines = []
    for name, iterator in iterators.items():
        for what, pause in (("wait for", PAUSE), ("make", 0.0)):
            next(iterator)  # the first one starts threads
            seconds = [_draw(iterator, pause) for _ in range(batches)]
            low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75]) * 1e3
            spread = f"{median:.2f} ms ({low:.2f} to {high:.2f}, n = {batches})"
            lines.append((f"{what} {name}", f"{spread}; mean {np.mean(seconds) / STEP:.2%}"))
    return lines


def _draw(iterator: Iterator[Any], pause: float) -> float:
    time.sleep(pause)
    start = time.perf_counter()
    next(iterator)
    return time.perf_counter() - start


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=17_917)
    parser.add_argument("--copies", type=int, default=100)
    parser.add_argument("--batches", type=int, default=50)
    given = parser.parse_args()
    table = Table("what", f"median (quartiles); share of {STEP} s")
    with tempfile.TemporaryDirectory() as folder:
        for line in bench_iterators(Path(folder), given.batches):
            table.add_row(*line)
        for line in bench_prepare(Path(folder), given.problems, given.copies):
            table.add_row(*line)
    Console().print(table)


if __name__ == "__main__":
    main()
