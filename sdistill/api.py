"""The public API: a model with its chat, what it says, what it says under a context, and one training step.

    import sdistill

    policy = sdistill.load("signs_base")  # or a model folder, or a Hugging Face name
    problems = sdistill.open_problems("k4_pool")[:4]
    responses = policy.sample(problems, task=sdistill.task_of("k4_pool"), num_samples=8)

Everything here is a few lines over the modules that the commands use.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float

from sdistill.batch import layout
from sdistill.config import GRPOConfig, SamplerConfig, SDPOConfig
from sdistill.distributed.mesh import MeshConfig, make_mesh
from sdistill.divergence.chunked import Comparison, chunked_token_divergence
from sdistill.divergence.definition import DivergenceConfig
from sdistill.engine.sampling import Sampling
from sdistill.losses import Sequences, response_hidden, response_ids
from sdistill.mesh_choice import training_mesh
from sdistill.model.decoder import Decoder, bind
from sdistill.model.folders import load_chat
from sdistill.model.weights import load_model
from sdistill.sample import Query, Sampler, encode, queries_for
from sdistill.settings import require
from sdistill.step import init_teacher
from sdistill.tasks.problem import Problem, Task
from sdistill.text.chat import Chat
from sdistill.text.words import token_texts
from sdistill.train import OnPolicyRun, initial_state, on_policy_step
from sdistill.types import Response

FULL = DivergenceConfig(support="full", top_k=None, tail=None)


class TokenComparison(NamedTuple):
    """Student and teacher at each token of a response.

    Attributes:
      tokens: Text of each token.
      divergence: Between teacher and student, in nats.
      student_log_probs: Log-probability of each token without the context.
      teacher_log_probs: The same with the context.
      student_entropy: Entropy of the next-token distribution without the context, in nats.
      teacher_entropy: The same with the context.
    """

    tokens: list[str]
    divergence: Float[np.ndarray, " T"]
    student_log_probs: Float[np.ndarray, " T"]
    teacher_log_probs: Float[np.ndarray, " T"]
    student_entropy: Float[np.ndarray, " T"]
    teacher_entropy: Float[np.ndarray, " T"]

    @property
    def bits(self) -> float:
        """log2 p(y|x,c) - log2 p(y|x) of the whole response: how much the context changes its probability."""
        return float((self.teacher_log_probs - self.student_log_probs).sum() / np.log(2))


@dataclass(frozen=True)
class Policy:
    """A model with its weights, tokenizer and chat template.

    Attributes:
      model: The decoder; `model.config` is its shape.
      chat: Tokenizer and chat template.
      mesh: Where the weights are.
    """

    model: Decoder
    chat: Chat
    mesh: Mesh

    @property
    def params(self) -> nnx.State:
        """The weights."""
        return nnx.state(self.model, nnx.Param)

    def sample(
        self,
        problems: Sequence[Problem],
        *,
        task: Task,
        num_samples: int = 1,
        contents: Sequence[str | None] | None = None,
        max_response_length: int = 112,
        sampling: Sampling | None = None,
        seed: int = 0,
        slots: int = 32,
        thinking: bool = True,
    ) -> list[Response]:
        """Verified responses, those to one problem adjacent.

        Args:
          problems: What to respond to.
          task: What verifies: `task_of(split)`, or a subclass of `Task` for problems of one's own.
          num_samples: Responses per problem.
          contents: User turns in the place of the problems' own, such as `teacher_turn` makes; None for no
            context.
          max_response_length: Tokens after which a response is cut. The default suits the puzzle; other tasks
            need more.
          sampling: How tokens are drawn; None for temperature 1 without truncation.
          seed: Of all random streams.
          slots: Responses decoded at a time.
          thinking: Whether prompts ask for thinking.

        Raises:
          ConfigError: if there is nothing to sample, or there are not as many contents as problems.
        """
        require(len(problems) > 0, "problems=[]: there is nothing to respond to")
        require(num_samples > 0, f"num_samples={num_samples} must be positive")
        if contents is not None:
            _require_as_many(problems=problems, contents=contents)
        queries = queries_for(problems, num_samples, contents)
        config = SamplerConfig(
            num_samples=num_samples,
            max_prompt_length=max(len(encode(self.chat, q, thinking=thinking)[0]) for q in queries),
            max_response_length=max_response_length,
            sampling=sampling or Sampling(),
            thinking=thinking,
            slots=slots,
        )
        sampler = Sampler(self.model.config, self.mesh, self.chat, config)
        responses, _ = sampler(self.params, queries, task, seed=seed, step=0)
        return responses

    def compare(
        self,
        problems: Sequence[Problem],
        responses: Sequence[Response | str],
        contents: Sequence[str | None],
        *,
        divergence: DivergenceConfig = FULL,
        temperature: float = 1.0,
        thinking: bool = True,
    ) -> list[TokenComparison]:
        """Responses under the problems alone (student) and under the user turns `contents` (teacher).

        Args:
          problems: What is responded to.
          responses: A response to each. The end token is scored as well, unless the response was cut.
          contents: The teacher's user turn for each, such as `teacher_turn` makes; None for no context.
          divergence: How both are compared.
          temperature: Divides the logits of both.
          thinking: Whether prompts ask for thinking.

        Raises:
          ConfigError: if there are not as many of the one as of the other, or none.
        """
        _require_as_many(problems=problems, responses=responses, contents=contents)
        require(len(responses) > 0, "responses=[]: there is nothing to compare")
        tokenizer = self.chat.tokenizer
        rows = []
        for response in responses:
            text, finish = (
                (response, "stop") if isinstance(response, str) else (response.text, response.finish)
            )
            rows.append([*tokenizer.encode(text), *([tokenizer.eos_id] if finish == "stop" else [])])
        lengths = np.asarray([len(row) for row in rows])
        ids = np.zeros((len(rows), lengths.max()), np.int32)
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = tokens

        def sequences(contents: Sequence[str | None]) -> Sequences:
            queries = (Query(problem, content=c) for problem, c in zip(problems, contents, strict=True))
            prompts = [encode(self.chat, query, thinking=thinking)[0] for query in queries]
            return layout(prompts, ids, lengths, max(map(len, prompts)))

        compared = _compare(
            self.model, sequences([None] * len(rows)), sequences(contents), divergence, temperature
        )
        loss_BT, student, teacher = jax.device_get(compared)
        scores = (loss_BT, student.log_prob_BT, teacher.log_prob_BT, student.entropy_BT, teacher.entropy_BT)
        return [
            TokenComparison(token_texts(tokenizer, row), *(x[i, : len(row)] for x in scores))
            for i, row in enumerate(rows)
        ]


def _require_as_many(**given: Sequence[object]) -> None:
    lengths = [f"{len(values)} {name}" for name, values in given.items()]
    as_many = len({len(values) for values in given.values()}) == 1
    require(as_many, f"{', '.join(lengths)}: give one of each for every problem")


def _compared(
    model: Decoder, student: Sequences, teacher: Sequences, divergence: DivergenceConfig, temperature: float
) -> Comparison:
    return chunked_token_divergence(
        response_hidden(model, student),
        model.head(),
        response_hidden(model, teacher),
        model.head(),
        response_ids(student),
        divergence,
        temperature=temperature,
        logits_chunk_size=512,
    )


_compare = nnx.jit(_compared, static_argnames=("divergence", "temperature"))


def load(source: str | Path, *, dtype: Literal["float32", "bfloat16"] = "float32") -> Policy:
    """The model of a folder, of a Hugging Face name, or `signs_base`, on the first device.

    Raises:
      FileNotFoundError: if it is none of these; says how to get the files.
    """
    mesh = make_mesh(MeshConfig())
    model = load_model(source, mesh=mesh, dtype=dtype)
    config = replace(model.config, compute=replace(model.config.compute, dtype=dtype))
    return Policy(bind(config, nnx.state(model, nnx.Param)), load_chat(source), mesh)


class Trainer:
    """Training steps one at a time, on problems of the caller's choice; nothing is written.

    `sdistill.train` runs the same steps with checkpoints, evaluations and records.
    """

    def __init__(self, config: GRPOConfig | SDPOConfig, problems: Sequence[Problem]):
        """Loads the model of the config; steps choose from the problems."""
        self.chat = load_chat(config.tokenizer or config.init_from)
        self._mesh = training_mesh(config)
        model, self.state = initial_state(config, self._mesh, self.chat.tokenizer)
        self._run = OnPolicyRun(config, model, self._mesh, self.chat, problems, self.state.params)
        self._teacher = init_teacher(config.teacher, self.state.params)
        self.metrics: list[dict[str, float]] = []

    def step(self, indices: Sequence[int]) -> tuple[dict[str, float], list[Response]]:
        """One step on these problems: sample, verify, update. Returns its metrics and rollouts.

        Args:
          indices: Of the problems that the trainer was made with.

        Raises:
          ConfigError: if there is no index, or no problem of an index.
        """
        total = len(self._run.problems)
        known = len(indices) > 0 and all(0 <= index < total for index in indices)
        require(known, f"indices={list(indices)} must be of the {total} problems: 0 to {total - 1}")
        with jax.set_mesh(self._mesh):
            self.state, self._teacher, metrics, responses = on_policy_step(
                self._run, self.state, self._teacher, indices, len(self.metrics), self.metrics
            )
        self.metrics.append(metrics)
        return metrics, responses

    @property
    def policy(self) -> Policy:
        """The model as trained so far. The next step donates its buffers: use it before."""
        return Policy(bind(self._run.model, self.state.params), self.chat, self._mesh)
