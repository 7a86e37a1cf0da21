"""The settings of one training run."""

from dataclasses import dataclass, field
from typing import Literal

from sdistill.distributed.mesh import MeshConfig
from sdistill.engine.sampling import Sampling
from sdistill.fixes import AntiSelfDistillation, ContrastiveHints
from sdistill.losses import GRPOConfig, SDPOConfig
from sdistill.model.config import ComputeConfig, ModelConfig
from sdistill.optimizer import OptimizerConfig
from sdistill.settings import require, require_positive


@dataclass(frozen=True)
class ExamplesConfig:
    """What pretraining and SFT read.

    Attributes:
      source: `signs_corpus`, or the path of a `.jsonl.gz` file with `prompt` and `response` fields.
      rows: Rows of a batch, which is one update.
      row_length: Tokens of a row; an example that is longer is refused.
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
      split: Problems to train on, such as `k3_pool`.
      problems: |D|: only the first so many of the split; None for all.
      prompts: Problems a step. With fewer problems than that, some come more than once.
      samples: Rollouts a problem, G.
      max_prompt: Tokens of a prompt without context, at most.
      max_response: Tokens after which a rollout is cut.
      max_teacher_prompt: Tokens of a prompt with context, at most; for objectives with a teacher only.
      mini_batch: Problems an update, with all of their rollouts, in the order of the batch; None for all of a
        step at once. Contexts, advantages and what they take from a teacher's scores come once a step,
        from all rollouts and the weights that sampled them, and importance ratios are against those
        weights; but each update has an objective of its own, over its own rows.
      sampling: How tokens are drawn; what is learned from is the distribution at that temperature.
      thinking: Whether the prompt asks the student to think; the teacher has a setting of its own.
    """

    split: str
    problems: int | None
    prompts: int
    samples: int
    max_prompt: int
    max_response: int
    max_teacher_prompt: int | None = None
    mini_batch: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    thinking: bool = True

    def __post_init__(self) -> None:
        require_positive(self, "prompts", "max_prompt", "max_response")
        require(
            self.samples > 1, f"samples={self.samples} must be 2 or more: both objectives compare siblings"
        )
        require(self.problems is None or self.problems > 0, f"problems={self.problems} must be positive")
        require(
            self.mini_batch is None or (self.mini_batch > 0 and self.prompts % self.mini_batch == 0),
            f"mini_batch={self.mini_batch} must divide prompts={self.prompts}, or be None for all at once",
        )
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
      max_prompt: Tokens of a prompt, at most.
      max_response: Tokens after which a response is cut.
      sampling: How tokens are drawn.
      thinking: Whether the prompt asks for thinking.
      slots: Responses decoded at a time.
    """

    every: int
    datasets: tuple[str, ...]
    at_start: tuple[str, ...] = ()
    problems: int = 128
    samples: int = 4
    max_prompt: int = 16
    max_response: int = 112
    sampling: Sampling = field(default_factory=Sampling)
    thinking: bool = True
    slots: int = 256

    def __post_init__(self) -> None:
        require_positive(self, "every", "problems", "samples", "max_prompt", "max_response", "slots")


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
      objective: What is minimised: `pretrain` and `sft` the cross-entropy of `examples` (they differ in name
        only), `grpo` and `sdpo` their losses on `rollouts`.
      seed: Of initial weights, order of data and sampling.
      steps: Batches to learn from. With `examples` each is an update; with `rollouts` each is sampled, and
        learned from in one update or several (`rollouts.mini_batch`). Checkpoints and evaluations come
        between steps; the optimizer's schedule counts updates.
      optimizer: How it is minimised.
      init_from: Where the weights come from: `signs_base` (shipped), a model folder of either form
        (see `sdistill.convert`), or a name of Hugging Face's; None to draw them.
      model: Shape of the model to draw weights for; only where `init_from` is None.
      tokenizer: Where tokenizer and chat template are, in the terms of `init_from`; None for those of the
        model, and without one for the puzzle's.
      parameters: Type of the parameters, and so of gradients and of Adam's mean of their squares; that of its
        mean of gradients is `optimizer.first_moment`.
      compute: How the model is computed: type of activations, attention, rematerialisation.
      examples: Data of `pretrain` and `sft`.
      rollouts: Data of `grpo` and `sdpo`.
      sdpo: Settings of SDPO.
      grpo: Settings of GRPO.
      evaluation: When and on what to evaluate; None for never.
      attribution: Keep of each token of the rollouts where the training signal falls, besides its text: its
        divergence, its share of the gradient, and the student's entropy (see `training.attribution`); `grpo`
        and `sdpo` only.
      checkpoint_every: Steps between checkpoints; the last step has one in any case.
      micro_rows: Rows whose gradient is computed at a time, until those of the update are done; None for all
        of them at once. It changes memory and padding, not the objective.
      chunk: Response positions a row whose logits exist at the same time.
      slots: Rollouts decoded at a time.
      mesh: Sizes of the device mesh; None for one over all devices that suits the model.
      data_dir: Where data sets are prepared; None for the TFDS default.
      profile_steps: First and last step that JAX's profiler records, into `profile/`; None for none.
    """

    objective: Literal["pretrain", "sft", "grpo", "sdpo"]
    seed: int
    steps: int
    optimizer: OptimizerConfig
    init_from: str | None = "signs_base"
    model: ModelConfig | None = None
    tokenizer: str | None = None
    parameters: Literal["float32", "bfloat16"] = "float32"
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    examples: ExamplesConfig | None = None
    rollouts: RolloutsConfig | None = None
    sdpo: SDPOConfig | None = None
    grpo: GRPOConfig | None = None
    evaluation: EvaluationConfig | None = None
    attribution: bool = False
    checkpoint_every: int = 20
    micro_rows: int | None = None
    chunk: int = 64
    slots: int = 128
    mesh: MeshConfig | None = field(default_factory=MeshConfig)
    data_dir: str | None = None
    profile_steps: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        require_positive(self, "steps", "checkpoint_every", "chunk", "slots")
        profiled = self.profile_steps
        require(
            profiled is None or (len(profiled) == 2 and 0 < profiled[0] <= profiled[1] <= self.steps),
            f"profile_steps={profiled} must be a first and a last step, 1 to steps={self.steps}",
        )
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
        require(
            on_policy or not self.attribution,
            f"attribution has no effect with objective={self.objective!r}; remove it",
        )
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
                or sampling.top_p < 1
                or sampling.min_p > 0,
                "sdpo.loss.rollout_correction_cap has no effect where rollouts.sampling sets neither top_k "
                "nor top_p nor min_p; remove it",
            )
        self._check_rows()
        if self.evaluation is not None and not on_policy:
            require(
                "trained" not in self.evaluation.datasets,
                "evaluation.datasets: 'trained' needs training problems, which only grpo and sdpo have",
            )

    def _check_rows(self) -> None:
        """Refuses rows of an update that cannot be cut as `micro_rows` and the mesh say."""
        name = "examples.rows"
        if self.rollouts is not None:
            cut = "prompts" if self.rollouts.mini_batch is None else "mini_batch"
            name = f"rollouts.{cut} × samples"
        rows, micro = self.update_rows, self.micro_rows
        ways = 1 if self.mesh is None else self.mesh.data * self.mesh.fsdp
        require(rows % ways == 0, f"{name} = {rows} rows must divide over {ways} devices")
        require(
            micro is None or (micro > 0 and rows % micro == 0 and micro % ways == 0),
            f"micro_rows={micro} must divide {name} = {rows}, and itself over {ways} devices",
        )

    @property
    def update_rows(self) -> int:
        """Rows of one update."""
        if self.rollouts is not None:
            return (self.rollouts.mini_batch or self.rollouts.prompts) * self.rollouts.samples
        assert self.examples is not None
        return self.examples.rows

    @property
    def guide(self) -> SDPOConfig | ContrastiveHints | AntiSelfDistillation | None:
        """The part of the objective that has a teacher, and a context for it."""
        if self.grpo is not None:
            return self.grpo.contrastive_hints or self.grpo.anti_self_distillation
        return self.sdpo
