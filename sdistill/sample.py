"""The one sampler: problems in, verified responses out.

Training, evaluation, generation, the study and the probes all sample through `Sampler`. The engine below it
knows token ids only; chat templates, contexts, verification and processes are handled here.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from sdistill.analysis.epistemic import count_substrings, count_words
from sdistill.clock import Clock
from sdistill.config import SamplerConfig
from sdistill.distributed.mesh import MeshConfig
from sdistill.distributed.processes import all_gather, all_gather_rows, process_slice
from sdistill.engine.engine import SlotEngine
from sdistill.engine.model import CachedDecoder
from sdistill.engine.types import Completions, EngineStats, Finish, Request, StopFunction
from sdistill.mesh_choice import sampling_mesh
from sdistill.model.config import ComputeConfig, ModelConfig
from sdistill.model.weights import load_model
from sdistill.tasks.problem import Problem, Task, Verdict
from sdistill.text.chat import Chat, conversation
from sdistill.text.tokenizer import check_vocabulary
from sdistill.types import Response

VERIFIERS = 4
"""Threads that wait for verdicts while other responses are decoded."""

OnRound = Callable[[EngineStats], None]


@dataclass(frozen=True)
class Query:
    """One response to sample.

    Attributes:
      problem: What it responds to.
      sample: Which response to the problem it is; with the problem's id it names the random stream.
      content: The user turn, where it is not the problem's own: with a context, for instance.
      prefix: Text that the response starts with. Sampling continues from there.
    """

    problem: Problem
    sample: int = 0
    content: str | None = None
    prefix: str = ""


def queries_for(
    problems: Sequence[Problem], num_samples: int, contents: Sequence[str | None] | None = None
) -> list[Query]:
    """Queries for `num_samples` responses to each problem, adjacent ones to the same problem.

    The samples of a problem that occurs more than once are numbered on.
    """
    counts: dict[str, int] = {}
    queries = []
    for problem, content in zip(problems, contents or [None] * len(problems), strict=True):
        first = counts.get(problem.id, 0)
        counts[problem.id] = first + num_samples
        queries += [Query(problem, number, content) for number in range(first, first + num_samples)]
    return queries


def encode(chat: Chat, query: Query, *, thinking: bool = True) -> tuple[list[int], list[int]]:
    """Token ids of a query's prompt, and of the prefix of its response."""
    prompt = chat.prompt(conversation(query.problem, query.content), thinking=thinking)
    return prompt, chat.tokenizer.encode(query.prefix) if query.prefix else []


class Sampler:
    """Samples responses to problems, and verifies them."""

    def __init__(
        self, model: ModelConfig, mesh: Mesh, chat: Chat, config: SamplerConfig, clock: Clock | None = None
    ):
        """A sampler for one model shape and one length of prompts and responses.

        Args:
          config: Lengths include the prefix of a response.
          clock: Records what sampling and verification take.

        Raises:
          ConfigError: if the engine refuses the sizes (`SlotEngine`).
        """
        self.chat, self.config, self.clock = chat, config, clock or Clock()
        self.engine = SlotEngine(
            CachedDecoder(model),
            mesh=mesh,
            stop_ids=chat.tokenizer.stop_ids,
            slots=config.slots,
            max_prompt_length=config.max_prompt_length,
            max_response_length=config.max_response_length,
        )

    def __call__(
        self,
        params: nnx.State,
        queries: Sequence[Query],
        task: Task,
        *,
        seed: int,
        step: int,
        forbidden: Sequence[int] = (),
        on_round: OnRound | None = None,
    ) -> tuple[list[Response], Completions]:
        """Samples all queries, then verifies all responses; both in the order of the queries.

        Of several processes each samples and verifies its share, and all get all responses.

        Args:
          seed, step: What all random streams depend on.
          forbidden: Token ids that are never drawn.
          on_round: Called after every round of decoding; may raise.
        """
        mine = queries[process_slice(len(queries))]
        prefixes, requests = self._requests(mine)
        with self.clock.measure("generate"):
            completions = self.engine.generate(
                params, requests, seed=seed, step=step, forbidden=forbidden, on_round=self._observed(on_round)
            )
        with self.clock.measure("verify"):
            ids = [
                [*prefix, *row[:length].tolist()]
                for prefix, row, length in zip(prefixes, completions.ids, completions.lengths, strict=True)
            ]
            texts = [self.chat.tokenizer.decode(row) for row in ids]
            verdicts = task.verify_all([(q.problem, text) for q, text in zip(mine, texts, strict=True)])
            columns = mine, requests, prefixes, texts, map(len, ids), completions.finish, verdicts
            responses = [self._response(*row) for row in zip(*columns, strict=True)]
            found = all_gather([response.to_json() for response in responses])
            return [Response.from_json(r) for r in found], all_gather_rows(completions, len(requests))

    def stream(
        self,
        params: nnx.State,
        queries: Sequence[Query],
        task: Task,
        on_response: Callable[[Response], None],
        *,
        seed: int,
        stop: StopFunction | None = None,
        on_completion: Callable[[Query, np.ndarray, Finish], None] | None = None,
        on_round: OnRound | None = None,
    ) -> None:
        """Samples all queries, and verifies each response while others are decoded.

        Args:
          queries: What to sample; this process takes its share.
          task: What verifies, from several threads.
          on_response: Called from these threads with each verified response of this process. If it raises, so
            does this function.
          stop: Ends responses for reasons that single ids do not show, such as strings.
          on_completion: Called with each query and what was sampled, before it is verified; may raise.
          on_round: Called after every round of decoding; may raise.
        """
        mine = queries[process_slice(len(queries))]
        prefixes, requests = self._requests(mine)
        pending: list[Future[None]] = []

        def verify(index: int, sampled: np.ndarray, finish: Finish) -> None:
            query, ids = mine[index], [*prefixes[index], *sampled.tolist()]
            text = self.chat.tokenizer.decode(ids)
            verdict = task.verify(query.problem, text)
            on_response(
                self._response(query, requests[index], prefixes[index], text, len(ids), finish, verdict)
            )

        with ThreadPoolExecutor(VERIFIERS) as verifiers:

            def ended(index: int, sampled: np.ndarray, finish: Finish) -> None:
                if on_completion is not None:
                    on_completion(mine[index], sampled, finish)
                pending.append(verifiers.submit(verify, index, sampled, finish))

            self.engine.generate(
                params,
                requests,
                seed=seed,
                step=0,
                stop=stop,
                on_completion=ended,
                on_round=self._observed(on_round),
            )
        for verified in pending:
            verified.result()  # raises what its thread raised

    def _requests(self, queries: Sequence[Query]) -> tuple[list[list[int]], list[Request]]:
        """The tokens of each query's prefix, and what the engine is asked for: what follows."""
        prefixes, requests = [], []
        for query in queries:
            prompt, prefix = encode(self.chat, query, thinking=self.config.thinking)
            limit = max(1, self.config.max_response_length - len(prefix))
            prefixes.append(prefix)
            requests.append(
                Request([*prompt, *prefix], query.problem.id, query.sample, self.config.sampling, limit)
            )
        return prefixes, requests

    def _response(
        self,
        query: Query,
        request: Request,
        prefix: Sequence[int],
        text: str,
        length: int,
        finish: int,
        verdict: Verdict,
    ) -> Response:
        # A response that was cut is wrong, even if its last words happen to read as an answer.
        finished = bool(finish == Finish.STOP)
        return Response(
            problem=query.problem.id,
            sample=query.sample,
            prompt=self.chat.tokenizer.decode(request.prompt[: len(request.prompt) - len(prefix)]),
            text=text,
            correct=verdict.correct and finished,
            answer=verdict.answer if finished else None,
            feedback=verdict.feedback,
            timed_out=verdict.timed_out,
            finish=Finish(finish).name.lower(),  # type: ignore[arg-type]
            length=length,
            num_epistemic=count_words(text),
            num_epistemic_substrings=count_substrings(text),
        )

    def _observed(self, on_round: OnRound | None) -> OnRound:
        def observe(stats: EngineStats) -> None:
            self.clock.observe(stats)
            if on_round is not None:
                on_round(stats)

        return observe


def open_sampler(
    source: str | Path,
    chat: Chat,
    config: SamplerConfig,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    mesh: MeshConfig | None = None,
) -> tuple[Sampler, nnx.State]:
    """A sampler of a stored model, and its parameters.

    Args:
      source: A model folder, a Hugging Face name, or `signs_base`.
      dtype: Of weights, activations and cache.
      mesh: None chooses one over all devices that fits the model.

    Raises:
      ConfigError: before weights are loaded, if no mesh fits; or if the tokenizer is larger than the model.
    """
    compute = ComputeConfig(dtype=dtype)
    devices = sampling_mesh(mesh, source, compute, config)
    model = load_model(source, mesh=devices, dtype=dtype)
    check_vocabulary(chat.tokenizer, model.config.vocab_size)
    sampler = Sampler(replace(model.config, compute=compute), devices, chat, config)
    return sampler, nnx.state(model, nnx.Param)
