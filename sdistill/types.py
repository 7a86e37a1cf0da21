"""What is written to disk about responses and measurements, as values: one class and one JSON form each.

Schemas: docs/files.md.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Self

SCHEMA_VERSION = 2
"""Of the JSON forms below; kept in `environment.json` of a study."""

FinishReason = Literal["stop", "length", "error"]
"""Why a response ended: at a stop token or string, at its limit, or because logits were not finite."""


@dataclass(frozen=True)
class _Json:
    """JSON with one key a field; fields that are None are left out."""

    NESTED: ClassVar[Mapping[str, "type[_Json]"]] = {}
    """Fields that are such values themselves."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self, dict_factory=lambda items: {k: v for k, v in items if v is not None})

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The value that `to_json` made the object from."""
        nested = {name: kind.from_json(values[name]) for name, kind in cls.NESTED.items() if name in values}
        return cls(**{**values, **nested})


@dataclass(frozen=True)
class TokenAttribution(_Json):
    """Where the training signal falls in a response: one entry a token in each list.

    Attributes:
      tokens: Text of each token.
      signal: Norm of the objective's gradient in the final hidden state that predicts the token.
      entropy: Of the student's next-token distribution, in nats.
      divergence: Between teacher and student, in nats; None where the rollout has no teacher.
    """

    tokens: list[str]
    signal: list[float]
    entropy: list[float]
    divergence: list[float] | None = None


@dataclass(frozen=True)
class Response(_Json):
    """One sampled response with its verdict.

    Attributes:
      problem: Id of the problem.
      sample: Which response to the problem it is; with the problem's id it names the random stream.
      prompt: The prompt, decoded.
      text: The response, decoded.
      correct: Whether the verifier accepts it; a response that did not finish is never correct.
      finish: Why it ended.
      length: In tokens, the stop token included.
      num_epistemic: Epistemic words (`analysis.epistemic`), counted as whole words.
      num_epistemic_substrings: The same, counted as substrings, as the paper's released code does.
      answer: The answer that the verifier found in it.
      feedback: The verifier's comment; "" if there is none.
      timed_out: Whether verification ran out of time.
      step: Training step that it was sampled in, from 1; rollouts only.
      context: The user turn of the teacher, or of the guided prompt.
      bits: log2 p(y|x,c) - log2 p(y|x), where richness was measured.
      attribution: Where the training signal falls; rollouts of runs with `attribution` only.
    """

    NESTED = {"attribution": TokenAttribution}

    problem: str
    sample: int
    prompt: str
    text: str
    correct: bool
    finish: FinishReason
    length: int
    num_epistemic: int
    num_epistemic_substrings: int
    answer: str | None = None
    feedback: str = ""
    timed_out: bool = False
    step: int | None = None
    context: str | None = None
    bits: float | None = None
    attribution: TokenAttribution | None = None


def group_by_problem(responses: Iterable[Response]) -> dict[str, list[Response]]:
    """Problem → the responses to it, both in their order."""
    groups: dict[str, list[Response]] = {}
    for response in responses:
        groups.setdefault(response.problem, []).append(response)
    return groups


@dataclass(frozen=True)
class Condition(_Json):
    """What a measurement is of: a model, and what was done to it while it responded.

    Attributes:
      method: How the model was trained: `base`, `sft`, `grpo` or `sdpo`.
      context: What its teacher saw (`sdpo`), or what its training responses were sampled under (`sft`);
        a kind of `contexts.Kind`, or `none`.
      teacher: Whose weights the teacher had: `fixed` or `ema`.
      num_problems: Distinct training problems |D|; None for the whole split.
      fix: The published fix, or the control, that the method was trained with.
      prompt: What the model was shown besides the problem while it responded: a kind of `contexts.Kind`,
        `regenerated`, or `none` where that is one of several prompts compared.
      fraction: Share of it that was shown, for partial kinds.
      intervention: What a causal probe did to the response.
      attempts: How often it did so.
    """

    method: str
    context: str | None = None
    teacher: str | None = None
    num_problems: int | None = None
    fix: str | None = None
    prompt: str | None = None
    fraction: float | None = None
    intervention: str | None = None
    attempts: int | None = None

    @property
    def label(self) -> str:
        """A name for directories and file names. Never parsed."""
        share = None if self.fraction is None else round(100 * self.fraction)
        model = [self.method, self.context, self.teacher, self.num_problems, self.fix]
        response = [self.prompt, share, self.intervention, self.attempts]
        parts = ("_".join(str(x) for x in part if x is not None) for part in (model, response))
        return "-".join(part for part in parts if part)


Seed = int | Literal["all", "any"]


@dataclass(frozen=True)
class Measurement(_Json):
    """One line of `results.jsonl`.

    Attributes:
      section: Of the study.
      condition: What was measured.
      seed: Of the run. `all`: pooled over seeds, with an interval over problems within these seeds. `any`: a
        paired difference with an interval over problems and seeds.
      step: Training steps made.
      dataset: Problems responded to, or `train` for training metrics.
      metric: What was measured.
      value: The figure; None where it is not defined.
      n: Responses behind it.
      ci_low: Lower end of the 95 % bootstrap interval; None where there is none.
      ci_high: Upper end.
      baseline: Makes it a paired difference, `condition` minus `baseline` on the same problems.
      group: Tokens or word that the metric is restricted to, such as `class:epistemic` or `wait`.
    """

    NESTED = {"condition": Condition, "baseline": Condition}

    section: str
    condition: Condition
    seed: Seed
    step: int
    dataset: str
    metric: str
    value: float | None = None
    n: int | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    baseline: Condition | None = None
    group: str | None = None
