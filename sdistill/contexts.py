"""What the teacher is shown besides the problem, as text."""

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sdistill.settings import require
from sdistill.tasks.problem import Problem, strip_thinking

Kind = Literal["solution", "answer", "partial", "partial_solution", "other_problem"]
DIALS: tuple[Kind, ...] = ("partial", "partial_solution")
"""Kinds that show a share of what another kind shows."""

NOBODY = -1  # the index of no rollout of a group
BLANK = "_"  # stands for a word of the solution that is not revealed


@dataclass(frozen=True)
class FeedbackConfig:
    """How a rollout that failed is shown what its verifier says of it.

    Attributes:
      template: The teacher's user turn where there is no demonstration, from `{prompt}` and `{feedback}`.
      with_solution: The user turn where there is one, from `{prompt}`, `{solution}` and `{feedback}`; None to
        show the demonstration only, as in the released code.
    """

    template: str
    with_solution: str | None = None

    def __post_init__(self) -> None:
        _check_template("template", self.template, {"prompt", "feedback"})
        if self.with_solution is not None:
            _check_template("with_solution", self.with_solution, {"prompt", "solution", "feedback"})


@dataclass(frozen=True)
class ContextConfig:
    """The teacher's context.

    Attributes:
      kind: `solution`: a correct response, thinking included (c = s). `answer`: the same with its
        thinking removed (c = s∖think). `partial`: the first words of that, the others blank.
        `partial_solution`: the first words of a correct response, and no more.
        `other_problem`: another problem with a correct response to it.
      fraction: Share of the words that a kind of `DIALS` reveals, rounded up; for no other kind.
      template: The teacher's user turn, from `{prompt}` and `{solution}`.
      example_template: What comes before the prompt for `other_problem`, from `{example}`, the other
        problem already in `template`, and `{prompt}`.
      feedback: What a rollout that failed is shown besides; None for nothing.
      thinking: Whether the teacher's prompt asks it to think.
    """

    kind: Kind
    fraction: float | None = None
    template: str = "{prompt} solution {solution}"
    example_template: str = "{example} ; {prompt}"
    feedback: FeedbackConfig | None = None
    thinking: bool = True

    def __post_init__(self) -> None:
        require(
            (self.kind in DIALS) == (self.fraction is not None),
            f"fraction={self.fraction} goes with kind={' or '.join(map(repr, DIALS))} and only with these",
        )
        require(self.fraction is None or 0 <= self.fraction <= 1, f"fraction={self.fraction} must be 0 to 1")
        _check_template("template", self.template, {"prompt", "solution"})
        _check_template("example_template", self.example_template, {"example", "prompt"})


def _check_template(name: str, template: str, wanted: set[str]) -> None:
    found = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    names = " and ".join(f"{{{field}}}" for field in sorted(wanted))
    require(found == wanted, f"{name}={template!r} must contain {names} and no other field")


def first_other_success(correct: Sequence[bool], own: int) -> int | None:
    """Index of the group's first success that is not one's own; None if there is none.

    In: [False, True, True]. Out: 1 for own = 0, 2 for own = 1, 1 for own = 2. A lone success has no
    teacher, as in the released code.
    """
    return next((i for i, success in enumerate(correct) if success and i != own), None)


def demonstration(config: ContextConfig, response: str) -> str:
    """The part of a correct response that the teacher is shown."""
    if config.kind in ("solution", "other_problem"):
        return response
    if config.kind == "answer":
        return strip_thinking(response)
    assert config.fraction is not None  # ContextConfig has checked
    words = (strip_thinking(response) if config.kind == "partial" else response).split()
    shown = math.ceil(config.fraction * len(words))
    blanks = [BLANK] * (len(words) - shown) if config.kind == "partial" else []
    return " ".join(words[:shown] + blanks)


def guided_content(
    config: ContextConfig, problem: Problem, response: str, source: Problem | None = None, feedback: str = ""
) -> str:
    """The teacher's user turn: the problem with a correct response to it (or to `source`).

    Args:
      config: What is shown, and how.
      problem: What is asked.
      response: The correct response.
      source: The problem it answers, for `other_problem`.
      feedback: What the verifier says of the rollout that is to be scored; shown if `config` wants both.
    """
    shown = demonstration(config, response)
    prompt = problem.messages[-1]["content"]
    if config.kind != "other_problem":
        both = config.feedback.with_solution if config.feedback and feedback else None
        return (both or config.template).format(prompt=prompt, solution=shown, feedback=feedback)
    require(source is not None and source.id != problem.id, "kind='other_problem' needs another problem")
    assert source is not None
    example = config.template.format(prompt=source.messages[-1]["content"], solution=shown)
    return config.example_template.format(example=example, prompt=prompt)


def sibling_contents(
    config: ContextConfig,
    problems: Sequence[Problem],
    responses: Sequence[Sequence[str]],
    correct: Sequence[Sequence[bool]],
    feedback: Sequence[Sequence[str]],
) -> list[list[str | None]]:
    """The teacher's user turn for every rollout of a batch, None where it has no teacher.

    Args:
      config: The kind of context.
      problems: One a group.
      responses: Texts, groups × samples.
      correct: Verdicts on them.
      feedback: What the verdicts say; only that of a failure is shown, and to nobody else.
    """
    contents: list[list[str | None]] = []
    for group, problem in enumerate(problems):
        row: list[str | None] = []
        for rollout in range(len(responses[group])):
            source: int | None = group
            own = rollout
            if config.kind == "other_problem":
                source, own = _next_solved(problems, correct, group), NOBODY
            shown = None if source is None else first_other_success(correct[source], own)
            said = "" if correct[group][rollout] else feedback[group][rollout]
            if source is not None and shown is not None:
                row.append(guided_content(config, problem, responses[source][shown], problems[source], said))
            elif config.feedback is not None and said:
                prompt = problem.messages[-1]["content"]
                row.append(config.feedback.template.format(prompt=prompt, feedback=said))
            else:
                row.append(None)
        contents.append(row)
    return contents


def contrastive_contents(
    config: ContextConfig,
    problems: Sequence[Problem],
    responses: Sequence[Sequence[str]],
    correct: Sequence[Sequence[bool]],
    hints: int,
) -> list[list[list[str | None]]]:
    """The teacher's user turns for every rollout: with the correct hint, and with `hints` wrong ones.

    The correct hint is the group's first success that is not one's own, the wrong ones are its failures
    other than one's own, in their order. None stands for a hint that is missing.

    Args:
      config: How a response is shown as a hint.
      problems: One a group.
      responses: Texts, groups × samples.
      correct: Verdicts on them.
      hints: Wrong ones of a rollout, at most.
    """
    contents = []
    for problem, texts, verdicts in zip(problems, responses, correct, strict=True):
        row = []
        for own in range(len(texts)):
            wrong = [i for i, success in enumerate(verdicts) if not success and i != own][:hints]
            shown = [first_other_success(verdicts, own), *wrong, *[None] * (hints - len(wrong))]
            row.append([None if i is None else guided_content(config, problem, texts[i]) for i in shown])
        contents.append(row)
    return contents


def _next_solved(problems: Sequence[Problem], correct: Sequence[Sequence[bool]], group: int) -> int | None:
    """The next group, going round, that is about another problem and has a success."""
    for offset in range(1, len(problems)):
        other = (group + offset) % len(problems)
        if problems[other].id != problems[group].id and any(correct[other]):
            return other
    return None
