"""Samples responses to problems, verifies them, and measures accuracy, length and epistemic words.

    python -m sdistill.evaluate --model signs_base --split k3_test --max_response_length 112
    python -m sdistill.evaluate --model Qwen/Qwen3-1.7B --split math500 --num_samples 16 --temperature 0.6
        --top_p 0.95 --max_prompt_length 2048 --max_response_length 38912 --slots 64

Figures come with 95 % bootstrap intervals over problems. All devices work, of one process or of several
(`launch/join.py`).
"""

import argparse
import sys
from collections.abc import Sequence

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sdistill.analysis.measure import by_problem
from sdistill.analysis.statistics import Estimate, bootstrap_mean
from sdistill.config import SamplerConfig
from sdistill.data.catalogue import open_problems, task_of
from sdistill.distributed.processes import check_agreement, is_writer
from sdistill.engine.sampling import Sampling
from sdistill.engine.types import follow
from sdistill.model.folders import load_chat
from sdistill.sample import open_sampler, queries_for
from sdistill.settings import ConfigError, require
from sdistill.types import Response


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m sdistill.evaluate",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, help="model folder, Hugging Face name, or signs_base (shipped)")
    add("--tokenizer", help="where its tokenizer is, if not with the model")
    add("--split", required=True, help="problems, such as math500 or k4_test")
    add("--num_problems", type=int, default=256, help="the first of the split (default %(default)s)")
    add("--num_samples", type=int, default=4, help="responses per problem (default %(default)s)")
    add("--max_prompt_length", type=int, help="in tokens; by default that of the longest prompt")
    add("--max_response_length", type=int, default=8192, help="in tokens (default %(default)s)")
    add("--temperature", type=float, default=1.0, help="of sampling; 0 is greedy (default %(default)s)")
    add("--top_p", type=float, default=1.0, help="nucleus sampling (default %(default)s)")
    add("--top_k", type=int, help="sample from the k likeliest tokens only")
    add("--no_thinking", action="store_true", help="the prompt asks for no thinking")
    add("--slots", type=int, default=64, help="responses decoded at a time (default %(default)s)")
    add("--seed", type=int, default=0, help="of sampling (default %(default)s)")
    dtypes = ["float32", "bfloat16"]
    of_dtype = "of weights, activations and cache (default %(default)s)"
    add("--dtype", default="float32", choices=dtypes, help=of_dtype)
    add("--data_dir", help="where data sets are prepared; default: TFDS's")
    return parser.parse_args()


def evaluate(args: argparse.Namespace) -> None:
    """Evaluates a model on problems and prints a table."""
    for name in ("num_problems", "num_samples"):
        value = getattr(args, name)
        require(value > 0, f"--{name}={value} must be positive")
    check_agreement("\n".join(f"--{name}={value}" for name, value in vars(args).items()))
    chat = load_chat(args.tokenizer or args.model)
    problems = open_problems(args.split, args.data_dir)[: args.num_problems]
    thinking = not args.no_thinking
    longest = max(len(chat.prompt(problem.messages, thinking=thinking)) for problem in problems)
    config = SamplerConfig(
        num_samples=args.num_samples,
        max_prompt_length=longest if args.max_prompt_length is None else args.max_prompt_length,
        max_response_length=args.max_response_length,
        sampling=Sampling(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p),
        thinking=thinking,
        slots=args.slots,
    )
    sampler, params = open_sampler(args.model, chat, config, dtype=args.dtype)
    queries = queries_for(problems, args.num_samples)
    with (
        task_of(args.split) as task,
        Progress(transient=True) as progress,
        follow(progress, args.split, len(queries)) as show,
    ):
        responses, _ = sampler(params, queries, task, seed=args.seed, step=0, on_round=show)
    if not is_writer():
        return
    print_figures(responses, f"{args.model} on {args.split}")
    print(
        f"{len(problems)} problems × {args.num_samples} samples, seed {args.seed}, temperature "
        f"{args.temperature}, top-p {args.top_p}, top-k {args.top_k}, at most {args.max_response_length} "
        f"tokens, {jax.devices()[0].platform}"
    )


def measure(responses: Sequence[Response]) -> dict[str, Estimate]:
    """Metric → mean with a 95 % bootstrap interval over problems: accuracy, length, words, pass@n, maj@n."""
    figures = by_problem(responses)
    return {name: bootstrap_mean([np.asarray(list(of.values()))]) for name, of in figures.items()}


def print_figures(responses: Sequence[Response], title: str) -> None:
    """A table of what was measured, with bootstrap intervals over problems."""
    table = Table("metric", "value", "95 % interval", title=title)
    for name, estimate in measure(responses).items():
        table.add_row(name, f"{estimate.value:.3f}", f"{estimate.low:.3f} to {estimate.high:.3f}")
    Console().print(table)


def main() -> None:
    """Evaluates as the command line says; what the user can mend ends in one line."""
    try:
        evaluate(parse_arguments())
    except (ConfigError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
