"""How every command that takes a config file starts, explains itself and fails."""

import argparse
import ast
import json
import logging
import runpy
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from absl import logging as absl_logging
from ml_collections import ConfigDict

from sdistill.settings import ConfigError, dataclasses_in, list_fields


class Parser(argparse.ArgumentParser):
    """Flags of a command with a --config, whose --help lists the fields of its settings.

    Args:
      settings: What --config is parsed as: dataclasses, or unions of them.
    """

    def __init__(self, *settings: Any) -> None:
        super().__init__(
            usage=argparse.SUPPRESS,
            description=sys.modules["__main__"].__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=fields_help(settings),
            allow_abbrev=False,
        )
        self.add_argument(
            "--config",
            required=True,
            metavar="FILE[:ARGUMENT]",
            help="Python file whose get_config([ARGUMENT]) returns the settings, or a config.json.",
        )

    def error(self, message: str) -> NoReturn:
        """Raises what `start` prints."""
        raise ConfigError(message)


def run(main: Callable[[dict[str, Any], Path], None], *settings: Any) -> None:
    """Calls `main` with the values of --config and the path of --workdir; `settings` as in `Parser`."""
    parser = Parser(*settings)
    parser.add_argument("--workdir", required=True, type=Path, help="Directory that the command writes to.")
    start(parser, lambda values, given: main(values, given.workdir))


def start(parser: Parser, main: Callable[[dict[str, Any], argparse.Namespace], None]) -> None:
    """Calls `main` with the values of --config and the flags.

    What the user can mend ends in one line and exit code 1, without a traceback.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax reports every file it writes
    try:
        given, overrides = parser.parse_known_args()
        main(load_config(given.config, overrides), given)
    except (ConfigError, FileNotFoundError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


def load_config(path: str, overrides: Iterable[str]) -> dict[str, Any]:
    """The values of a config file, with fields set as `--config.FIELD=VALUE`.

    Raises:
      ConfigError: if the file is damaged or refuses its argument, or for an override of another form.
    """
    file, _, argument = path.partition(":")
    try:
        if file.endswith(".json"):
            config = ConfigDict(json.loads(Path(file).read_text(encoding="utf-8")))
        elif get_config := runpy.run_path(file).get("get_config"):
            config = ConfigDict(get_config(*[argument] if argument else []))
        else:
            raise ConfigError("there is no function get_config")
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--config={path}: {error}") from error
    with config.unlocked():
        for override in overrides:
            name, is_given, text = override.partition("=")
            if not name.startswith("--config.") or not is_given:
                raise ConfigError(f"{override}: not understood; settings are given as --config.field=value")
            set_field(config, name.removeprefix("--config."), text)
    return dict(config.to_dict())


def set_field(config: ConfigDict, name: str, text: str) -> None:
    """Sets a field, `name` with dots, to a Python literal, or else to the text itself."""
    *sections, field = name.split(".")
    for section in sections:
        if config.get(section) is None:
            config[section] = ConfigDict()
        config = config[section]
        if not isinstance(config, ConfigDict):
            raise ConfigError(f"--config.{name}={text}: {section} is {config!r} and has no fields")
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (SyntaxError, ValueError):
        value = text
    with config.ignore_type():
        config[field] = value


def fields_help(settings: Iterable[Any]) -> str:
    """Every field of the settings with its explanation; those that classes share once."""
    lines: list[str] = []
    known: set[str] = set()
    for cls in (cls for union in settings for cls in dataclasses_in(union)):
        if not known:
            lines += [
                "fields, as --config.FIELD=VALUE; those without a default must be in the file or given:"
            ]
        lines += ["", f"{cls.__name__}: {(cls.__doc__ or '').splitlines()[0]}"]
        for field, text in list_fields(cls):
            if field not in known:
                lines += [f"  {field}", textwrap.indent(textwrap.fill(text, 100), 6 * " ")]
            known.add(field)
    return "\n".join(lines)
