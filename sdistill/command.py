"""How every command that takes a config file starts and fails."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from sdistill.config import ConfigError


def run(main: Callable[[dict[str, Any], Path], None]) -> None:
    """Calls `main` with the values of --config and the path of --workdir.

    What the user can mend ends in one line and exit code 1, without a traceback.
    """
    config = config_flags.DEFINE_config_file("config", lock_config=True)
    workdir = flags.DEFINE_string("workdir", None, "Directory that the command writes to.")
    flags.mark_flags_as_required(["config", "workdir"])
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    def start(argv: list[str]) -> None:
        del argv
        absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax reports every file it writes
        logging.getLogger("sdistill").setLevel(logging.INFO)
        main(config.value.to_dict(), Path(str(workdir.value)))

    try:
        app.run(start, flags_parser=_parse_flags)
    except (ConfigError, FileNotFoundError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


def _parse_flags(argv: list[str]) -> list[str]:
    """Flags, with ml_collections' errors about overrides turned into sentences."""
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:
        given = " ".join(argument for argument in argv if argument.startswith("--config."))
        raise ConfigError(f"{given} names a field the config file does not have: {error.args[0]}") from error
    except (TypeError, ValueError, flags.Error) as error:
        raise ConfigError(str(error)) from error
