"""From conversations to prompts."""

import functools
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sdistill.settings import ConfigError, require
from sdistill.tasks.problem import THINK_END, THINK_START, Message, Problem
from sdistill.text.hugging_face import TOKENIZER_CONFIG_FILE, HuggingFaceTokenizer, read_json
from sdistill.text.tokenizer import Tokenizer

GENERATION_PROMPT = " <think>"
"""Opens the response to a signs puzzle, as the templates of the DeepSeek distills do."""

TEMPLATE_FILE = "chat_template.jinja"


def conversation(problem: Problem, content: str | None = None) -> tuple[Message, ...]:
    """The messages of a problem; the last turn, the user's, is replaced by `content` if given."""
    *earlier, last = problem.messages
    return problem.messages if content is None else (*earlier, {**last, "content": content})


class Chat(Protocol):
    """A model's tokenizer and the format of its prompts."""

    tokenizer: Tokenizer

    def render(self, messages: Sequence[Message], *, thinking: bool) -> str:
        """The prompt for the next turn, as text. ConfigError if the format excludes this `thinking`."""
        ...

    def prompt(self, messages: Sequence[Message], *, thinking: bool) -> list[int]:
        """Ids of the prompt for the next turn."""
        return self.tokenizer.encode(self.render(messages, thinking=thinking))


class SignsChat(Chat):
    """The signs puzzle has no roles: the prompt is the last turn and an open `<think>`."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def render(self, messages: Sequence[Message], *, thinking: bool) -> str:
        """See `Chat`."""
        require(thinking, "thinking=False: the signs puzzle's prompt opens the thinking; use thinking=True")
        return messages[-1]["content"] + GENERATION_PROMPT


class TemplateChat(Chat):
    """A Hugging Face tokenizer with its chat template, rendered as transformers renders it.

    No message text becomes a special token: messages are escaped (`HuggingFaceTokenizer.escape`).

    If the template uses `enable_thinking`, prompts with and without it differ, and both can be rendered. Any
    other template would silently ignore the flag, so only the value that is true of its model is accepted.
    The model thinks if the prompt ends in an open `<think>` (R1 distills), and does not if it ends in a
    closed one. If the prompt ends in neither, the model thinks if the template handles `</think>` of earlier
    turns (the first release of the R1 distills, which open the thinking themselves), and else does not
    (OLMo-3-Instruct).
    """

    def __init__(self, tokenizer: HuggingFaceTokenizer, template: str, file: Path):
        """Compiles a Jinja template, which was found in `file`.

        Raises ConfigError if it has a syntax error or cannot render one turn of a user.
        """
        self.tokenizer: HuggingFaceTokenizer = tokenizer
        self._file = file
        try:
            self._template = _environment().from_string(template)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(f"chat template of {file}, line {error.lineno}: {error.message}") from error
        on, off = (self._render([{"role": "user", "content": "?"}], thinking) for thinking in (True, False))
        end = on.rstrip()
        self._thinks = end.endswith(THINK_START) or (THINK_END in template and not end.endswith(THINK_END))
        self._uses_flag = on != off

    def render(self, messages: Sequence[Message], *, thinking: bool) -> str:
        """The prompt. ConfigError if the template refuses the messages or ignores this `thinking`."""
        require(
            self._uses_flag or thinking == self._thinks,
            f"thinking={thinking}: the chat template of {self._file} ignores enable_thinking, and its model "
            f"{'always' if self._thinks else 'never'} thinks; use thinking={self._thinks}",
        )
        return self._render(messages, thinking)

    def _render(self, messages: Sequence[Message], thinking: bool) -> str:
        try:
            return self._template.render(
                messages=[{key: self.tokenizer.escape(text) for key, text in m.items()} for m in messages],
                add_generation_prompt=True,
                enable_thinking=thinking,
                tools=None,
                **self.tokenizer.named,  # tokens that the tokenizer lacks stay undefined
            )
        except (jinja2.TemplateError, TypeError) as error:  # the second from Python in the template
            raise ConfigError(f"chat template of {self._file}: {error}") from error


def open_chat(folder: str | Path) -> TemplateChat:
    """The chat of a Hugging Face model folder.

    The template is `chat_template.jinja`, or else `chat_template` of `tokenizer_config.json`: the one named
    `default` if there are several.

    Raises:
      FileNotFoundError: if a tokenizer file is missing.
      ConfigError: if there is no template, or what is there cannot be used.
    """
    folder = Path(folder)
    tokenizer = HuggingFaceTokenizer(folder)
    file = folder / TEMPLATE_FILE
    template: Any = file.read_text(encoding="utf-8") if file.is_file() else None
    if template is None:
        file = folder / TOKENIZER_CONFIG_FILE
        template = read_json(file).get("chat_template")
        if isinstance(template, list):
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if not isinstance(template, str):
        raise ConfigError(
            f"{folder} has no chat template: neither {TEMPLATE_FILE} nor a (default) one in {file.name}"
        )
    return TemplateChat(tokenizer, template, file)


def _environment() -> ImmutableSandboxedEnvironment:
    """The environment that transformers gives a template: no access to Python, and a few functions."""

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)  # Jinja's escapes HTML
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
    }
    return environment
