"""Times SDPO steps of the signs study with and without attribution, in turns, in one process.

    python -m tests.benchmarks.bench_attribution [--pairs 100]

Each pair is one step with and one without, on the same problems and from the same weights, whichever comes
first changing from pair to pair. What a step leaves to be written is written, too, as a run does it. Printed
is the median of the ratios of a pair, with a 95 % bootstrap interval over pairs, and what a token takes on
disk.
"""

import argparse
import dataclasses
import gzip
import time

import jax
import jax.numpy as jnp
import numpy as np

from configs.signs import sdpo
from sdistill.config import SDPOConfig
from sdistill.data.pipelines import problem_batches
from sdistill.distributed.mesh import make_mesh
from sdistill.settings import parse
from sdistill.step import TrainState, init_teacher
from sdistill.storage import to_lines
from sdistill.text.chat import SignsChat
from sdistill.text.tokenizer import SIGNS_TOKENIZER, SentencePieceTokenizer
from sdistill.train import OnPolicyRun, initial_state, on_policy_step, training_problems

WARM_UP = 3


class Side:
    """One of the two: a run, and how long its steps take."""

    def __init__(self, run: OnPolicyRun):
        self.run = run
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.bytes = self.tokens = 0

    def step(self, state: TrainState, problems: list[int], step: int) -> TrainState:
        """One step, from a copy of the state."""
        state = jax.block_until_ready(jax.tree.map(jnp.copy, state))
        teacher = init_teacher(self.run.config.teacher, state.params)
        start, cpu_start = time.perf_counter(), time.process_time()
        state, _, _, responses = on_policy_step(self.run, state, teacher, problems, step, [])
        content = gzip.compress(to_lines(response.to_json() for response in responses), 6, mtime=0)
        jax.block_until_ready(state)
        self.seconds.append(time.perf_counter() - start)
        self.cpu_seconds.append(time.process_time() - cpu_start)
        self.bytes += len(content)
        self.tokens += sum(response.length for response in responses)
        return state


def main() -> None:
    """Runs the pairs and prints one line a figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100)
    args = parser.parse_args()

    plain = parse(SDPOConfig, sdpo.get_config("solution").to_dict())
    tokenizer, mesh = SentencePieceTokenizer(SIGNS_TOKENIZER), make_mesh(plain.mesh)
    problems = training_problems(plain.rollouts, None)
    model, state = initial_state(plain, mesh, tokenizer)
    sides = [
        Side(OnPolicyRun(config, model, mesh, SignsChat(tokenizer), problems, state.params))
        for config in (plain, dataclasses.replace(plain, attribution=True))
    ]
    batches = problem_batches(problems, batch_size=plain.rollouts.num_prompts, seed=0)
    for pair in range(WARM_UP + args.pairs):
        batch = next(batches)
        outcomes = [sides[i].step(state, batch, pair) for i in ((0, 1) if pair % 2 else (1, 0))]
        state = outcomes[0]

    print(f"device       {jax.devices()[0].device_kind}, jax {jax.__version__}, {args.pairs} pairs")
    for what in ("seconds", "cpu_seconds"):
        off, on = (np.asarray(getattr(side, what)[WARM_UP:]) for side in sides)
        draws = np.random.default_rng(0).integers(0, len(off), (10_000, len(off)))
        low, high = np.percentile(np.median((on / off)[draws], axis=1), [2.5, 97.5])
        print(
            f"{what:<12} {np.median(off):.4f} a step without, {np.median(on):.4f} with: "
            f"{np.median(on / off):.4f} [{low:.4f}, {high:.4f}] times as many, median of pairs"
        )
    more = (sides[1].bytes - sides[0].bytes) / sides[1].tokens
    print(f"on disk      {more:.1f} bytes a token more, gzipped")


if __name__ == "__main__":
    main()
