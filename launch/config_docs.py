"""Writes docs/config.md: every field of every setting, from the docstrings of the classes that hold them.

python launch/config_docs.py
"""

import dataclasses
import inspect
import sys
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for what is beside this folder

from launch.results_tables import markdown
from sdistill import study
from sdistill.config import GRPOConfig, SDPOConfig, SFTConfig
from sdistill.generate import GenerateConfig
from sdistill.settings import dataclasses_in, default_of, descriptions, type_name

PAGE = Path(__file__).resolve().parents[1] / "docs" / "config.md"

COMMANDS: Mapping[str, tuple[type, ...]] = {
    "sdistill.train": (SFTConfig, GRPOConfig, SDPOConfig),
    "sdistill.generate": (GenerateConfig,),
    "sdistill.study": tuple(study.SECTIONS),
}
"""What the commands that take a config file read; all other classes are fields of these."""

INTRODUCTION = """# Every setting

`--config` names a Python file whose `get_config` returns these fields; `--config.rollouts.num_samples=16`
sets one from the command line, and `--help` lists them. A field that is not known, or has no effect with the
others, is an error that says so. The resolved settings are kept in a run's directory, as `config.json`.

Made by `python launch/config_docs.py` from the docstrings: change those, not this page.

Config files and their arguments: [signs.md](signs.md#configs) for the puzzle, the first lines of each file in
`configs/paper/` and `configs/one_chip/` for the others.
"""


def page() -> str:
    """The whole page."""
    found = classes()
    lists = [f"- `python -m {command}`: {links(roots)}" for command, roots in COMMANDS.items()]
    return "\n\n".join([INTRODUCTION + "\n" + "\n".join(lists), *map(section, found)]) + "\n"


def classes() -> list[type]:
    """The classes of settings, those of the commands first, then what they extend and hold, each once."""
    found = [root for roots in COMMANDS.values() for root in roots]
    for cls in found:  # grows while it is walked
        held = [inner for hint in typing.get_type_hints(cls).values() for inner in dataclasses_in(hint)]
        found += [inner for inner in dict.fromkeys([*bases(cls), *held]) if inner not in found]
    return found


def bases(cls: type) -> list[type]:
    """The classes of settings that it extends."""
    return [base for base in cls.__bases__ if dataclasses.is_dataclass(base)]


def section(cls: type) -> str:
    """What the page says of one class: its own fields, and where the others are."""
    summary = inspect.cleandoc(cls.__doc__ or "").partition("\nAttributes:")[0].strip()
    source = cls.__module__.replace(".", "/")
    extends = f" It has the fields of {links(bases(cls))}, too." if bases(cls) else ""
    hints, about, own = typing.get_type_hints(cls), descriptions(cls), inspect.get_annotations(cls)
    rows = [
        [f"`{field.name}`", linked_type(hints[field.name]), default(field), about[field.name]]
        for field in dataclasses.fields(cls)
        if field.name in own
    ]
    table = markdown(["field", "type", "default", "meaning"], rows)
    return f"## {cls.__name__}\n\n{summary}{extends} (`{source}.py`)\n\n{table}"


def linked_type(hint: Any) -> str:
    """The type as code; classes of settings are links."""
    text, inner = type_name(hint), dataclasses_in(hint)
    for cls in inner:
        text = text.replace(cls.__name__, links([cls]))
    return text if inner else f"`{text}`"


def default(field: dataclasses.Field[Any]) -> str:
    """The default as it is written; of settings, what differs from their own."""
    value = default_of(field)
    if value is dataclasses.MISSING:
        return "**needed**"
    if not dataclasses.is_dataclass(value):
        return f"`{value!r}`"
    changed = [
        f"`{inner.name}={given!r}`"
        for inner in dataclasses.fields(value)
        if not dataclasses.is_dataclass(given := getattr(value, inner.name)) and given != inner.default
    ]
    return ", ".join(changed) or "its own"


def links(classes: Iterable[type]) -> str:
    """Links to the sections of these classes."""
    return ", ".join(f"[{cls.__name__}](#{cls.__name__.lower()})" for cls in classes)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
