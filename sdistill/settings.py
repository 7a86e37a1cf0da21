"""From ml-collections files to typed, frozen, validated settings.

Config files hold plain values; the dataclasses next to the code that reads them hold the names, types,
defaults and meaning of every field. `parse` joins the two, and refuses what it does not know.
"""

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class ConfigError(ValueError):
    """A setting that cannot be used; the message names the field, its value and the way out."""


def parse(cls: type[T], values: Mapping[str, Any], path: str = "config") -> T:
    """Builds the dataclass `cls` from a mapping of plain values, such as `ConfigDict.to_dict()` gives.

    Nested dataclasses are parsed from nested mappings, lists become tuples, an int is accepted where a
    float is declared. Everything else must match.

    Raises:
      ConfigError: for an unknown field (with the nearest known one), a missing one, or a wrong type.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
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
            raise ConfigError(f"missing field {path}.{name} ({_type_name(hints[name])})")
    try:
        return cls(**arguments)
    except ConfigError as error:
        raise ConfigError(f"{path}.{error}") from None


def _convert(hint: Any, value: Any, path: str) -> Any:
    """Checks one value against its declared type."""
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return parse(hint, value, path)  # type: ignore[arg-type]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        options = [option for option in inner if option is not type(None)]
        for option in options[:-1]:
            try:
                return _convert(option, value, path)
            except ConfigError:
                continue
        return _convert(options[-1], value, path)
    if origin is typing.Literal:
        if value not in inner:
            raise ConfigError(f"{path}={value!r} must be one of {', '.join(map(repr, inner))}")
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(inner[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{path}={value!r} must be {_type_name(hint)}, not {type(value).__name__}")
    return value


def _type_name(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint))


def require(condition: bool, message: str) -> None:
    """Raises ConfigError(message) unless the condition holds; messages start with the field's name."""
    if not condition:
        raise ConfigError(message)


def require_positive(settings: Any, *names: str) -> None:
    """Raises ConfigError unless each of these fields is above zero."""
    for name in names:
        require(getattr(settings, name) > 0, f"{name}={getattr(settings, name)} must be positive")


def to_json(settings: Any) -> str:
    """The settings as canonical JSON: what a run directory keeps and compares."""
    return json.dumps(dataclasses.asdict(settings), indent=1, sort_keys=True)


def fingerprint(settings: Any) -> str:
    """Twelve hexadecimal digits that identify the settings."""
    return hashlib.sha256(to_json(settings).encode()).hexdigest()[:12]
