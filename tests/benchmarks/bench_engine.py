"""Times the engine on responses of very different lengths, beside other samplers.

    python -m tests.benchmarks.bench_engine [--slots 32] [--repeats 3] [--dtypes float32 bfloat16]
        [--peer hf] [--peer tunix] [--tunix_python PATH]

The model has Qwen3's shape, small, and random weights: width 512, 8 layers, 8 query and 4 key heads of 64,
feed-forward 1,536, vocabulary 8,192. 16 prompts of 64 tokens, 8 responses each, whose lengths are forced:
lognormal, median 64, at most 256. Every contender has a process of its own. The peers (transformers, in this
interpreter; tunix, in one that has it) decode all rows until the longest response is complete; only tokens
up to a response's forced length count as useful, for everyone.

The floor of a decoding step is the larger of two: bytes of weights and of live cache, at the rate of a plain
sum over memory; and its arithmetic, at the rate of a plain 2,048³ product, measured before and after. On a
machine that has other work, compare contenders at equal rates.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

from sdistill.distributed.mesh import MeshConfig, make_mesh
from sdistill.engine.engine import SlotEngine
from sdistill.engine.model import CachedDecoder
from sdistill.engine.sampling import Sampling
from sdistill.engine.types import EngineStats, Request
from sdistill.model.config import ComputeConfig, ModelConfig
from sdistill.model.weights import new_model
from tests.benchmarks import workload
from tests.benchmarks.rates import matmul_rate, memory_rate

PLAIN = Sampling()


def model_config(dtype: str) -> ModelConfig:
    return ModelConfig(
        vocab_size=workload.VOCABULARY,
        hidden_size=workload.WIDTH,
        intermediate_size=workload.FEED_FORWARD,
        num_hidden_layers=workload.LAYERS,
        num_attention_heads=workload.HEADS,
        num_key_value_heads=workload.KV_HEADS,
        head_dim=workload.HEAD,
        rope_theta=1_000_000.0,
        compute=ComputeConfig(dtype=dtype),  # type: ignore[arg-type]
    )


def requests(lengths: np.ndarray, sampling: Sampling) -> list[Request]:
    rows = np.repeat(workload.prompts(), workload.SAMPLES, axis=0)
    return [
        Request(row.tolist(), f"problem {i // workload.SAMPLES}", i % workload.SAMPLES, sampling, int(length))
        for i, (row, length) in enumerate(zip(rows, lengths, strict=True))
    ]


def ours(dtype: str, slots: int, repeats: int) -> None:
    """Prints the engine's figures as JSON."""
    config = model_config(dtype)
    params = nnx.state(new_model(config, 0), nnx.Param)
    engine = SlotEngine(
        CachedDecoder(config),
        mesh=make_mesh(MeshConfig()),
        stop_ids=[],
        slots=slots,
        max_prompt_length=workload.PROMPT_LENGTH,
        max_response_length=workload.CAP,
    )
    compiled: list[float] = []

    def listen(name: str, seconds: float, **_: object) -> None:
        if name.endswith("backend_compile_duration"):
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)

    def run(lengths: np.ndarray, sampling: Sampling = PLAIN) -> EngineStats:
        seen: list[EngineStats] = []
        found = engine.generate(params, requests(lengths, sampling), seed=0, step=0, on_round=seen.append)
        assert (found.lengths == lengths).all()
        return seen[-1]

    lengths = workload.lengths()
    equal = np.full_like(lengths, round(lengths.mean()))
    engine.warm_up(params)
    run(lengths)
    warm_up = {"programs": len(compiled), "compile": sum(compiled)}
    rates = [matmul_rate()]
    compiled.clear()
    runs = [run(lengths) for _ in range(repeats)]
    equals = [run(equal) for _ in range(repeats)]
    run(lengths[::-1], Sampling(temperature=0.7, top_k=50, top_p=0.9, min_p=0.01))
    later = len(compiled)
    rates.append(matmul_rate())
    width = jnp.dtype(dtype).itemsize
    positions = workload.PROMPT_LENGTH + (lengths**2).sum() / lengths.sum() / 2
    weights = config.parameter_count() * width
    numbers_per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    cache = slots * positions * numbers_per_token * width
    bandwidth = memory_rate()
    workload.report(
        [run.seconds for run in runs],
        max(rates),
        **warm_up,
        later=later,
        occupancy=runs[0].occupancy,
        steps=runs[0].steps,
        equal=[equal.sum() / run.seconds for run in equals],
        bytes=weights + cache,
        bandwidth=bandwidth,
        floor=max((weights + cache) / bandwidth, 2 * config.parameter_count() * slots / max(rates)),
    )


def measured(interpreter: str, *arguments: object) -> dict[str, Any]:
    """The figures that a contender's process prints last."""
    command = [interpreter, "-m", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--peer", action="append", default=[], choices=["hf", "tunix"])
    parser.add_argument("--tunix_python", default=sys.executable, help="interpreter that has tunix")
    parser.add_argument("--only", metavar="DTYPE", help="print our figures as JSON, in this process")
    args = parser.parse_args()
    if args.only:
        return ours(args.only, args.slots, args.repeats)

    this = "tests.benchmarks.bench_engine"
    found: list[tuple[str, dict[str, Any]]] = []
    for dtype in args.dtypes:
        more = ["--slots", args.slots, "--repeats", args.repeats]
        figures = measured(sys.executable, this, "--only", dtype, *more)
        found.append((f"sdistill, {args.slots} slots, {dtype}", figures))
        for peer in args.peer:
            interpreter = args.tunix_python if peer == "tunix" else sys.executable
            figures = measured(interpreter, "tests.benchmarks.peers", peer, dtype, args.repeats)
            found.append((f"{peer} {figures['version']}, {dtype}", figures))
    print_table(found)
    print_engine([(name, figures) for name, figures in found if "steps" in figures], args.slots)


def print_table(found: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Everyone's useful tokens a second."""
    useful = int(workload.lengths().sum())
    title = f"{len(workload.lengths())} responses, {useful} useful tokens, {jax.devices()[0].device_kind}"
    table = Table("contender", "useful tokens/s", "lowest to highest", "peak GB", "GFLOP/s", title=title)
    for name, figures in found:
        rates = [useful / seconds for seconds in figures["seconds"]]
        table.add_row(
            name,
            f"{np.median(rates):.0f}",
            f"{min(rates):.0f} to {max(rates):.0f}, n={len(rates)}",
            f"{figures['peak'] / 1e9:.1f}",
            f"{figures['rate'] / 1e9:.0f}",
        )
    Console(width=110).print(table)


def print_engine(found: Sequence[tuple[str, dict[str, Any]]], slots: int) -> None:
    """What the engine's time goes to."""
    for name, figures in found:
        step = float(np.median(figures["seconds"])) / figures["steps"]
        equal, heavy = np.median(figures["equal"]), workload.lengths().sum() / np.median(figures["seconds"])
        print(f"{name}")
        print(f"  occupancy        {figures['occupancy']:.3f} while responses wait")
        print(f"  equal lengths    {equal:.0f} tokens/s; heavy-tailed ones reach {heavy / equal:.2f} of that")
        print(f"  step             {1e3 * step:.1f} ms of {slots} rows, prefill and host included")
        print(
            f"  floor            {1e3 * figures['floor']:.1f} ms: {figures['bytes'] / 1e6:.0f} MB at "
            f"{figures['bandwidth'] / 1e9:.1f} GB/s, or arithmetic"
        )
        print(
            f"  compiled         {figures['programs']} programs in {figures['compile']:.0f} s; "
            f"{figures['later']} later"
        )


if __name__ == "__main__":
    main()
