"""Times SDPO steps on the signs puzzle and prints the floor beside them.

    python -m tests.benchmarks.bench_step [--steps 20] [--context solution]

The floor is the matrix products of a step (sampling forward, student forward and backward, teacher forward)
at the rate that a plain 2,048³ float32 product reaches on this machine: what is above it is overhead of
small arrays, attention and sampling.
"""

import argparse
import time

import jax
import numpy as np

from configs.signs import sdpo
from sdistill.config import SDPOConfig
from sdistill.data.pipelines import problem_batches
from sdistill.distributed.mesh import make_mesh
from sdistill.settings import parse
from sdistill.step import init_teacher
from sdistill.text.chat import SignsChat
from sdistill.text.tokenizer import SIGNS_TOKENIZER, SentencePieceTokenizer
from sdistill.train import OnPolicyRun, initial_state, on_policy_step, training_problems
from tests.benchmarks.rates import matmul_rate

WARM_UP = 2


def main() -> None:
    """Runs the steps and prints one line a figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--context", default="solution", choices=("solution", "answer"))
    args = parser.parse_args()

    config = parse(SDPOConfig, sdpo.get_config(args.context).to_dict())
    tokenizer, mesh = SentencePieceTokenizer(SIGNS_TOKENIZER), make_mesh(config.mesh)
    problems = training_problems(config.rollouts, None)
    model, state = initial_state(config, mesh, tokenizer)
    run = OnPolicyRun(config, model, mesh, SignsChat(tokenizer), problems, state.params)
    teacher = init_teacher(config.teacher, state.params)
    batches = problem_batches(problems, batch_size=config.rollouts.num_prompts, seed=0)

    compilations: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **__: compilations.append(name) if name.endswith("backend_compile_duration") else None
    )
    times, sampled = [], []
    for step in range(WARM_UP + args.steps):
        if step == WARM_UP:
            warm = len(compilations)
        start = time.perf_counter()
        state, teacher, _, generations = on_policy_step(run, state, teacher, next(batches), step, [])
        times.append(time.perf_counter() - start)
        sampled.append(sum(g.length for g in generations))
    later = len(compilations) - warm
    times, sampled = times[WARM_UP:], sampled[WARM_UP:]

    rollouts = config.rollouts
    rows = rollouts.num_prompts * rollouts.num_samples
    student = rows * (rollouts.max_prompt_length + rollouts.max_response_length)
    teacher_tokens = rows * (config.teacher.max_prompt_length + rollouts.max_response_length)
    flops = 2 * model.parameter_count() * (rows * rollouts.max_response_length + 3 * student + teacher_tokens)
    rate = matmul_rate()
    low, median, high = np.percentile(times, [25, 50, 75])
    print(f"device           {jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(f"step             {median:.3f} s (quartiles {low:.3f} to {high:.3f}, n={args.steps})")
    print(f"sampled tokens   {np.sum(sampled) / np.sum(times):.0f} /s of step time")
    print(f"matmul rate      {rate / 1e9:.0f} GFLOP/s")
    print(f"floor            {flops / rate:.3f} s for {flops / 1e9:.1f} GFLOP")
    print(f"compilations     {warm} in {WARM_UP} warm-up steps, {later} after")


if __name__ == "__main__":
    main()
