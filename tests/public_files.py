"""Public files that a few tests read: data sets in `math/` and `sciknoweval/`, models' folders in `hf/`.

The environment variable SDISTILL_TEST_DATA names the folder. Without it these tests are skipped, and the
reason shows the name of the variable in place of the folder.
"""

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("SDISTILL_TEST_DATA") or "$SDISTILL_TEST_DATA")


def public_file(*parts: str) -> Path:
    """A file or folder there; skips the test without it."""
    path = FOLDER.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no public file {path}")
    return path
