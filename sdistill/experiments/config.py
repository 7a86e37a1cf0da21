"""The settings of the studies: of the paper's sections, of the fixes, and of the probes."""

from dataclasses import dataclass

from sdistill.analysis.epistemic import WORDS, count_words
from sdistill.config import EvaluationConfig, GRPOConfig, Kind, SDPOConfig, SFTConfig, TrainConfig
from sdistill.generate import WalkConfig
from sdistill.settings import ConfigError, require, require_positive
from sdistill.types import Condition

Runs = dict[Condition, GRPOConfig | SDPOConfig]


@dataclass(frozen=True)
class RichnessConfig:
    """Section 3. The protocol is the paper's; there are more contexts and models than in the paper.

    Attributes:
      splits: The walk takes a problem of each in turns.
      walk: Which problems it keeps.
      walk_samples: Responses per problem on the walk.
      num_samples: Fresh responses to a kept problem, under each context.
      answer_fractions: Shares of the answer that contexts show, besides all of it. 0 shows its form alone.
      solution_fractions: Shares of a worked solution that contexts show, besides all of it.
      models: Labels of conditions of section 5 that respond to the same problems under the same contexts,
        such as `sdpo_solution_fixed`.
    """

    splits: tuple[str, ...]
    walk: WalkConfig
    walk_samples: int
    num_samples: int
    answer_fractions: tuple[float, ...]
    solution_fractions: tuple[float, ...]
    models: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("answer_fractions", "solution_fractions"):
            require(
                all(0 <= fraction < 1 for fraction in getattr(self, name)),
                f"{name}={getattr(self, name)} must be 0 or more, and below 1: all of it is always measured",
            )


@dataclass(frozen=True)
class SFTStudyConfig:
    """Section 4.

    Attributes:
      split: Problems to sample training responses from.
      responses: Size of each training set.
      per_problem: Largest number of responses to one problem in a training set.
      num_samples: Responses sampled per problem. The correct ones can be used.
      train: The SFT runs. `examples.source` and the seed are filled in.
    """

    split: str
    responses: int
    per_problem: int
    num_samples: int
    train: SFTConfig


@dataclass(frozen=True)
class TeacherContext:
    """A context that section 5 runs SDPO under.

    Attributes:
      kind: `solution` (c = s) or `answer` (c = s∖think).
      max_prompt_length: Longest prompt of the teacher, in tokens.
    """

    kind: Kind
    max_prompt_length: int


@dataclass(frozen=True)
class RunsConfig:
    """What all studies share.

    Attributes:
      seeds: Seeds of every condition; they replace those of the runs.
      max_prompt_length: Longest prompt with any context, in tokens.
      grpo: The GRPO runs.
      sdpo: The SDPO runs.
    """

    seeds: tuple[int, ...]
    max_prompt_length: int
    grpo: GRPOConfig
    sdpo: SDPOConfig

    def __post_init__(self) -> None:
        require(len(self.seeds) > 0, "seeds=() must not be empty")
        require(self.evaluation == self.sdpo.evaluation, "grpo.evaluation and sdpo.evaluation must be equal")

    @property
    def evaluation(self) -> EvaluationConfig:
        """The evaluation of the runs."""
        return evaluation_of(self.grpo, "grpo")


@dataclass(frozen=True)
class StudyConfig(RunsConfig):
    """The study of the paper's sections 3 to 6.

    The sections fill in |D| of the runs, and context and weights of SDPO's teacher. Section 3 uses the first
    seed.

    Attributes:
      coverage_seeds: Seeds of section 6, among `seeds`.
      richness: Section 3.
      sft: Section 4.
      contexts: Contexts of section 5. Section 6 takes the last.
      ema_rate: Rate of the EMA teacher.
      coverage: |D| of section 6, besides the whole split, which section 5 has run.
    """

    coverage_seeds: tuple[int, ...]
    richness: RichnessConfig
    sft: SFTStudyConfig
    contexts: tuple[TeacherContext, ...]
    ema_rate: float
    coverage: tuple[int, ...]

    def conditions(self) -> dict[str, Condition]:
        """The runs of section 5, by label."""
        sdpo = [Condition("sdpo", c.kind, teacher) for c in self.contexts for teacher in ("fixed", "ema")]
        return {condition.label: condition for condition in (Condition("grpo"), *sdpo)}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("coverage_seeds", "contexts", "coverage"):
            require(len(getattr(self, name)) > 0, f"{name}=() must not be empty")
        require(
            set(self.coverage_seeds) <= set(self.seeds),
            f"coverage_seeds={self.coverage_seeds} must be among seeds={self.seeds}: they share runs",
        )
        evaluation_of(self.sft.train, "sft.train")
        known = self.conditions()
        require(
            set(self.richness.models) <= known.keys(),
            f"richness.models={self.richness.models} must be among the runs of section 5: {', '.join(known)}",
        )


@dataclass(frozen=True)
class FixRun:
    """SDPO or GRPO with one fix.

    Attributes:
      fix: Its name.
      train: The run.
    """

    fix: str
    train: GRPOConfig | SDPOConfig


@dataclass(frozen=True)
class FixesConfig(RunsConfig):
    """The study of the fixes: each on top of SDPO or GRPO, on the same data, for as many steps.

    Attributes:
      fixes: The runs besides those of plain GRPO and SDPO.
    """

    fixes: tuple[FixRun, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        runs = self.runs()
        labels = [condition.label for condition in runs]
        require(len(runs) == 2 + len(self.fixes), f"fixes: the conditions must differ, not {labels}")
        # Runs that differ in more than the objective would not compare objectives.
        for condition, run in runs.items():
            for name in ("init_from", "steps", "rollouts", "evaluation"):
                require(
                    getattr(run, name) == getattr(self.grpo, name),
                    f"fixes: {condition.label} has other {name} than grpo; make them equal",
                )

    def runs(self) -> Runs:
        """The runs, the plain ones first."""
        plain: Runs = {Condition("grpo"): self.grpo, Condition("sdpo"): self.sdpo}
        return plain | {Condition(f.train.objective, fix=f.fix): f.train for f in self.fixes}


@dataclass(frozen=True)
class ProbingConfig:
    """The problems of the probes, and the interventions.

    Attributes:
      split: Problems, harder than those trained on.
      num_problems: The first of the split. None takes all.
      num_samples: Responses per problem.
      max_response_length: Tokens after which a response is cut, with all that is forced on it.
      cue: The epistemic word that is put into responses.
      extra_attempts: Largest number of times that a response is kept from ending its thinking.
    """

    split: str
    num_problems: int | None
    num_samples: int
    max_response_length: int
    cue: str
    extra_attempts: int

    def __post_init__(self) -> None:
        require_positive(self, "num_problems", "num_samples", "max_response_length", "extra_attempts")
        require(count_words(self.cue) == 1, f"cue={self.cue!r} must be one of {', '.join(WORDS)}")


@dataclass(frozen=True)
class ProbesConfig(RunsConfig):
    """The study of the causal probes, on the base, on GRPO and on SDPO.

    Attributes:
      probes: The probes.
    """

    probes: ProbingConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not self.sdpo.loss.masked_words, "sdpo.loss.masked_words is filled in; leave it empty")


def evaluation_of(run: TrainConfig, name: str) -> EvaluationConfig:
    """The evaluation of a run, which studies cannot do without.

    Raises:
      ConfigError: if it has none.
    """
    if run.evaluation is None:
        raise ConfigError(f"{name}.evaluation is missing")
    return run.evaluation
