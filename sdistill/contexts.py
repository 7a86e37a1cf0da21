"""What the teacher sees besides the problem, as text."""

import math
from collections.abc import Sequence

from sdistill.config import ContextConfig
from sdistill.settings import ConfigError
from sdistill.tasks.problem import Problem, strip_thinking
from sdistill.types import Response

BLANK = "_"
"""Stands for a word of the solution that is not shown."""

Groups = Sequence[Sequence[Response]]
"""The responses of a step by problem."""


def demonstration(config: ContextConfig, response: str) -> str:
    """The part of a correct response that the teacher sees."""
    if config.kind in ("solution", "other_problem"):
        return response
    if config.fraction is None:  # `answer`
        return strip_thinking(response)
    words = (strip_thinking(response) if config.kind == "partial" else response).split()
    count = math.ceil(config.fraction * len(words))
    blanks = [BLANK] * (len(words) - count) if config.kind == "partial" else []
    return " ".join(words[:count] + blanks)


def teacher_turn(
    config: ContextConfig, problem: Problem, response: str, source: Problem | None = None, feedback: str = ""
) -> str:
    """The teacher's user turn: the problem, with a correct response to it or to `source`.

    Args:
      source: The problem it answers, for `other_problem`.
      feedback: The verifier's feedback on the rollout that is scored; shown if `config` has a template for
        both.
    """
    prompt, solution = problem.messages[-1]["content"], demonstration(config, response)
    if config.kind != "other_problem":
        both = config.feedback.with_solution if config.feedback and feedback else None
        return (both or config.template).format(prompt=prompt, solution=solution, feedback=feedback)
    if source is None or source.id == problem.id:
        raise ConfigError("kind='other_problem' needs another problem")
    example = config.template.format(prompt=source.messages[-1]["content"], solution=solution)
    return config.example_template.format(example=example, prompt=prompt)


def first_other_success(correct: Sequence[bool], own: int | None) -> int | None:
    """Index of a group's first success other than one's own; None if there is none.

    In: [False, True, True]. Out: 1 for own = 0, 2 for own = 1, 1 for own = 2. A lone success has no
    teacher, as in the released code.
    """
    return next((i for i, success in enumerate(correct) if success and i != own), None)


def teacher_turns(config: ContextConfig, problems: Sequence[Problem], groups: Groups) -> list[str | None]:
    """The teacher's user turn for every rollout, group after group; None where it has no teacher.

    A rollout sees the first success of its group that is not its own; for `other_problem`, that of the next
    group with a success. Without one it sees the verifier's feedback on itself, if that is configured.
    """
    other = config.kind == "other_problem"
    correct = [[response.correct for response in group] for group in groups]
    contents: list[str | None] = []
    for index, (problem, group) in enumerate(zip(problems, groups, strict=True)):
        source = _next_solved(problems, correct, index) if other else index
        for own, rollout in enumerate(group):
            feedback = "" if rollout.correct else rollout.feedback
            success = None
            if source is not None:
                success = first_other_success(correct[source], own if source == index else None)
            if source is not None and success is not None:
                text = groups[source][success].text
                contents.append(teacher_turn(config, problem, text, problems[source], feedback))
            elif config.feedback is not None and feedback:
                prompt = problem.messages[-1]["content"]
                contents.append(config.feedback.template.format(prompt=prompt, feedback=feedback))
            else:
                contents.append(None)
    return contents


def contrastive_turns(
    config: ContextConfig, problems: Sequence[Problem], groups: Groups, hints: int
) -> list[list[str | None]]:
    """For every rollout, the user turns with the correct hint and with `hints` wrong ones.

    The correct hint is the group's first success other than one's own. The wrong ones are its failures other
    than one's own, in their order. None stands for a missing hint.
    """
    contents = []
    for problem, group in zip(problems, groups, strict=True):
        correct = [response.correct for response in group]
        for own in range(len(group)):
            wrong = [i for i, success in enumerate(correct) if not success and i != own][:hints]
            chosen = [first_other_success(correct, own), *wrong, *[None] * (hints - len(wrong))]
            contents.append(
                [None if i is None else teacher_turn(config, problem, group[i].text) for i in chosen]
            )
    return contents


def _next_solved(problems: Sequence[Problem], correct: Sequence[Sequence[bool]], group: int) -> int | None:
    """The next group, cyclically, that is about another problem and has a success."""
    for offset in range(1, len(problems)):
        other = (group + offset) % len(problems)
        if problems[other].id != problems[group].id and any(correct[other]):
            return other
    return None
