"""Public files that a few tests read: data sets in `math/` and `sciknoweval/`, models' folders in `hf/`.

The environment variable SDISTILL_TEST_DATA names the folder; without it these tests are skipped.
"""

import os
from pathlib import Path

import pytest


def public_file(*parts: str) -> Path:
    """A file or folder there; skips the test without it."""
    folder = os.environ.get("SDISTILL_TEST_DATA")
    if not folder:
        pytest.skip("SDISTILL_TEST_DATA is not set: it names a folder of public files")
    path = Path(folder, *parts)
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path
