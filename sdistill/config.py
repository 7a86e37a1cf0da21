"""Settings of training runs: data, teacher, objectives, optimizer, and the runs made of them.

Defaults suit real models. What the puzzle needs instead is in `configs/signs/`.
"""

import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from sdistill.distributed.mesh import MeshConfig
from sdistill.divergence.definition import DivergenceConfig
from sdistill.engine.sampling import Sampling
from sdistill.model.config import ComputeConfig, ModelConfig
from sdistill.settings import ConfigError, require, require_fraction, require_positive, require_together

# ── Data ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class ExamplesConfig:
    """What pretraining and SFT read.

    Attributes:
      source: `signs_corpus`, or the path of a `.jsonl.gz` file with `prompt` and `response` fields.
      batch_size: Rows of a batch, which is one update.
      sequence_length: Tokens of a row. A longer example is refused.
      packed: Fill each row with as many examples as fit. Otherwise each row has one example.
    """

    source: str
    batch_size: int
    sequence_length: int
    packed: bool

    def __post_init__(self) -> None:
        require_positive(self, "batch_size", "sequence_length")


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How responses are sampled.

    Attributes:
      num_samples: Responses per problem; for rollouts, the group size G.
      max_prompt_length: Longest prompt without context, in tokens.
      max_response_length: Tokens after which a response is cut.
      sampling: How tokens are drawn. Objectives use the distribution at this temperature.
      thinking: Whether prompts ask for thinking. A context has a setting of its own.
      slots: Responses decoded at a time.
    """

    num_samples: int
    max_prompt_length: int
    max_response_length: int
    sampling: Sampling = field(default_factory=Sampling)
    thinking: bool = True
    slots: int = 64

    def __post_init__(self) -> None:
        require_positive(self, "num_samples", "max_prompt_length", "max_response_length", "slots")


@dataclass(frozen=True, kw_only=True)
class RolloutsConfig(SamplerConfig):
    """What GRPO and SDPO sample.

    Attributes:
      split: Training problems, such as `dapo_math_17k`.
      num_prompts: Problems per step. If there are fewer distinct problems, some occur more than once.
      num_problems: Distinct training problems |D|: the first of the split. None takes all.
      mini_batch_size: Problems per update, with all of their rollouts, in the order of the batch. None makes
        one update per step. Contexts, advantages and teacher scores are computed once per step, with the
        weights that sampled; importance ratios are relative to those weights. Each update has its own
        objective.
    """

    split: str
    num_prompts: int
    num_problems: int | None = None
    mini_batch_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "num_prompts", "num_problems")
        if self.num_samples < 2:
            raise ConfigError(f"num_samples={self.num_samples} must be 2 or more: siblings are compared")
        size, total = self.mini_batch_size, self.num_prompts
        if size is not None and (size < 1 or total % size):
            raise ConfigError(
                f"mini_batch_size={size} must divide num_prompts={total}, or be None for one update"
            )
        require(self.sampling.temperature > 0, "sampling.temperature=0 has no distribution to learn from")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(SamplerConfig):
    """Evaluation during training.

    Attributes:
      every: Steps between evaluations. The last step is always evaluated.
      datasets: Splits of problems. `trained` stands for the run's own training problems.
      at_start: Data sets to evaluate before the first step.
      num_problems: Problems per data set. If there are fewer `trained` ones, they are repeated.
    """

    every: int
    datasets: tuple[str, ...]
    at_start: tuple[str, ...] = ()
    num_problems: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "every", "num_problems")


# ── Teacher: what it sees, and whose weights it has ──────────────────────────────────────────────

Kind = Literal["solution", "answer", "partial", "partial_solution", "other_problem"]
PARTIAL: tuple[Kind, ...] = ("partial", "partial_solution")
"""Kinds of context that show a fraction of what another kind shows."""


def _check_template(name: str, template: str, wanted: set[str]) -> None:
    found = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    names = " and ".join(f"{{{field}}}" for field in sorted(wanted))
    require(found == wanted, f"{name}={template!r} must contain {names} and no other field")


@dataclass(frozen=True)
class FeedbackConfig:
    """How the verifier's feedback on a failed rollout enters the teacher's user turn.

    Attributes:
      template: The user turn where there is no demonstration, from `{prompt}` and `{feedback}`.
      with_solution: The user turn where there is one, from `{prompt}`, `{solution}` and `{feedback}`. None
        shows the demonstration only, as the released code does.
    """

    template: str
    with_solution: str | None = None

    def __post_init__(self) -> None:
        _check_template("template", self.template, {"prompt", "feedback"})
        if self.with_solution is not None:
            _check_template("with_solution", self.with_solution, {"prompt", "solution", "feedback"})


@dataclass(frozen=True)
class ContextConfig:
    """What the teacher sees besides the problem.

    Attributes:
      kind: `solution`: a correct response, thinking included (c = s). `answer`: the same with its thinking
        removed (c = s∖think). `partial`: the first words of that, the others blank. `partial_solution`: the
        first words of a correct response, and no more. `other_problem`: another problem with a correct
        response to it.
      fraction: Share of the words that a partial kind shows, rounded up; for partial kinds only.
      template: The user turn, from `{prompt}` and `{solution}`.
      example_template: What precedes the prompt for `other_problem`, from `{example}`, the other problem
        already in `template`, and `{prompt}`.
      feedback: How the verifier's feedback on failed rollouts is shown. None shows none.
      thinking: Whether the prompt asks for thinking.
    """

    kind: Kind
    fraction: float | None = None
    template: str = "{prompt}\nCorrect solution:\n\n{solution}\n\nCorrectly solve the original question."
    example_template: str = "{example}\n\n{prompt}"
    feedback: FeedbackConfig | None = None
    thinking: bool = True

    def __post_init__(self) -> None:
        kinds = get_args(Kind)
        require(self.kind in kinds, f"kind={self.kind!r} must be one of {', '.join(map(repr, kinds))}")
        require_together(self, "fraction", "kind", *PARTIAL)
        require_fraction(self, "fraction")
        _check_template("template", self.template, {"prompt", "solution"})
        _check_template("example_template", self.example_template, {"example", "prompt"})


@dataclass(frozen=True)
class TeacherConfig:
    """The teacher (SDPO, arXiv 2601.20802): the model itself with a context, under chosen weights.

    Attributes:
      context: What it sees besides the problem.
      max_prompt_length: Longest prompt with context, in tokens. Longer ones are cut on the right, as in the
        released code: counted, with a warning.
      weights: `fixed`: the initial ones. `ema`: moving towards the student once a step. `live`: the student's
        own at each update. `trust_region`: logits of the initial weights mixed with the student's.
      ema_rate: Share of the student taken over each step; for `ema` only.
      mix: Share of the student's logits; for `trust_region` only.
      dtype: Type of the teacher's copy of the weights.
      memory: Where the copy is between steps: with the student, or in the host's pinned memory.
    """

    context: ContextConfig
    max_prompt_length: int
    weights: Literal["fixed", "ema", "live", "trust_region"] = "fixed"
    ema_rate: float | None = None
    mix: float | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    memory: Literal["device", "pinned_host"] = "device"

    def __post_init__(self) -> None:
        require_positive(self, "max_prompt_length")
        require_together(self, "ema_rate", "weights", "ema")
        require_together(self, "mix", "weights", "trust_region")
        require_fraction(self, "ema_rate", "mix")
        if self.weights == "ema" and self.dtype != "float32":
            raise ConfigError(
                "dtype='bfloat16' would round the small steps of weights='ema' away; use float32"
            )
        if self.weights == "live" and (self.dtype, self.memory) != ("float32", "device"):
            raise ConfigError("weights='live' keeps no copy; leave dtype and memory alone")


# ── Losses ───────────────────────────────────────────────────────────────────────────────────────

Aggregation = Literal["seq_mean_token_mean", "token_mean", "seq_mean_token_sum"]


@dataclass(frozen=True)
class ForkAware:
    """Fork-aware weights (DASD, arXiv 2605.22263); see `fixes.fork_weights`.

    Attributes:
      threshold: Entropy of the student, in nats, above which a token is a fork.
      repulsion: Weight β of forks, away from the teacher, relative to other tokens.
    """

    threshold: float
    repulsion: float

    def __post_init__(self) -> None:
        require_positive(self, "threshold")
        require(self.repulsion >= 0, f"repulsion={self.repulsion} must be 0 or more; it is subtracted")


@dataclass(frozen=True)
class SDPOLossConfig:
    """The loss of SDPO (arXiv 2601.20802, defaults as released).

    Attributes:
      divergence: Between teacher and student at each response token.
      importance_cap: Largest importance weight S/S_old of a token, S_old being the student that sampled it.
        None disables the weights.
      rollout_correction_cap: Largest weight S_old/S_rollout of a token, S_rollout being the distribution
        that top-k, top-p and min-p leave to the sampler. The weight is the probability that truncation keeps,
        so a cap of 1 or more caps nothing. None disables the weights.
      aggregation: From tokens to the objective. Rows without a teacher count as zero in `seq_mean_*`, and
        not at all in `token_mean`.
      masked_words: Words whose tokens get no loss; see `fixes.without_words`.
      pass_rate_weight: Weigh problems by their pass rate; see `fixes.pass_rate_weights`.
      fork_aware: Move away from the teacher where the student is uncertain; see `fixes.fork_weights`.
    """

    divergence: DivergenceConfig = field(default_factory=DivergenceConfig)
    importance_cap: float | None = 2.0
    rollout_correction_cap: float | None = None
    aggregation: Aggregation = "seq_mean_token_mean"
    masked_words: tuple[str, ...] = ()
    pass_rate_weight: bool = False
    fork_aware: ForkAware | None = None

    def __post_init__(self) -> None:
        require_positive(self, "importance_cap", "rollout_correction_cap")
        require(all(self.masked_words), f"masked_words={self.masked_words}: a word must not be empty")


def _check_scoring_teacher(teacher: TeacherConfig) -> None:
    if teacher.weights == "trust_region":
        raise ConfigError("teacher.weights='trust_region' is for SDPO; use 'live', 'fixed' or 'ema'")


@dataclass(frozen=True)
class ContrastiveHints:
    """Contrastive hints (RLCSD, arXiv 2606.11709, constants as published).

    Attributes:
      teacher: Scores rollouts under hints. Its context shows a sibling's `solution` or `answer`.
      hints: Largest number K of wrong hints of a rollout.
      temperature: Temperature τ of the evidence, in nats.
      scale: Largest change βλ of a token's advantage, with β = 1.
      threshold: Changes δ below this are left out.
    """

    teacher: TeacherConfig
    hints: int = 4
    temperature: float = 0.02
    scale: float = 0.5
    threshold: float = 0.02

    def __post_init__(self) -> None:
        _check_scoring_teacher(self.teacher)
        kind, threshold, scale = self.teacher.context.kind, self.threshold, self.scale
        if kind not in ("solution", "answer"):
            raise ConfigError(
                f"teacher.context.kind={kind!r} cannot be right or wrong; use 'solution' or 'answer'"
            )
        require_positive(self, "hints", "temperature", "scale")
        if not 0 <= threshold < scale:
            raise ConfigError(
                f"threshold={threshold} must be 0 or more and below scale={scale}, the largest change"
            )


@dataclass(frozen=True)
class AntiSelfDistillation:
    """Anti-self-distillation (arXiv 2605.11609). Only `gate` is published; scale and warm-up are ours.

    Attributes:
      teacher: Scores rollouts under its context.
      scale: Weight λ of the term.
      gate: The term is switched off while the teacher's entropy is below this share of its warm-up mean.
      warmup: Steps with a teacher that the warm-up mean is over.
    """

    teacher: TeacherConfig
    scale: float = 0.5
    gate: float = 0.93
    warmup: int = 10

    def __post_init__(self) -> None:
        _check_scoring_teacher(self.teacher)
        require_positive(self, "scale", "gate", "warmup")


@dataclass(frozen=True)
class GRPOLossConfig:
    """The loss of GRPO, defaults as in the paper's comparison runs; see also `GRPO_PRESETS`.

    Attributes:
      clip_low: The importance ratio is clipped to [1 - clip_low, 1 + clip_high].
      clip_high: See `clip_low`.
      divide_by_std: Divide advantages by the group's standard deviation.
      aggregation: From tokens to the objective.
      kl_coefficient: Weight of the k3 estimate of KL(π‖π₀), π₀ being the initial weights. None for no such
        term.
      contrastive_hints: Token-level advantages from right and wrong hints; see `fixes`.
      anti_self_distillation: Token-level advantages away from a teacher; see `fixes`.
    """

    clip_low: float = 0.2
    clip_high: float = 0.28
    divide_by_std: bool = False
    aggregation: Aggregation = "seq_mean_token_mean"
    kl_coefficient: float | None = None
    contrastive_hints: ContrastiveHints | None = None
    anti_self_distillation: AntiSelfDistillation | None = None

    def __post_init__(self) -> None:
        require_positive(self, "kl_coefficient")
        if self.contrastive_hints and self.anti_self_distillation:
            raise ConfigError(
                "contrastive_hints and anti_self_distillation each need the one teacher; remove one of them"
            )


GRPO_PRESETS: Mapping[str, GRPOLossConfig] = {
    "dr_grpo": GRPOLossConfig(clip_high=0.2, aggregation="seq_mean_token_sum"),
    "dapo": GRPOLossConfig(divide_by_std=True, aggregation="token_mean"),
}
"""Named losses, as `configs/signs/grpo.py:NAME` takes them.

- `dr_grpo` (arXiv 2503.20783): neither the group's standard deviation nor the response's length divides.
- `dapo` (arXiv 2503.14476): its clip-higher, 0.2 and 0.28, and its mean over tokens. Dynamic sampling and
  overlong shaping are not included.
"""

# ── Optimizer ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW.

    Attributes:
      learning_rate: Peak rate, reached after warm-up.
      warmup_steps: Updates of linear warm-up from zero.
      schedule: What follows: `constant`, or `cosine` to a hundredth of the peak at `decay_steps`.
      decay_steps: Update at which the cosine ends; for `cosine` only.
      b1: Decay of the mean of gradients.
      b2: Decay of the mean of squared gradients.
      weight_decay: Decoupled decay, of matrices only.
      clip_norm: Global gradient norm above which gradients are scaled down.
      first_moment: Type of the mean of gradients. The mean of squared gradients has the parameters' type:
        with b2 = 0.999, bfloat16 would round its steps away.
    """

    learning_rate: float
    warmup_steps: int = 10
    schedule: Literal["constant", "cosine"] = "constant"
    decay_steps: int | None = None
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    first_moment: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        require_positive(self, "learning_rate", "clip_norm")
        require_together(self, "decay_steps", "schedule", "cosine")
        warmup, end = self.warmup_steps, self.decay_steps
        require(warmup >= 0, f"warmup_steps={warmup} must be 0 or more")
        require(end is None or end > warmup, f"decay_steps={end} must exceed warmup_steps={warmup}")


# ── Runs ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What every training run has.

    Attributes:
      seed: Of initial weights, order of data and sampling.
      steps: Batches to train on. A batch of examples is one update; a batch of rollouts is one or several
        (`rollouts.mini_batch_size`). The optimizer's schedule counts updates.
      optimizer: AdamW and its schedule.
      init_from: Initial weights: a model folder, a Hugging Face name, or `signs_base` (shipped). None draws
        them.
      model: Shape of the model to draw weights for; where `init_from` is None.
      tokenizer: Folder or name with tokenizer and chat template. None takes those of `init_from`, and without
        it the puzzle's.
      param_dtype: Type of parameters, gradients and Adam's mean of squared gradients.
      compute: How the model is computed: activations' type, attention, rematerialisation.
      evaluation: When and on what to evaluate. None for never.
      checkpoint_every: Steps between checkpoints. The last step always has one.
      micro_batch_size: Rows whose gradient is computed at a time. None takes all rows of an update. It
        changes memory and padding, not the objective.
      logits_chunk_size: Response positions of a row whose logits exist at the same time.
      mesh: Sizes of the device mesh. None chooses one over all devices that fits the model.
      data_dir: Where data sets are prepared. None for the TFDS default.
      profile_steps: First and last step that JAX's profiler records into `profile/`. None for none.
    """

    seed: int
    steps: int
    optimizer: OptimizerConfig
    init_from: str | None
    model: ModelConfig | None = None
    tokenizer: str | None = None
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    evaluation: EvaluationConfig | None = None
    checkpoint_every: int = 20
    micro_batch_size: int | None = None
    logits_chunk_size: int = 512
    mesh: MeshConfig | None = None
    data_dir: str | None = None
    profile_steps: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        require_positive(self, "steps", "checkpoint_every", "logits_chunk_size")
        profiled = self.profile_steps
        if profiled is not None and not (len(profiled) == 2 and 0 < profiled[0] <= profiled[1] <= self.steps):
            raise ConfigError(
                f"profile_steps={profiled} must be a first and a last step, 1 to steps={self.steps}"
            )
        if (self.model is None) == (self.init_from is None):
            raise ConfigError("model is needed where init_from is None, and has no effect otherwise")
        if self.model and self.model.compute != ComputeConfig():
            raise ConfigError("model.compute has no effect; the run's own compute says how it is computed")
        # Rows of an update are cut into micro-batches, and these over devices.
        (name, rows), micro = self.update_rows, self.micro_batch_size
        shards = 1 if self.mesh is None else self.mesh.data * self.mesh.fsdp
        require(rows % shards == 0, f"{name} = {rows} rows must divide over {shards} devices")
        if micro is not None and (micro < 1 or rows % micro or micro % shards):
            raise ConfigError(
                f"micro_batch_size={micro} must divide {name} = {rows}, and itself over {shards} devices"
            )

    @property
    def update_rows(self) -> tuple[str, int]:
        """The settings that decide on `update_size`, and their product."""
        raise NotImplementedError

    @property
    def update_size(self) -> int:
        """Rows of one update."""
        return self.update_rows[1]


@dataclass(frozen=True, kw_only=True)
class SFTConfig(TrainConfig):
    """Pretraining and SFT: cross-entropy on examples.

    Attributes:
      objective: `pretrain` or `sft`; they differ in name only.
      examples: What is trained on.
    """

    objective: Literal["pretrain", "sft"]
    examples: ExamplesConfig

    @property
    def teacher(self) -> TeacherConfig | None:
        """None: examples need no teacher."""
        return None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.evaluation and "trained" in self.evaluation.datasets:
            raise ConfigError("evaluation.datasets: 'trained' needs training problems, as grpo and sdpo have")

    @property
    def update_rows(self) -> tuple[str, int]:
        """See `TrainConfig`."""
        return "examples.batch_size", self.examples.batch_size


@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig(TrainConfig):
    """What GRPO and SDPO share.

    Attributes:
      rollouts: What is sampled and trained on.
      attribution: Keep, for each token of the rollouts, where the training signal falls: its divergence, its
        share of the gradient, and the student's entropy (see `attribution`).
    """

    rollouts: RolloutsConfig
    attribution: bool = False

    @property
    def update_rows(self) -> tuple[str, int]:
        """See `TrainConfig`."""
        problems = "num_prompts" if self.rollouts.mini_batch_size is None else "mini_batch_size"
        rows = getattr(self.rollouts, problems) * self.rollouts.num_samples
        return f"rollouts.{problems} × num_samples", rows


@dataclass(frozen=True, kw_only=True)
class SDPOConfig(OnPolicyConfig):
    """Self-distillation policy optimisation (arXiv 2601.20802).

    Attributes:
      objective: `sdpo`.
      teacher: What it sees, and whose weights it has.
      loss: How the student is compared with it.
    """

    objective: Literal["sdpo"]
    teacher: TeacherConfig
    loss: SDPOLossConfig = field(default_factory=SDPOLossConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        sampling = self.rollouts.sampling
        truncated = sampling.top_k is not None or sampling.top_p < 1 or sampling.min_p > 0
        if self.loss.rollout_correction_cap is not None and not truncated:
            raise ConfigError(
                "loss.rollout_correction_cap has no effect where rollouts.sampling sets neither top_k nor "
                "top_p nor min_p; remove it"
            )


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(OnPolicyConfig):
    """Group-relative policy optimisation.

    Attributes:
      objective: `grpo`.
      loss: The clipped policy gradient, and the fixes put on it.
    """

    objective: Literal["grpo"]
    loss: GRPOLossConfig = field(default_factory=GRPOLossConfig)

    @property
    def teacher(self) -> TeacherConfig | None:
        """The teacher of the fix, if there is one."""
        fix = self.loss.contrastive_hints or self.loss.anti_self_distillation
        return fix.teacher if fix else None


AnyTrainConfig = SFTConfig | GRPOConfig | SDPOConfig
"""The settings of a run, told apart by `objective`."""
