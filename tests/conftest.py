import os
import tempfile
from importlib.metadata import version
from pathlib import Path

# Tests compile thousands of small programs and run each a few times. XLA's passes over a program are those of
# every run. What makes machine code of the result is made cheaper: no optimization by LLVM, no splitting over
# threads, and the older code generator of fusions, which jax 0.11 no longer has. A tiny training then took
# 10 s of CPU instead of 29 (once each). Long tests run commands without (`optimized=True`, processes.py).
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    " --xla_cpu_parallel_codegen_split_count=1"
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
from tests.processes import ForkedCommands

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
def forked_commands(data_dir):
    """Short commands of the package."""
    commands = ForkedCommands(data_dir)
    yield commands
    commands.close()


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """Data sets, prepared by the first test that opens one; all workers of pytest-xdist have it in common."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "datasets"
