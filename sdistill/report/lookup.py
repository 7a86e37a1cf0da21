"""The measurements of a run, found by what they are of; and how conditions are named and ordered."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sdistill.analysis.attribution import ATTRIBUTION
from sdistill.analysis.measure import BASE
from sdistill.analysis.probes import PROBES, Arm
from sdistill.analysis.statistics import minimum_detectable
from sdistill.types import Condition, Measurement, Seed

FIXES = "fixes"
PAPER = {
    "richness": "Context richness (paper section 3)",
    "sft": "Off-policy self-distillation (paper section 4)",
    "on_policy": "On-policy self-distillation (paper section 5)",
    "trained_richness": "Context richness of trained models (section 3 after section 5)",
    "coverage": "Task coverage (paper section 6)",
}
"""The paper's sections and their headings."""
HEADINGS = PAPER | {
    FIXES: "Which fix keeps reasoning?",
    PROBES: "Causal probes",
    ATTRIBUTION: "Where the signal falls",
}
"""All sections, in the order of a report."""
UNITS = {
    "accuracy": "accuracy",
    "length": "length in tokens",
    "num_epistemic": "epistemic words per response",
}

GRPO, SDPO = Condition("grpo"), Condition("sdpo")
SFT = [Condition("sft", context) for context in ("none", "answer", "solution")]
ANSWER, ANSWER_EMA, SOLUTION, SOLUTION_EMA = (
    Condition("sdpo", context, teacher) for context in ("answer", "solution") for teacher in ("fixed", "ema")
)
ON_POLICY = (GRPO, ANSWER, ANSWER_EMA, SOLUTION, SOLUTION_EMA)
"""The trained models of section 5."""
METHODS = {"base": "base", "sft": "SFT", "grpo": "GRPO", "sdpo": "SDPO"}
CONTEXTS = {"none": "none", "answer": "s∖think", "solution": "s"}
PROMPTS = {
    "none": "no context (∅)",
    "other_problem": "another problem's solution",
    "partial": "the answer",
    "partial_solution": "the worked solution",
    "answer": "answer only (s∖think)",
    "regenerated": "regenerated (ỹ)",
    "solution": "full solution (s)",
}
EXPECTED = {
    "richness": [Condition("base", prompt=prompt) for prompt in PROMPTS if not prompt.startswith("partial")],
    "sft": [BASE, *SFT],
    "on_policy": [BASE, *ON_POLICY],
    "coverage": [BASE],
    FIXES: [BASE, GRPO, SDPO],
}
"""Section → conditions whose absence a report points out."""
FIX_NAMES = {
    "pointwise_clip": "pointwise clip",
    "marker_mask": "marker mask",
    "pass_rate": "pass-rate weight",
    "fork_aware": "fork-aware",
    "other_problem": "other problem",
    "partial": "partial context",
    "contrastive_hints": "contrastive hints",
    "anti_self_distillation": "anti-self-distillation",
    "mask_words": "no loss at epistemic words",
    "mask_others": "no loss at other words",
}
INTERVENTIONS = {
    "plain": "no intervention",
    "forbid_words": "epistemic words forbidden",
    "forbid_neutral": "other words forbidden",
    "forbid_half": "every second epistemic word forbidden",
    "doubt_cue": "epistemic word after the first wrong attempt",
    "doubt_neutral": "other word after the first wrong attempt",
    "doubt_nothing": "resampled after the first wrong attempt",
    "extra_cue": "epistemic word instead of the end of thinking",
    "extra_neutral": "other word instead of the end of thinking",
    "extra_nothing": "end of thinking resampled",
    "repair_cue": "wrong answers: epistemic word instead of the end",
    "repair_neutral": "wrong answers: other word instead of the end",
    "repair_nothing": "wrong answers: end of thinking resampled",
    "shuffle_words": "epistemic words of the first half shuffled",
    "shuffle_neutral": "other words of the first half shuffled",
    "shuffle_nothing": "second half resampled",
}


def name(condition: Condition) -> str:
    """A condition in words. Of the base model under a prompt only the prompt is named."""
    model, response = model_name(condition), response_name(condition)
    if not response or (condition.method == "base" and condition.prompt):
        return response or model
    return f"{model}: {response}"


def model_name(c: Condition) -> str:
    """How the model was trained. Out: `SDPO c = s, EMA teacher`, `GRPO |D| = 64`."""
    found, context = METHODS.get(c.method, c.method), CONTEXTS.get(str(c.context), c.context)
    if c.method == "sft":
        found += " on unguided" if c.context == "none" else f" on guided ({context})"
    elif context:
        found += f" c = {context}"
    found += ", EMA teacher" if c.teacher == "ema" else ""
    found += f" |D| = {c.num_problems}" if c.num_problems is not None else ""
    return found + (f" + {FIX_NAMES.get(c.fix, c.fix)}" if c.fix else "")


def response_name(c: Condition) -> str:
    """What was done while the model responded; empty if nothing was."""
    prompt = PROMPTS.get(c.prompt, c.prompt) if c.prompt else ""
    if c.fraction is not None:
        prompt = f"{100 * c.fraction:.0f} % of {prompt}"
    intervention = INTERVENTIONS.get(c.intervention, c.intervention) if c.intervention else ""
    return ", ".join(filter(None, (prompt, intervention, f"{c.attempts} ×" if c.attempts else "")))


def arm_name(arm: Arm) -> str:
    """An arm of a probe in words. Out: `epistemic words forbidden`, `no loss at other words`."""
    return FIX_NAMES.get(arm.fix, arm.fix) if arm.fix else response_name(arm.of(BASE))


def rank(c: Condition) -> tuple[Any, ...]:
    """A key that sorts conditions: known values in the paper's order, then by |D|, share and attempts."""

    def place(known: Collection[str], value: str | None) -> tuple[int, str]:
        return ([None, *known].index(value), "") if value in (None, *known) else (len(known) + 1, str(value))

    return (
        *(place(METHODS, c.method), place(CONTEXTS, c.context), c.teacher == "ema"),
        *(math.inf if c.num_problems is None else c.num_problems, place(FIX_NAMES, c.fix)),
        *(place(PROMPTS, c.prompt), c.fraction or 0.0, place(INTERVENTIONS, c.intervention), c.attempts or 0),
    )


@dataclass(frozen=True)
class Point:
    """A value measured after `step` training steps, with its 95 % interval, if any, over `n` responses."""

    step: int
    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None

    @property
    def side(self) -> Literal["above", "below", "level"] | None:
        """Where the interval of a difference lies: wholly above or below zero, or around it."""
        if self.low is None or self.high is None:
            return None
        return "above" if self.low > 0 else "below" if self.high < 0 else "level"

    @property
    def detectable(self) -> float | None:
        """The smallest true difference that would probably have been found; None without an interval."""
        return None if self.low is None or self.high is None else minimum_detectable(self.low, self.high)


class Index:
    """The measurements of a run, indexed by everything but the step.

    Attributes:
      sections: Section → its measurements.
      seeds: The seeds that were run.
    """

    def __init__(self, measurements: Sequence[Measurement]):
        """Indexes them; of several for one step the last one counts."""
        self.sections: dict[str, list[Measurement]] = {}
        self.seeds = seeds(measurements)
        self._curves: dict[tuple[Any, ...], dict[int, Measurement]] = {}
        for m in measurements:
            self.sections.setdefault(m.section, []).append(m)
            key = (m.section, m.condition, m.dataset, m.metric, m.seed, m.baseline, m.group)
            self._curves.setdefault(key, {})[m.step] = m

    def curve(
        self,
        section: str,
        condition: Condition,
        dataset: str,
        metric: str,
        *,
        seed: Seed = "all",
        baseline: Condition | None = None,
        group: str | None = None,
    ) -> list[Point]:
        """The measurements that have a value, by step."""
        found = self._curves.get((section, condition, dataset, metric, seed, baseline, group), {})
        return [
            Point(step, m.value, m.ci_low, m.ci_high, m.n)
            for step, m in sorted(found.items())
            if m.value is not None
        ]

    def last(
        self, section: str, condition: Condition, dataset: str, metric: str, **others: Any
    ) -> Point | None:
        """The last point of `curve`; None if it has none."""
        return next(reversed(self.curve(section, condition, dataset, metric, **others)), None)

    def difference(
        self, section: str, condition: Condition, dataset: str, metric: str, baseline: Condition
    ) -> Point | None:
        """The last paired difference, with the interval over problems and seeds if there is one."""
        of = (section, condition, dataset, metric)
        return self.last(*of, seed="any", baseline=baseline) or self.last(*of, baseline=baseline)

    def conditions(self, section: str) -> list[Condition]:
        """The conditions of a section, in the paper's order."""
        return sorted({m.condition for m in self.sections.get(section, ())}, key=rank)

    def coverage_runs(self, method: str) -> list[Condition]:
        """The runs of a method in the coverage section, from few training problems to all."""
        return [c for c in self.conditions("coverage") if c.method == method]


def seeds(measurements: Sequence[Measurement]) -> list[int]:
    """The single seeds that were measured."""
    return sorted({m.seed for m in measurements if isinstance(m.seed, int)})
