"""The command that samples, verifies, and prints a table."""

import sys

from sdistill.evaluate import main

COMMAND = (
    *("--model=signs_base", "--split=k3_test", "--num_problems=8", "--num_samples=2"),
    *("--max_response_length=48", "--slots=4", "--seed=3"),
)


def test_the_command_prints_a_table_with_its_conditions(data_dir, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate", *COMMAND, f"--data_dir={data_dir}"])
    monkeypatch.setenv("COLUMNS", "200")
    main()
    printed = capsys.readouterr().out
    for part in ("accuracy", "length", "num_epistemic", "pass@2", "maj@2", "95 % interval"):
        assert part in printed
    assert "signs_base on k3_test" in printed
    assert "8 problems × 2 samples, seed 3, temperature 1.0, top-p 1.0, top-k None, at most 48" in printed
