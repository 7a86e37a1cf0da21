"""How every command that takes a config file starts, explains itself and fails."""

import logging
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from sdistill.settings import ConfigError, dataclasses_in, list_fields


def run(main: Callable[[dict[str, Any], Path], None], *settings: Any) -> None:
    """Calls `main` with the values of --config and the path of --workdir.

    Args:
      settings: What --config is parsed as, for --help: dataclasses, or unions of them.
    """
    workdir = flags.DEFINE_string("workdir", None, "Directory that the command writes to.")
    start(lambda values: main(values, Path(str(workdir.value))), settings, required=("workdir",))


def start(
    main: Callable[[dict[str, Any]], None],
    settings: Iterable[Any],
    required: tuple[str, ...] = (),
    optional: tuple[str, ...] = (),
) -> None:
    """Calls `main` with the values of --config, or prints help.

    What the user can mend ends in one line and exit code 1, without a traceback.

    Args:
      settings: See `run`.
      required: Names of flags that must be given, besides --config.
      optional: Names of flags that may be given.
    """
    config = config_flags.DEFINE_config_file(
        "config", lock_config=True, help_string="Python file with the settings, or FILE:ARGUMENT."
    )
    if not {"--help", "-h"}.isdisjoint(sys.argv[1:]):
        names = ("config", *required, *optional)
        explained = {name: str(flags.FLAGS[name].help) for name in names}
        print(help_text(sys.modules["__main__"].__doc__ or "", explained, settings))
        return
    flags.mark_flags_as_required(["config", *required])
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    def call(argv: list[str]) -> None:
        if argv[1:]:
            raise ConfigError(
                f"{' '.join(argv[1:])}: not understood; settings are given as --config.field=value"
            )
        absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax reports every file it writes
        logging.getLogger("sdistill").setLevel(logging.INFO)
        try:
            values = config.value.to_dict()
        except OSError as error:  # the file is read when its values are first needed
            raise ConfigError(" ".join(str(error).split())) from error
        main(values)

    try:
        app.run(call, flags_parser=parse_flags)
    except (ConfigError, FileNotFoundError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


def help_text(usage: str, options: Mapping[str, str], settings: Iterable[Any]) -> str:
    """What --help prints: usage, flags, and every field of the settings, those that classes share once."""
    lines = [usage.strip(), "", "Flags:"]
    lines += [f"  --{name}  {text}" for name, text in options.items()]
    known: set[str] = set()
    for cls in (cls for union in settings for cls in dataclasses_in(union)):
        if not known:
            lines += ["", "Fields, as --config.FIELD=VALUE. Those without a default must be in the file."]
        lines += ["", f"{cls.__name__}: {(cls.__doc__ or '').splitlines()[0]}"]
        for field, text in list_fields(cls):
            if field not in known:
                lines += [f"  {field}", textwrap.indent(textwrap.fill(text, 100), 6 * " ")]
            known.add(field)
    return "\n".join(lines)


def parse_flags(argv: list[str]) -> list[str]:
    """Flags, with ml_collections' errors about overrides turned into sentences."""
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:
        given = " ".join(argument for argument in argv if argument.startswith("--config."))
        cause = error.args[0].args[0] if isinstance(error.args[0], Exception) else error.args[0]
        reason = " ".join(str(cause).split())
        raise ConfigError(f"{given} names a field the config file does not have: {reason}") from error
    except (OSError, TypeError, ValueError, flags.Error) as error:
        lines = str(error).strip().splitlines()
        # ml_collections puts the traceback of a config file that fails into its message.
        reason = lines[-1] if any("Traceback" in line for line in lines) else " ".join(lines)
        raise ConfigError(reason) from error
