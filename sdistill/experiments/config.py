"""The settings of the study."""

from dataclasses import dataclass

from sdistill.config import require
from sdistill.distill.contexts import Kind
from sdistill.training.config import TrainConfig


@dataclass(frozen=True)
class RichnessConfig:
    """Section 3. The protocol is the paper's; the contexts are more than the paper's.

    Attributes:
      splits: Walked in turns, a problem of each after the other.
      problems: Problems to keep.
      walk_samples: Responses a problem on the walk.
      min_correct: A problem is kept if at least so many of them are right…
      max_correct: …and at most so many.
      samples: Fresh responses a kept problem and context.
      partial_fraction: Share of the answer that the `partial` context reveals.
    """

    splits: tuple[str, ...]
    problems: int
    walk_samples: int
    min_correct: int
    max_correct: int
    samples: int
    partial_fraction: float


@dataclass(frozen=True)
class SFTStudyConfig:
    """Section 4.

    Attributes:
      split: Problems to sample training responses from.
      responses: Size of each training set.
      per_problem: Responses of one problem in a training set, at most.
      samples: Responses sampled a problem, of which the correct ones can be used.
      train: The SFT runs; `examples.source` and the seed are filled in.
    """

    split: str
    responses: int
    per_problem: int
    samples: int
    train: TrainConfig


@dataclass(frozen=True)
class TeacherContext:
    """A context that section 5 runs SDPO under.

    Attributes:
      kind: `solution` (c = s) or `answer` (c = s∖think).
      max_teacher_prompt: Tokens of the teacher's prompt, at most.
    """

    kind: Kind
    max_teacher_prompt: int


@dataclass(frozen=True)
class StudyConfig:
    """The study.

    Attributes:
      seeds: Of sections 4 and 5; section 3 uses the first.
      coverage_seeds: Of section 6; among `seeds`.
      max_prompt: Tokens of a prompt with any context, at most.
      richness: Section 3.
      sft: Section 4.
      grpo: The GRPO runs of sections 5 and 6; |D| and the seed are filled in.
      sdpo: The SDPO runs; also context and teacher weights are.
      contexts: Of section 5; section 6 takes the last.
      ema_rate: Of the EMA teacher.
      coverage: |D| of section 6, besides the whole split, which section 5 has run.
    """

    seeds: tuple[int, ...]
    coverage_seeds: tuple[int, ...]
    max_prompt: int
    richness: RichnessConfig
    sft: SFTStudyConfig
    grpo: TrainConfig
    sdpo: TrainConfig
    contexts: tuple[TeacherContext, ...]
    ema_rate: float
    coverage: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("seeds", "coverage_seeds", "contexts", "coverage"):
            require(len(getattr(self, name)) > 0, f"{name}=() must not be empty")
        require(
            set(self.coverage_seeds) <= set(self.seeds),
            f"coverage_seeds={self.coverage_seeds} must be among seeds={self.seeds}: they share runs",
        )
        require(self.grpo.evaluation is not None, "grpo.evaluation is missing")
        require(
            self.grpo.evaluation == self.sdpo.evaluation, "grpo.evaluation and sdpo.evaluation must be equal"
        )
        require(self.sft.train.evaluation is not None, "sft.train.evaluation is missing")
