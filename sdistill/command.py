"""How every command that takes a config file starts and fails."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from sdistill.settings import ConfigError


def run(main: Callable[[dict[str, Any], Path], None]) -> None:
    """Calls `main` with the values of --config and the path of --workdir.

    What the user can mend ends in one line and exit code 1, without a traceback.
    """
    config = config_flags.DEFINE_config_file("config", lock_config=True)
    workdir = flags.DEFINE_string("workdir", None, "Directory that the command writes to.")
    flags.mark_flags_as_required(["config", "workdir"])
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    def start(argv: list[str]) -> None:
        if argv[1:]:
            raise ConfigError(
                f"{' '.join(argv[1:])}: not understood; settings are given as --config.field=value"
            )
        absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax reports every file it writes
        logging.getLogger("sdistill").setLevel(logging.INFO)
        try:
            values = config.value.to_dict()
        except OSError as error:  # the file is read when its values are first asked for
            raise ConfigError(" ".join(str(error).split())) from error
        main(values, Path(str(workdir.value)))

    try:
        app.run(start, flags_parser=parse_flags)
    except (ConfigError, FileNotFoundError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


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
