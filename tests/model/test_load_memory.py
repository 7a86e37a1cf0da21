"""Loading needs hardly more host memory than the model."""

import json
import sys

import pytest

from tests.processes import Commands

MB = 2**20


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak of its memory")
def test_the_peak_beyond_the_parameters_is_two_of_the_largest_tensors(tmp_path):
    """One that was read and one that is laid out anew; in a process of its own, and 8 MB for its noise."""
    commands = Commands(tmp_path)
    printed = commands.succeed("tests.benchmarks.bench_load", "--json")
    found = json.loads(next(line for line in printed.splitlines() if line.startswith("{")))
    assert len(found["files"]) > 3 and sum(found["files"]) > 150 * MB
    assert sum(found["files"]) > 6 * found["largest"]
    for dtype in ("bfloat16", "float32"):
        assert found[dtype]["beyond"] <= 2 * found["largest"] + 8 * MB, dtype
