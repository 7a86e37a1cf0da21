"""Samples responses to problems, verifies them, and measures: accuracy, length, epistemic words.

    python -m sdistill.evaluate --model DIR --split k3_test
    python -m sdistill.evaluate --model Qwen/Qwen3-1.7B --split math500 --samples 16 --temperature 0.6
        --top_p 0.95 --max_prompt 2048 --max_response 38912 --slots 64

Figures come with 95 % bootstrap intervals over problems. All devices work, of one process or of several
(`launch/join.py`).
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import jax
import numpy as np
from flax import nnx
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sdistill.analysis.epistemic import count_substrings, count_words
from sdistill.analysis.measure import by_problem
from sdistill.analysis.statistics import bootstrap_mean
from sdistill.clock import Clock
from sdistill.data.catalogue import open_problems, task_of
from sdistill.distributed.processes import check_agreement, gathered, gathered_rows, is_writer, share_of
from sdistill.engine.engine import SlotEngine
from sdistill.engine.model import CachedDecoder
from sdistill.engine.programs import Finish
from sdistill.engine.progress import follow
from sdistill.engine.sampling import Sampling
from sdistill.engine.types import Completions, Engine, EngineStats, Request
from sdistill.engine_mesh import sampling_mesh
from sdistill.model.config import ComputeConfig
from sdistill.model.folders import load_chat, load_model
from sdistill.settings import ConfigError
from sdistill.tasks.problem import Problem, Task, Verdict
from sdistill.text.chat import Chat, conversation
from sdistill.text.tokenizer import check_vocabulary
from sdistill.types import FinishReason, Response

FINISH_REASONS: Mapping[Finish, FinishReason] = {
    Finish.STOP: "stop",
    Finish.LENGTH: "length",
    Finish.ERROR: "error",
}


def requests_for(
    problems: Sequence[Problem],
    contents: Sequence[str],
    chat: Chat,
    samples: int,
    sampling: Sampling,
    *,
    thinking: bool = True,
) -> list[Request]:
    """Requests for responses to each problem, with user turn `contents`, those to one problem together.

    A problem that occurs again goes on counting its samples.
    """
    seen: dict[str, int] = {}
    requests = []
    for problem, content in zip(problems, contents, strict=True):
        first = seen.get(problem.id, 0)
        seen[problem.id] = first + samples
        prompt = chat.prompt(conversation(problem, content), thinking=thinking)
        numbers = range(first, first + samples)
        requests += [Request(prompt, problem.id, number, sampling) for number in numbers]
    return requests


def judge(
    problem: Problem, request: Request, ids: Sequence[int], finish: int, chat: Chat, task: Task
) -> Response:
    """Decodes and verifies a response."""
    response = chat.tokenizer.decode(ids)
    return described(problem, request, response, len(ids), finish, chat, task.verify(problem, response))


def described(
    problem: Problem, request: Request, response: str, length: int, finish: int, chat: Chat, verdict: Verdict
) -> Response:
    """A response with its verdict."""
    finished = finish == Finish.STOP
    return Response(
        problem.id,
        request.sample,
        prompt=chat.tokenizer.decode(request.prompt),
        text=response,
        # A response that was cut is wrong even if its last words happen to read as an answer.
        correct=verdict.correct and finished,
        finish=FINISH_REASONS[Finish(finish)],
        length=length,
        num_epistemic=count_words(response),
        num_epistemic_substrings=count_substrings(response),
        answer=verdict.answer if finished else None,
        feedback=verdict.feedback,
        timed_out=verdict.timed_out,
    )


def sample(
    engine: Engine,
    params: nnx.State,
    problems: Sequence[Problem],
    contents: Sequence[str],
    *,
    chat: Chat,
    task: Task,
    samples: int,
    seed: int,
    step: int,
    sampling: Sampling,
    thinking: bool = True,
    progress: Callable[[EngineStats], None] | None = None,
    clock: Clock | None = None,
) -> tuple[list[Response], Completions]:
    """Samples and judges `samples` responses a problem, posed with user turn `contents`.

    Of several processes each does its share, and all know the outcome. Verification follows sampling, and
    takes what is said to `clock`: with the time until the other processes have verified their shares.
    """
    clock = clock or Clock()
    requests = requests_for(problems, contents, chat, samples, sampling, thinking=thinking)
    mine = share_of(len(requests))
    asked = [(problems[i // samples], request) for i, request in enumerate(requests)][mine]
    with clock.spent_on("generate"):
        rollouts = engine.generate(
            params, [request for _, request in asked], seed=seed, step=step, progress=progress
        )
    with clock.spent_on("verify"):
        values = gathered([response.to_json() for response in judge_all(asked, rollouts, chat, task)])
        return [Response.from_json(v) for v in values], gathered_rows(rollouts, len(asked))


def judge_all(
    asked: Sequence[tuple[Problem, Request]], rollouts: Completions, chat: Chat, task: Task
) -> list[Response]:
    """Decodes and verifies responses."""
    texts = [
        chat.tokenizer.decode(ids[:length].tolist())
        for ids, length in zip(rollouts.ids, rollouts.lengths, strict=True)
    ]
    verdicts = task.verify_all([(problem, text) for (problem, _), text in zip(asked, texts, strict=True)])
    return [
        described(problem, request, text, int(length), int(finish), chat, verdict)
        for (problem, request), text, length, finish, verdict in zip(
            asked, texts, rollouts.lengths, rollouts.finish, verdicts, strict=True
        )
    ]


def main() -> None:
    """Evaluates as the command line says; what the user can mend ends in one line."""
    try:
        evaluate(parse_arguments())
    except (ConfigError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="signs_base", help="model folder, or a name of Hugging Face's")
    parser.add_argument("--tokenizer", help="where its tokenizer is, if not with the model")
    parser.add_argument("--split", default="k3_test", help="problems, such as k4_test or math500")
    parser.add_argument("--problems", type=int, default=256, help="at most")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--max_prompt", type=int, default=16, help="tokens")
    parser.add_argument("--max_response", type=int, default=112, help="tokens")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument("--top_k", type=int)
    parser.add_argument("--no_thinking", action="store_true", help="the prompt asks for no thinking")
    parser.add_argument("--slots", type=int, default=256, help="responses decoded at a time")
    parser.add_argument("--seed", type=int, default=0)
    dtypes = ["float32", "bfloat16"]
    parser.add_argument("--dtype", default="float32", choices=dtypes, help="of weights, activations, cache")
    parser.add_argument("--data_dir", help="where data sets are prepared; default: TFDS's")
    return parser.parse_args()


def evaluate(args: argparse.Namespace) -> None:
    """Evaluates a model on problems and prints a table."""
    check_agreement("\n".join(f"--{name}={value}" for name, value in vars(args).items()))
    sampling = Sampling(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p)
    chat = load_chat(args.tokenizer or args.model)
    problems = open_problems(args.split, args.data_dir)[: args.problems]
    compute = ComputeConfig(dtype=args.dtype)
    sizes = {"slots": args.slots, "max_prompt": args.max_prompt, "max_response": args.max_response}
    mesh = sampling_mesh(None, args.model, compute, **sizes)
    model = load_model(args.model, mesh=mesh, dtype=args.dtype)
    check_vocabulary(chat.tokenizer, model.config.vocab_size)
    engine = SlotEngine(
        CachedDecoder(replace(model.config, compute=compute)),
        mesh=mesh,
        stop_ids=chat.tokenizer.stop_ids,
        **sizes,
    )
    with task_of(args.split) as task, Progress(transient=True) as progress:
        bar = progress.add_task(args.split, total=len(problems) * args.samples)
        generations, _ = sample(
            engine,
            nnx.state(model, nnx.Param),
            problems,
            [problem.messages[-1]["content"] for problem in problems],
            chat=chat,
            task=task,
            samples=args.samples,
            seed=args.seed,
            step=0,
            sampling=sampling,
            thinking=not args.no_thinking,
            progress=follow(progress, bar, args.split),
        )
    if not is_writer():
        return
    print_figures(generations, f"{args.model} on {args.split}")
    print(
        f"{len(problems)} problems × {args.samples} samples, seed {args.seed}, temperature "
        f"{args.temperature}, top-p {args.top_p}, top-k {args.top_k}, at most {args.max_response} tokens, "
        f"{jax.devices()[0].platform}"
    )


def print_figures(generations: Sequence[Response], title: str) -> None:
    """A table of what was measured, with bootstrap intervals over problems."""
    table = Table("metric", "value", "95 % interval", title=title)
    for name, figures in by_problem(generations).items():
        estimate = bootstrap_mean([np.asarray(list(figures.values()))])
        table.add_row(name, f"{estimate.value:.3f}", f"{estimate.low:.3f} to {estimate.high:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
