"""From ml-collections files to typed, frozen, validated settings.

Config files hold plain values; the dataclasses next to the code that reads them hold the names, types,
defaults and meaning of every field. `parse` joins the two, and refuses what it does not know.
"""

import dataclasses
import difflib
import inspect
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

UNIONS = (typing.Union, types.UnionType)


class ConfigError(ValueError):
    """A setting that cannot be used; the message names the field, its value and the way out."""


@typing.overload
def parse(cls: type[T], values: Mapping[str, Any], path: str = ...) -> T: ...
@typing.overload
def parse(cls: types.UnionType, values: Mapping[str, Any], path: str = ...) -> Any: ...
def parse(cls: Any, values: Mapping[str, Any], path: str = "config") -> Any:
    """Builds the dataclass `cls` from a mapping of plain values, such as `ConfigDict.to_dict()` gives.

    Nested dataclasses are parsed from nested mappings, lists become tuples, an int is accepted where a
    float is declared. Everything else must match. A union of dataclasses is tagged by a field that each of
    them declares as a `Literal` of its own values, such as `objective`: its value chooses the class.

    Raises:
      ConfigError: for an unknown field (with the nearest known one), a missing one, one that belongs to
        another class of a union, or a wrong type.
    """
    if typing.get_origin(cls) in UNIONS:
        cls = _choose(typing.get_args(cls), values, path)
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known fields: {', '.join(fields)}"
            raise ConfigError(f"unknown field {path}.{name}; {hint}")
    arguments = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _convert(hints[name], values[name], f"{path}.{name}")
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"missing field {path}.{name} ({type_name(hints[name])})")
    try:
        return cls(**arguments)
    except ConfigError as error:
        raise ConfigError(f"{path}.{error}") from None


def _choose(options: Sequence[type], values: Mapping[str, Any], path: str) -> type:
    """The class of a tagged union that the tag's value names; refuses fields that only others have."""
    hints = [typing.get_type_hints(option) for option in options]
    for tag in hints[0]:
        choices = [value for hint in hints for value in typing.get_args(hint.get(tag))]
        is_tag = all(typing.get_origin(hint.get(tag)) is typing.Literal for hint in hints)
        if is_tag and len(choices) == len(set(choices)):
            break
    else:
        raise TypeError(f"no Literal field tells {' and '.join(map(type_name, options))} apart")
    known = ", ".join(map(repr, choices))
    if tag not in values:
        raise ConfigError(f"missing field {path}.{tag} (one of {known})")
    if values[tag] not in choices:
        raise ConfigError(f"{path}.{tag}={values[tag]!r} must be one of {known}")
    chosen = next(i for i, hint in enumerate(hints) if values[tag] in typing.get_args(hint[tag]))
    for name in values:
        if name not in hints[chosen] and any(name in hint for hint in hints):
            raise ConfigError(f"{path}.{name} has no effect with {tag}={values[tag]!r}; remove it")
    return options[chosen]


def _convert(hint: Any, value: Any, path: str) -> Any:
    """A value as its declared type has it. Types are plain ones, `Literal`s, tuples and dataclasses, each
    perhaps `| None`; unions are of dataclasses.
    """
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return parse(typing.cast(type, hint), value, path)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in UNIONS:
        if value is None and type(None) in inner:
            return None
        options = [option for option in inner if option is not type(None)]
        tagged = len(options) > 1 and isinstance(value, Mapping)
        return _convert(_choose(options, value, path) if tagged else options[0], value, path)
    if origin is typing.Literal:
        if value not in inner:
            raise ConfigError(f"{path}={value!r} must be one of {', '.join(map(repr, inner))}")
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(inner[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{path}={value!r} must be {type_name(hint)}, not {type(value).__name__}")
    return value


def type_name(hint: Any) -> str:
    """A type as it is written: `tuple[str, ...] | None`; of a `Literal` its values."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in UNIONS:
        return " | ".join(map(type_name, inner))
    if origin is typing.Literal:
        return " | ".join(map(repr, inner))
    if origin is tuple:
        return f"tuple[{', '.join('...' if kind is ... else type_name(kind) for kind in inner)}]"
    return "None" if hint is type(None) else hint.__name__


def require(condition: bool, message: str) -> None:
    """Raises ConfigError(message) unless the condition holds; messages start with the field's name."""
    if not condition:
        raise ConfigError(message)


def require_positive(settings: Any, *names: str) -> None:
    """Raises ConfigError unless each of these fields is above zero, or None where its type allows that."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value > 0:
            optional = type(None) in typing.get_args(typing.get_type_hints(type(settings))[name])
            raise ConfigError(f"{name}={value} must be positive{', or None' if optional else ''}")


def require_fraction(settings: Any, *names: str) -> None:
    """Raises ConfigError unless each of these fields is 0 to 1, or None."""
    for name in names:
        value = getattr(settings, name)
        require(value is None or 0 <= value <= 1, f"{name}={value} must be 0 to 1")


def require_together(settings: Any, name: str, tag: str, *values: Any) -> None:
    """Raises ConfigError unless the field `name` is set exactly where the field `tag` has one of `values`."""
    given = getattr(settings, name)
    if (given is not None) != (getattr(settings, tag) in values):
        raise ConfigError(
            f"{name}={given!r} goes with {tag}={' or '.join(map(repr, values))} and only with it"
        )


def descriptions(cls: type) -> dict[str, str]:
    """Field → its line under `Attributes:` in the docstring of the class, or of a class that it extends."""
    found: dict[str, str] = {}
    for base in reversed([base for base in cls.__mro__ if dataclasses.is_dataclass(base)]):
        attributes = inspect.cleandoc(base.__doc__ or "").partition("\nAttributes:\n")[2]
        for name, text in re.findall(r"^  (\w+): (.*(?:\n    .*)*)", attributes, re.MULTILINE):
            found[name] = " ".join(text.split())
    return found


def dataclasses_in(hint: Any) -> list[type]:
    """The dataclasses of a type: itself, or members of a union or tuple."""
    if dataclasses.is_dataclass(hint):
        return [typing.cast(type, hint)]
    return [found for inner in typing.get_args(hint) for found in dataclasses_in(inner)]


def default_of(field: dataclasses.Field[Any]) -> Any:
    """A field's default; `dataclasses.MISSING` if it has none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def list_fields(cls: type, path: str = "config", defaults: Any = None) -> list[tuple[str, str]]:
    """Every field, nested ones included: `config.steps: int = 3`, and what it means, in a sentence.

    Args:
      cls: A dataclass of settings.
      path: How it is called.
      defaults: An instance with the defaults; None for those of the class.
    """
    lines, hints, about = [], typing.get_type_hints(cls), descriptions(cls)
    for field in dataclasses.fields(cls):
        name, hint, text = f"{path}.{field.name}", hints[field.name], about.get(field.name, "")
        value = default_of(field) if defaults is None else getattr(defaults, field.name)
        has_own = value is dataclasses.MISSING or dataclasses.is_dataclass(value)
        if not text.startswith("`"):  # where it does, each sentence explains a value
            first, *others = re.split(r"(?<=[.…])\s", text)
            text = " ".join([first, *(other for other in others if other.startswith("None "))])
        lines.append((f"{name}: {type_name(hint)}" + ("" if has_own else f" = {value!r}"), text))
        for inner in dataclasses_in(hint):
            lines += list_fields(inner, name, value if isinstance(value, inner) else None)
    return lines


def to_json(settings: Any) -> str:
    """The settings as canonical JSON: what a run directory keeps and compares."""
    return json.dumps(dataclasses.asdict(settings), indent=1, sort_keys=True)
