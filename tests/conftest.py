import os
import tempfile
from importlib.metadata import version
from pathlib import Path

# Tests compile thousands of small programs and run each a few times. Without LLVM's optimization of what XLA
# has made of them, two training steps took 34 s of CPU instead of 51, and with the older code generator of
# fusions, which jax 0.11 no longer has, 38 instead of 48; passes over the program itself are those of every
# run. Long tests run commands without (`optimized=True` of tests/processes.py).
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    f"{' --xla_cpu_use_fusion_emitters=false' if version('jaxlib').startswith('0.10.') else ''}"
)

# One compilation cache for the session: workers of pytest-xdist and subprocesses inherit it. The process that
# made the directory removes it at its end.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="sdistill-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import pytest
from hypothesis import settings

from sdistill.text.tokenizer import SIGNS_TOKENIZER, SentencePieceTokenizer

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=50, database=None)
settings.load_profile("repeatable")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests stay in one worker: `pytest -n 2` sets each module's fixtures up once, not twice."""
    if config.getvalue("dist") == "load":
        from xdist.scheduler import LoadFileScheduling

        return LoadFileScheduling(config, log)
    return None


@pytest.fixture(scope="session")
def tokenizer():
    return SentencePieceTokenizer(SIGNS_TOKENIZER)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A directory that all of pytest's worker processes have in common."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder
