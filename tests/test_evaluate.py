"""The command that samples, verifies, and prints a table."""

import pytest

from tests.processes import Commands


@pytest.mark.slow
def test_the_command_prints_a_table_with_its_conditions(tmp_path, data_dir):
    commands = Commands(data_dir)
    printed = commands.succeed(
        *("sdistill.evaluate", "--model=signs_base", "--split=k3_test", "--num_problems=8"),
        *("--num_samples=2", "--max_response_length=48", "--seed=3"),
    )
    for part in ("accuracy", "length", "num_epistemic", "pass@2", "maj@2", "95 % interval"):
        assert part in printed
    said = "8 problems × 2 samples, seed 3, temperature 1.0, top-p 1.0, top-k None, at most 48 tokens"
    assert said in printed
