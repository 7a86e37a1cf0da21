"""`--help` of every command: what it takes, with an explanation of each flag and field."""

import argparse
import sys

import pytest

from launch import join
from sdistill import convert, evaluate, match, settings, study
from sdistill.command import fields_help
from sdistill.config import AnyTrainConfig, SDPOConfig
from sdistill.generate import GenerateConfig
from sdistill.report import __main__ as report
from tests.processes import Commands


@pytest.mark.parametrize("command", [evaluate, match, convert, report, join])
def test_every_flag_is_explained(command, monkeypatch):
    parsers = []
    monkeypatch.setattr(argparse.ArgumentParser, "print_help", lambda parser, *_: parsers.append(parser))
    monkeypatch.setattr(sys, "argv", ["command", "--help"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 0
    (parser,) = parsers
    assert parser.description
    assert not [action.dest for action in parser._actions if not action.help]


@pytest.mark.parametrize(
    "classes",
    [[AnyTrainConfig], [GenerateConfig], [*study.SECTIONS]],
    ids=["train", "generate", "study"],
)
def test_every_field_is_explained_once(classes):
    lines = fields_help(classes).splitlines()
    fields = [i for i, line in enumerate(lines) if line.startswith("  config.")]
    assert len({lines[i] for i in fields}) == len(fields) >= 40
    assert all(lines[i + 1].startswith("      ") for i in fields)


def test_what_is_said_of_a_field():
    fields = dict(settings.list_fields(SDPOConfig))
    assert fields["config.steps: int"] == "Batches to train on."
    assert "config.rollouts: RolloutsConfig" in fields and "config.rollouts.num_samples: int" in fields
    assert fields["config.rollouts.num_problems: int | None = None"].endswith("None takes all.")
    assert "config.teacher.dtype: 'float32' | 'bfloat16' = 'float32'" in fields
    assert "`ema`: moving" in fields[next(name for name in fields if "teacher.weights" in name)]
    assert "config.evaluation.datasets: tuple[str, ...]" in fields


def test_a_command_prints_its_help_and_ends_well(tmp_path):
    done = Commands(tmp_path).run("sdistill.train", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("One training run") and "python -m sdistill.train --config" in done.stdout
    assert "--workdir WORKDIR" in done.stdout and "--config FILE[:ARGUMENT]" in done.stdout
    assert "  config.steps: int\n      Batches to train on.\n" in done.stdout
