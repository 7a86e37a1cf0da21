"""Mistakes at the command line: one clear line, exit code 1, no traceback, nothing left behind."""

import shutil

import jax
import pytest

from configs.signs import study as study_config
from sdistill import study
from sdistill.command import load_config
from sdistill.config import SDPOConfig
from sdistill.model.folders import SIGNS_BASE
from sdistill.settings import ConfigError, parse, to_json

SDPO = "--config=configs/signs/sdpo.py:tiny"


@pytest.fixture
def commands(forked_commands):
    return forked_commands


def complaint(commands, *arguments) -> str:
    """The one line that a command ends with."""
    done = commands.run(*arguments)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([SDPO, "--config.optimizer.learing_rate=1"], ["config.optimizer.learing_rate", "'learning_rate'"]),
        ([SDPO, "--config.steps=many"], ["config.steps", "'many'"]),
        ([SDPO, "--config.steps=-1"], ["config.steps=-1 must be positive"]),
        ([SDPO, "--config.rollouts.split=k9_pool"], ["'k9_pool'", "k3_pool, k4_pool"]),
        ([SDPO, "--config.init_from=/nowhere"], ["/nowhere", "not a model folder"]),
        ([SDPO, "--config.steps.more=1"], ["--config.steps.more=1", "steps is 2"]),
        ([SDPO, "--config.teacher.weights=ema"], ["teacher.ema_rate=None goes with weights='ema'"]),
        ([SDPO, "--wrkdir=x"], ["--wrkdir=x: not understood"]),
        ([SDPO, "steps=3"], ["steps=3"]),
        ([], ["--config"]),
        (["--config=configs/signs/common.py"], ["configs/signs/common.py", "get_config"]),
        (["--config=configs/signs/nothing.py"], ["configs/signs/nothing.py"]),
        (["--config=configs/signs/sdpo.py:nonsense"], ["'nonsense'", "'answer'"]),
        (["--config=configs/signs/study.py:nonsense"], ["'nonsense'", "quick"]),
    ],
    ids=lambda value: " ".join(value[-1:]) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_clear_line(arguments, parts, commands, tmp_path):
    command = "sdistill.study" if "study" in str(arguments) else "sdistill.train"
    line = complaint(commands, command, f"--workdir={tmp_path / 'run'}", *arguments)
    assert all(part in line for part in parts), line


def test_the_mistake_can_be_mended_in_the_same_directory(commands, tmp_path):
    """A run that never began does not keep its directory from the next."""
    workdir = f"--workdir={tmp_path / 'run'}"
    complaint(commands, "sdistill.train", SDPO, workdir, "--config.init_from=/nowhere")
    line = complaint(commands, "sdistill.train", SDPO, workdir, "--config.init_from=/elsewhere")
    assert "no folder /elsewhere" in line


def test_fields_that_the_file_leaves_out_are_set_too(tmp_path):
    """In sections that it leaves out, with values of any form; config.json of a run is a config file."""
    overrides = {
        "loss.divergence.pointwise_clip": "0.05",
        "teacher.weights": "ema",
        "teacher.ema_rate": "1e-2",
        "rollouts.sampling.top_p": "1",
        "loss.masked_words": "('wait', 'maybe')",
        "attribution": "true",
        "evaluation": "None",
    }
    given = [f"--config.{name}={value}" for name, value in overrides.items()]
    config = parse(SDPOConfig, load_config("configs/signs/sdpo.py:tiny", given))
    assert (config.loss.divergence.pointwise_clip, config.loss.divergence.support) == (0.05, "full")
    assert (config.teacher.weights, config.teacher.ema_rate) == ("ema", 0.01)
    assert config.rollouts.sampling.top_p == 1 and config.loss.masked_words == ("wait", "maybe")
    assert config.attribution and config.evaluation is None
    (tmp_path / "config.json").write_text(to_json(config))
    assert parse(SDPOConfig, load_config(str(tmp_path / "config.json"), [])) == config
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json: Expecting"):
        load_config(str(tmp_path / "config.json"), [])


def test_a_missing_workdir_is_named(commands):
    assert "--workdir" in complaint(commands, "sdistill.train", SDPO)


def test_an_unknown_field_of_a_config_file_is_named(commands, tmp_path):
    (tmp_path / "config.py").write_text(
        "from configs.signs import sdpo\n"
        "def get_config():\n"
        "    config = sdpo.get_config('tiny')\n"
        "    config.rollouts.max_response_lenght = 4\n"
        "    return config\n"
    )
    arguments = (f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}")
    line = complaint(commands, "sdistill.train", *arguments)
    assert "config.rollouts.max_response_lenght" in line and "did you mean 'max_response_length'?" in line


def test_damaged_weights_are_named(commands, tmp_path):
    shutil.copytree(SIGNS_BASE, tmp_path / "base")
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    arguments = (SDPO, f"--workdir={tmp_path / 'run'}", f"--config.init_from={tmp_path / 'base'}")
    line = complaint(commands, "sdistill.train", *arguments)
    assert str(weights) in line and "damaged" in line


def test_a_directory_with_other_settings_is_refused(commands, tmp_path):
    (tmp_path / "config.json").write_text('{\n "seed": 1\n}')
    line = complaint(commands, "sdistill.train", SDPO, f"--workdir={tmp_path}")
    assert str(tmp_path) in line and "other settings" in line


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--model=/nowhere", "--split=k3_test"], "not a model folder"),
        (["--model=signs_base", "--split=k9"], "k3_pool, k4_pool"),
        (["--model=signs_base", "--split=k3_test", "--max_prompt_length=0"], "max_prompt_length=0"),
        (["--model=signs_base", "--split=k3_test", "--num_problems=0"], "--num_problems=0 must be positive"),
        (["--model=signs_base", "--split=k3_test", "--num_samples=-1"], "--num_samples=-1 must be positive"),
    ],
)
def test_evaluate_says_what_is_wrong(arguments, part, commands):
    assert part in complaint(commands, "sdistill.evaluate", *arguments)


def test_a_study_is_refused_in_several_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    values = study_config.get_config("tiny").to_dict()
    with pytest.raises(
        ConfigError, match="sdistill.study runs in one process, and 2 were started; it is small"
    ):
        study.main(values, tmp_path / "run")
    assert not (tmp_path / "run").exists()
