"""Writes docs/config.md: every field of every setting, from the docstrings of the classes that hold them.

python launch/config_docs.py
"""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdistill import study
from sdistill.config import GRPOConfig, SDPOConfig, SFTConfig
from sdistill.generate import GenerateConfig

PAGE = Path(__file__).resolve().parents[1] / "docs" / "config.md"

COMMANDS: Mapping[str, tuple[type, ...]] = {
    "sdistill.train": (SFTConfig, GRPOConfig, SDPOConfig),
    "sdistill.generate": (GenerateConfig,),
    "sdistill.study": tuple(study.SECTIONS),
}
"""What the commands that take a config file read; all other classes are fields of these."""

INTRODUCTION = """# Every setting

`--config` names a Python file whose `get_config` returns these fields; `--config.rollouts.num_samples=16`
sets one from the command line. A field that is not known, or has no effect with the others, is an error that
says so. The resolved settings are kept in a run's directory, as `config.json`.

Made by `python launch/config_docs.py` from the docstrings: change those, not this page.
"""


def page() -> str:
    """The whole page."""
    found = classes()
    lists = [f"- `python -m {command}`: {_links(roots)}" for command, roots in COMMANDS.items()]
    return "\n\n".join([INTRODUCTION + "\n" + "\n".join(lists), *map(section, found)]) + "\n"


def classes() -> list[type]:
    """The classes of settings, those of the commands first, then what their fields hold, each once."""
    found = [root for roots in COMMANDS.values() for root in roots]
    for cls in found:  # grows while it is walked
        for hint in typing.get_type_hints(cls).values():
            found += [inner for inner in _dataclasses(hint) if inner not in found]
    return found


def section(cls: type) -> str:
    """What the page says of one class."""
    summary = inspect.cleandoc(cls.__doc__ or "").partition("\nAttributes:")[0].strip()
    hints, told = typing.get_type_hints(cls), descriptions(cls)
    lines = ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(cls):
        cells = [f"`{field.name}`", type_name(hints[field.name]), default(field), told.get(field.name, "")]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    source = inspect.getmodule(cls).__name__.replace(".", "/")
    return f"## {cls.__name__}\n\n{summary} (`{source}.py`)\n\n" + "\n".join(lines)


def descriptions(cls: type) -> dict[str, str]:
    """Field → what the docstring says of it, of the class and of the classes that it extends."""
    told: dict[str, str] = {}
    for base in reversed([base for base in cls.__mro__ if dataclasses.is_dataclass(base)]):
        attributes = inspect.cleandoc(base.__doc__ or "").partition("\nAttributes:\n")[2]
        for name, text in re.findall(r"^  (\w+): (.*(?:\n    .*)*)", attributes, re.MULTILINE):
            told[name] = " ".join(text.split())
    return told


def type_name(hint: Any) -> str:
    """In: `tuple[str, ...] | None`. Out: "strings, or None"; classes of settings are links."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        options = [type_name(option) for option in inner if option is not type(None)]
        return ", or ".join([*options, "None"] if type(None) in inner else options)
    if origin is typing.Literal:
        return ", ".join(f"`{option}`" for option in inner)
    if origin is tuple:
        return f"list of {type_name(inner[0])}"
    return _links((hint,)) if dataclasses.is_dataclass(hint) else f"`{hint.__name__}`"


def default(field: dataclasses.Field[Any]) -> str:
    """The default as it is written; of settings, what differs from their own."""
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
        own = {f.name: f.default for f in dataclasses.fields(value)}
        changed = {name: given for name, given in vars(value).items() if _differs(given, own[name])}
        return ", ".join(f"`{name}={given!r}`" for name, given in changed.items()) or "its own"
    return "**needed**" if field.default is dataclasses.MISSING else f"`{field.default!r}`"


def _differs(value: Any, own: Any) -> bool:
    return not dataclasses.is_dataclass(value) and value != own


def _dataclasses(hint: Any) -> Iterator[type]:
    if dataclasses.is_dataclass(hint):
        yield typing.cast(type, hint)
    for inner in typing.get_args(hint):
        yield from _dataclasses(inner)


def _links(found: tuple[type, ...]) -> str:
    return ", ".join(f"[{cls.__name__}](#{cls.__name__.lower()})" for cls in found)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
