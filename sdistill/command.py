"""How every command of the project starts and fails."""

import logging
import sys
from collections.abc import Callable

from absl import app, flags
from absl import logging as absl_logging

from sdistill.config import ConfigError


def run(main: Callable[[list[str]], None]) -> None:
    """Parses the flags and runs `main`; what the user can mend ends in one line and exit code 2."""

    def quiet_main(argv: list[str]) -> None:
        absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax reports every file it writes
        logging.getLogger("sdistill").setLevel(logging.INFO)
        main(argv)

    try:
        app.run(quiet_main, flags_parser=_parse_flags)
    except (ConfigError, FileNotFoundError) as error:
        sys.exit(f"error: {error}" if isinstance(error, ConfigError) else f"error: no such file: {error}")


def _parse_flags(argv: list[str]) -> list[str]:
    """Flags, with ml_collections' errors about overrides turned into sentences."""
    try:
        return flags.FLAGS(argv)  # type: ignore[no-any-return]
    except (AttributeError, KeyError) as error:
        raise ConfigError(
            f"an override names a field that the config file does not have: {error.args[0]}; "
            f"given {' '.join(a for a in argv if a.startswith('--config.'))}"
        ) from error
    except (TypeError, ValueError, flags.Error) as error:
        raise ConfigError(f"a flag is missing, unknown or of the wrong type: {error}") from error
