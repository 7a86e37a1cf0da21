"""Times the SDPO loss at a full vocabulary, forward and backward, beside other implementations of it.

    python -m tests.benchmarks.bench_divergence [--positions 2048] [--repeats 2]

Every contender has a process of its own, for its peak memory; PyTorch and TRL run where they are installed.
The floor is what any of them must compute: logits of student and teacher, and the gradients of hidden states
and head, at the rate that a plain 2,048³ float32 product reaches just before and after. What is above it is
softmax, top-k and adding up; and the student's logits once more, which is what saving memory costs. On a
machine that is shared, compare rows in floors rather than in seconds.
"""

import argparse
import functools
import importlib.util
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from sdistill.divergence.chunked import chunked_token_divergence
from sdistill.divergence.definition import DivergenceConfig, token_divergence
from tests.benchmarks.rates import matmul_rate

V, D, TOP_K, ALPHA, ROWS = 151_936, 512, 100, 0.5, 4
TOPK = DivergenceConfig(ALPHA, "topk", TOP_K, "bucket")
SUPPORTS = {"topk": TOPK, "full": DivergenceConfig(ALPHA, "full", None, None)}
CHUNK = 128


def ours(support: str, positions: int) -> Callable[[], object]:
    keys = jax.random.split(jax.random.key(0), 5)
    shape = (ROWS, positions // ROWS)
    student, teacher = (jax.random.normal(key, (*shape, D)) for key in keys[:2])
    student_head, teacher_head = (0.13 * jax.random.normal(key, (D, V)) for key in keys[2:4])
    ids = jax.random.randint(keys[4], shape, 0, V)

    @jax.jit
    def step(student: jax.Array, student_head: jax.Array, teacher: jax.Array, teacher_head: jax.Array) -> Any:
        def loss(student: jax.Array, student_head: jax.Array) -> jax.Array:
            found = chunked_token_divergence(
                student,
                student_head,
                teacher,
                teacher_head,
                ids,
                SUPPORTS[support],
                logits_chunk_size=CHUNK // ROWS,
            )
            return jnp.mean(found.loss_BT)

        return jax.value_and_grad(loss, (0, 1))(student, student_head)

    return lambda: jax.block_until_ready(step(student, student_head, teacher, teacher_head))


def with_torch(loss: Callable[[Any, Any], Any], positions: int) -> Callable[[], object]:
    """Forward and backward of a loss of both logits, as any PyTorch code would."""
    import torch

    torch.manual_seed(0)
    shape = (ROWS, positions // ROWS)
    student, teacher = (torch.randn(*shape, D) for _ in range(2))
    student_head, teacher_head = (0.13 * torch.randn(D, V) for _ in range(2))
    student.requires_grad_(), student_head.requires_grad_()

    def step() -> None:
        student.grad = student_head.grad = None
        with torch.no_grad():
            teacher_logits = teacher @ teacher_head
        loss(student @ student_head, teacher_logits).mean().backward()

    return step


def torch_topk(positions: int) -> Callable[[], object]:
    import torch

    def on_support(logits: Any, ids: Any) -> Any:
        top = torch.log_softmax(logits, dim=-1).gather(-1, ids)
        inside = torch.logsumexp(top, dim=-1, keepdim=True).clamp(max=-1e-7)
        return torch.cat([top, torch.log(-torch.expm1(inside))], dim=-1)

    def kl(log_p: Any, log_q: Any) -> Any:
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    def loss(student: Any, teacher: Any) -> Any:
        ids = student.detach().topk(TOP_K, dim=-1).indices
        s, t = on_support(student, ids), on_support(teacher, ids)
        m = torch.logaddexp(s, t) + torch.log(torch.tensor(0.5))  # alpha = 0.5
        return ALPHA * (kl(s, m) + kl(t, m))

    return with_torch(loss, positions)


def trl(support: str, positions: int) -> Callable[[], object]:
    from trl.experimental.sdpo import loss_utils

    if support == "full":
        loss = functools.partial(
            loss_utils.compute_full_logit_self_distillation_loss, distillation_alpha=ALPHA
        )
    else:
        loss = functools.partial(
            loss_utils.compute_topk_self_distillation_loss,
            distillation_topk=TOP_K,
            distillation_alpha=ALPHA,
            distillation_add_tail=True,
        )
    return with_torch(loss, positions)


CONTENDERS: dict[str, tuple[str | None, Callable[[int], Callable[[], object]]]] = {
    "ours, top-k": (None, functools.partial(ours, "topk")),
    "PyTorch, top-k": ("torch", torch_topk),
    "TRL, top-k": ("trl", functools.partial(trl, "topk")),
    "ours, full": (None, functools.partial(ours, "full")),
    "TRL, full": ("trl", functools.partial(trl, "full")),
}


def measure(name: str, positions: int, repeats: int) -> dict[str, float]:
    """Of a contender, in this process: seconds (the best), FLOP/s around that run, peak bytes."""
    step = CONTENDERS[name][1](positions)
    step()
    runs, rate = [], matmul_rate()
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        seconds, before, rate = time.perf_counter() - start, rate, matmul_rate()
        runs.append((seconds, (before + rate) / 2))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds, rate = min(runs)
    return {"seconds": seconds, "rate": rate, "peak": peak}


def temporary_bytes(positions: int, support: str | None) -> int:
    """Of the compiled value-and-gradient: beyond arguments and outputs. No support: the definition, top-k."""
    shape, width = (8, positions // 8), 1024
    hidden = jax.ShapeDtypeStruct((*shape, width), jnp.bfloat16)
    head = jax.ShapeDtypeStruct((width, V), jnp.bfloat16)

    def loss(hidden: Any, head: Any, teacher_hidden: Any, teacher_head: Any, ids: Any) -> jax.Array:
        if support is None:
            return jnp.mean(token_divergence(hidden @ head, teacher_hidden @ teacher_head, TOPK))
        found = chunked_token_divergence(
            hidden,
            head,
            teacher_hidden,
            teacher_head,
            ids,
            SUPPORTS[support],
            logits_chunk_size=CHUNK // len(hidden),
        )
        return jnp.mean(found.loss_BT)

    step = jax.jit(jax.value_and_grad(loss, (0, 1)))
    compiled = step.lower(hidden, head, hidden, head, jax.ShapeDtypeStruct(shape, jnp.int32)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def main() -> None:
    """Runs every contender and prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", choices=CONTENDERS, help="print this contender's figures as JSON")
    args = parser.parse_args()
    if args.only is not None:
        print(json.dumps(measure(args.only, args.positions, args.repeats)))
        return

    flops = 4 * 2 * args.positions * D * V
    console = Console()
    table = Table(title=f"{args.positions} positions, D={D}, V={V}, float32, forward and backward")
    for column in ("contender", "time s", "floor s", "in floors", "peak GB", "GFLOP/s"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for name, (module, _) in CONTENDERS.items():
        if module is not None and importlib.util.find_spec(module) is None:
            table.add_row(name, f"{module} is not installed")
            continue
        command = [sys.executable, "-m", "tests.benchmarks.bench_divergence", "--only", name]
        command += ["--positions", str(args.positions), "--repeats", str(args.repeats)]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found = json.loads(printed.splitlines()[-1])
        floor = flops / found["rate"]
        figures = found["seconds"], floor, found["seconds"] / floor, found["peak"] / 1e9, found["rate"] / 1e9
        table.add_row(name, *(f"{x:.1f}" for x in figures))
    console.print(table)

    table = Table(
        title=f"Temporary memory as compiled, GB: D=1024, V={V}, bfloat16, {CHUNK} positions a chunk"
    )
    for column in ("positions", "logits whole, top-k", "by chunks, top-k", "by chunks, full"):
        table.add_column(column, justify="right")
    for positions in (8192, 16384):
        sizes = [temporary_bytes(positions, support) / 1e9 for support in (None, "topk", "full")]
        table.add_row(str(positions), *(f"{x:.2f}" for x in sizes))
    console.print(table)


if __name__ == "__main__":
    main()
