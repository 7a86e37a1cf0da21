"""The settings of one training run."""

from dataclasses import dataclass, field
from typing import Literal

from sdistill.config import require, require_positive
from sdistill.distill.fixes import AntiSelfDistillation, ContrastiveHints
from sdistill.models.config import ComputeConfig, ModelConfig
from sdistill.parallel.mesh import MeshConfig
from sdistill.rollout.sampling import Sampling
from sdistill.training.objectives import GRPOConfig, SDPOConfig
from sdistill.training.optimizer import OptimizerConfig


@dataclass(frozen=True)
class ExamplesConfig:
    """What pretraining and SFT read.

    Attributes:
      source: `signs_corpus`, or the path of a `.jsonl.gz` file with `prompt` and `response` fields.
      rows: Rows of a batch.
      row_length: Tokens of a row.
      packed: Fill each row with as many examples as fit; otherwise one example a row.
    """

    source: str
    rows: int
    row_length: int
    packed: bool

    def __post_init__(self) -> None:
        require_positive(self, "rows", "row_length")


@dataclass(frozen=True)
class RolloutsConfig:
    """How GRPO and SDPO sample.

    Attributes:
      split: Problems to train on.
      problems: |D|: only the first so many of the split; None for all.
      prompts: Problems a step.
      samples: Rollouts a problem, G.
      max_prompt: Tokens of a prompt without context, at most.
      max_response: Tokens after which a rollout is cut.
      max_teacher_prompt: Tokens of a prompt with context, at most; for objectives with a teacher only.
      sampling: How tokens are drawn.
      thinking: Whether the prompt asks the student to think; the teacher has a setting of its own.
    """

    split: str
    problems: int | None
    prompts: int
    samples: int
    max_prompt: int
    max_response: int
    max_teacher_prompt: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    thinking: bool = True

    def __post_init__(self) -> None:
        require_positive(self, "prompts", "max_prompt", "max_response")
        require(
            self.samples > 1, f"samples={self.samples} must be 2 or more: both objectives compare siblings"
        )
        require(self.problems is None or self.problems > 0, f"problems={self.problems} must be positive")
        require(self.sampling.temperature > 0, "sampling.temperature=0 has no distribution to learn from")


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation during training.

    Attributes:
      every: Steps between evaluations; the last step is always evaluated.
      at_start: Data sets to evaluate before the first step.
      datasets: Splits of problems; `trained` stands for the run's own training problems.
      problems: Problems a data set. Fewer `trained` ones are repeated up to this number.
      samples: Responses a problem.
      max_response: Tokens after which a response is cut.
      sampling: How tokens are drawn.
      thinking: Whether the prompt asks for thinking.
    """

    every: int
    datasets: tuple[str, ...]
    at_start: tuple[str, ...] = ()
    problems: int = 128
    samples: int = 4
    max_response: int = 112
    sampling: Sampling = field(default_factory=Sampling)
    thinking: bool = True

    def __post_init__(self) -> None:
        require_positive(self, "every", "problems", "samples", "max_response")


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
      objective: What is minimised.
      seed: Of initial weights, order of data and sampling.
      steps: Updates to make.
      optimizer: How.
      init_from: Where the weights come from: `signs_base` (shipped), a model folder of either form
        (see `sdistill.convert`), or a name of Hugging Face's; None to draw them.
      model: Shape of the model to draw weights for; only where `init_from` is None.
      parameters: Type of the parameters, and so of the optimizer's moments.
      compute: How the model is computed.
      examples: Data of `pretrain` and `sft`.
      rollouts: Data of `grpo` and `sdpo`.
      sdpo: Settings of SDPO.
      grpo: Settings of GRPO.
      evaluation: When and on what to evaluate; None for never.
      checkpoint_every: Steps between checkpoints.
      micro_rows: Rows whose gradient is computed at a time, so many at a time until the batch is done; None
        for all at once. It changes memory and padding, not the objective.
      chunk: Response positions a row whose logits exist at the same time.
      slots: Responses decoded at a time.
      mesh: Sizes of the device mesh.
      data_dir: Where data sets are prepared; None for the TFDS default.
    """

    objective: Literal["pretrain", "sft", "grpo", "sdpo"]
    seed: int
    steps: int
    optimizer: OptimizerConfig
    init_from: str | None = "signs_base"
    model: ModelConfig | None = None
    parameters: Literal["float32", "bfloat16"] = "float32"
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    examples: ExamplesConfig | None = None
    rollouts: RolloutsConfig | None = None
    sdpo: SDPOConfig | None = None
    grpo: GRPOConfig | None = None
    evaluation: EvaluationConfig | None = None
    checkpoint_every: int = 20
    micro_rows: int | None = None
    chunk: int = 64
    slots: int = 128
    mesh: MeshConfig = field(default_factory=MeshConfig)
    data_dir: str | None = None

    def __post_init__(self) -> None:
        require_positive(self, "steps", "checkpoint_every", "chunk", "slots")
        require(
            (self.model is None) == (self.init_from is not None),
            "model is needed where init_from is None, and has no effect otherwise",
        )
        require(
            self.model is None or self.model.compute == ComputeConfig(),
            "model.compute has no effect; the run's own field compute says how the model is computed",
        )
        on_policy = self.objective in ("grpo", "sdpo")
        for name, used in (
            ("examples", not on_policy),
            ("rollouts", on_policy),
            ("sdpo", self.objective == "sdpo"),
            ("grpo", self.objective == "grpo"),
        ):
            given = getattr(self, name) is not None
            require(given or not used, f"{name} is needed by objective={self.objective!r}")
            require(used or not given, f"{name} has no effect with objective={self.objective!r}; remove it")
        if self.rollouts is not None:
            require(
                (self.rollouts.max_teacher_prompt is not None) == (self.guide is not None),
                "rollouts.max_teacher_prompt goes with objective='sdpo', grpo.contrastive_hints or "
                "grpo.anti_self_distillation, and only with these",
            )
            sampling = self.rollouts.sampling
            require(
                self.sdpo is None
                or self.sdpo.loss.rollout_correction_cap is None
                or sampling.top_k is not None
                or sampling.top_p < 1,
                "sdpo.loss.rollout_correction_cap has no effect where rollouts.sampling sets neither top_k "
                "nor top_p; remove it",
            )
            rows = self.rollouts.prompts * self.rollouts.samples
            ways = self.mesh.data * self.mesh.fsdp
            require(
                rows % ways == 0, f"rollouts.prompts × samples = {rows} rows must divide over {ways} devices"
            )
            self._check_micro_rows("rollouts.prompts × samples", rows)
        if self.examples is not None:
            self._check_micro_rows("examples.rows", self.examples.rows)
        if self.evaluation is not None and not on_policy:
            require(
                "trained" not in self.evaluation.datasets,
                "evaluation.datasets: 'trained' needs training problems, which only grpo and sdpo have",
            )

    def _check_micro_rows(self, name: str, rows: int) -> None:
        ways, micro = self.mesh.data * self.mesh.fsdp, self.micro_rows
        require(
            micro is None or (micro > 0 and rows % micro == 0 and micro % ways == 0),
            f"micro_rows={micro} must divide {name} = {rows}, and itself over {ways} devices",
        )

    @property
    def guide(self) -> SDPOConfig | ContrastiveHints | AntiSelfDistillation | None:
        """The part of the objective that has a teacher, and a context for it."""
        if self.grpo is not None:
            return self.grpo.contrastive_hints or self.grpo.anti_self_distillation
        return self.sdpo
