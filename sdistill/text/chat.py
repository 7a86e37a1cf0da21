"""From conversations to prompts."""

from sdistill.tasks.problem import Problem

GENERATION_PROMPT = " <think>"
"""Opens the response, as the templates of the DeepSeek distills do; the response closes it."""


def render(problem: Problem, content: str | None = None) -> str:
    """The prompt that poses a problem, with its last user turn replaced by `content` if given.

    The signs puzzle has no roles: its prompt is the user's turn.
    """
    return (problem.messages[-1]["content"] if content is None else content) + GENERATION_PROMPT
