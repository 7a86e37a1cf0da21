"""How a run samples: responses to learn from, and responses to be evaluated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flax import nnx
from jax.sharding import Mesh

from sdistill.clock import Clock
from sdistill.config import EvaluationConfig, RolloutsConfig, TrainConfig
from sdistill.engine.engine import SlotEngine
from sdistill.engine.model import CachedDecoder
from sdistill.engine.types import Completions, EngineStats
from sdistill.evaluate import sample
from sdistill.model.config import ModelConfig
from sdistill.tasks.problem import Problem, Task
from sdistill.text.chat import Chat
from sdistill.types import Response

OnRound = Callable[[EngineStats], None]


@dataclass(frozen=True)
class ProblemSampler:
    """Samples and judges responses to problems posed without a context.

    Attributes:
      engine: Compiled for the lengths of `settings`.
      chat: How prompts are made.
      settings: Samples a problem, and how they are drawn.
      seed: Of the run.
      on_round: Called again and again while it samples; may raise.
      clock: Is told what it takes.
    """

    engine: SlotEngine
    chat: Chat
    settings: RolloutsConfig | EvaluationConfig
    seed: int
    on_round: OnRound | None = None
    clock: Clock = field(default_factory=Clock)

    def __call__(
        self, params: nnx.State, problems: Sequence[Problem], task: Task, step: int
    ) -> tuple[list[Response], Completions]:
        """Responses to the problems, judged by their task, and their tokens.

        Those to one problem are next to each other.
        """
        return sample(
            self.engine,
            params,
            problems,
            [problem.messages[-1]["content"] for problem in problems],
            chat=self.chat,
            task=task,
            samples=self.settings.samples,
            seed=self.seed,
            step=step,
            sampling=self.settings.sampling,
            thinking=self.settings.thinking,
            progress=self._note,
            clock=self.clock,
        )

    def _note(self, usage: EngineStats) -> None:
        self.clock.see(usage)
        if self.on_round is not None:
            self.on_round(usage)


def rollout_sampler(
    config: TrainConfig,
    model: ModelConfig,
    mesh: Mesh,
    chat: Chat,
    on_round: OnRound | None = None,
    clock: Clock | None = None,
) -> ProblemSampler:
    """What GRPO and SDPO learn from."""
    assert config.rollouts is not None
    engine = SlotEngine(
        CachedDecoder(model),
        mesh=mesh,
        stop_ids=chat.tokenizer.stop_ids,
        slots=config.slots,
        max_prompt=config.rollouts.max_prompt,
        max_response=config.rollouts.max_response,
    )
    return ProblemSampler(engine, chat, config.rollouts, config.seed, on_round, clock or Clock())


def evaluation_sampler(
    config: TrainConfig, model: ModelConfig, mesh: Mesh, chat: Chat, on_round: OnRound | None = None
) -> ProblemSampler:
    """The evaluation's responses, which may be longer."""
    assert config.evaluation is not None
    engine = SlotEngine(
        CachedDecoder(model),
        mesh=mesh,
        stop_ids=chat.tokenizer.stop_ids,
        slots=config.evaluation.slots,
        max_prompt=config.evaluation.max_prompt,
        max_response=config.evaluation.max_response,
    )
    return ProblemSampler(engine, chat, config.evaluation, config.seed, on_round)
