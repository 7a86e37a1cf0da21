"""Two steps of every objective give the metrics, verdicts and responses of tests/golden.

    SDISTILL_WRITE_GOLDEN=1 pytest tests/test_golden_runs.py

writes the golden values anew, after a change that is meant to change numbers.
"""

import hashlib
import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs.signs import sdpo
from sdistill.config import AnyTrainConfig
from sdistill.data import builders
from sdistill.model.weights import load_pretrained
from sdistill.settings import parse
from sdistill.storage import read_records
from sdistill.train import train
from tests.processes import ROOT

GOLDEN = ROOT / "tests" / "golden"
CORPUS_SIZE = {"train": 200, "validation": 10}
ROUNDING = "logprob_diff"
"""A metric that is nothing but rounding."""


def three_large_steps(config: ConfigDict) -> None:
    """So that what earlier steps leave behind shows."""
    config.steps = 3
    config.optimizer = {"learning_rate": 2e-4, "warmup_steps": 0}
    config.evaluation = None


def moving_teacher(config: ConfigDict) -> None:
    """A teacher of averaged weights, on the paper's support of 100 ids and a tail."""
    config.teacher.update({"weights": "ema", "ema_rate": 0.3})
    config.teacher.context.kind = "answer"
    config.loss = {}
    three_large_steps(config)


def penalised_and_shaped(config: ConfigDict) -> None:
    """A KL penalty, and advantages shaped by a teacher; two updates a step."""
    teacher = sdpo.get_config("tiny").teacher
    teacher.weights = "live"
    config.loss = {"kl_coefficient": 0.1, "anti_self_distillation": {"teacher": teacher, "scale": 0.5}}
    config.rollouts.mini_batch_size = 2
    three_large_steps(config)


RUNS: dict[str, tuple[str, Callable[[ConfigDict], None] | None]] = {
    "pretrain": ("pretrain", None),
    "sft": ("sft", None),
    "grpo": ("grpo", None),
    "sdpo": ("sdpo", None),
    "sdpo_ema": ("sdpo", moving_teacher),
    "grpo_shaped": ("grpo", penalised_and_shaped),
}


def run(name: str, workdir: Path, data_dir: Path) -> dict[str, object]:
    """Trains; returns what is compared."""
    recipe, change = RUNS[name]
    config = importlib.import_module(f"configs.signs.{recipe}").get_config("tiny")
    if change is not None:
        change(config)
    train(parse(AnyTrainConfig, config.to_dict() | {"data_dir": str(data_dir)}), workdir)
    metrics = read_records(workdir / "metrics.jsonl")
    responses = {path.name: read_records(path) for path in sorted(workdir.glob("*-*.jsonl.gz"))}
    first = [r["text"] for rollouts in responses.values() for r in rollouts if r.get("step") == 1]
    return {
        "metrics": [{n: value for n, value in record.items() if n != ROUNDING} for record in metrics],
        "correct": {file: [sum(r["correct"] for r in rs), len(rs)] for file, rs in responses.items()},
        "responses of step 1": hashlib.sha256("\n".join(first).encode()).hexdigest(),
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A data directory with a corpus small enough to make here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builders, "CORPUS_SIZE", CORPUS_SIZE)
        yield tmp_path_factory.mktemp("corpus")


@pytest.mark.parametrize("name", RUNS)
def test_two_steps_are_what_they_were(name, tmp_path, request):
    data_dir = request.getfixturevalue("corpus" if name in ("pretrain", "sft") else "data_dir")
    found = run(name, tmp_path, data_dir)
    golden = GOLDEN / f"{name}.json"
    if "SDISTILL_WRITE_GOLDEN" in os.environ:
        golden.write_text(json.dumps(found, indent=1) + "\n")
    expected = json.loads(golden.read_text())
    for ours, theirs in zip(found.pop("metrics"), expected.pop("metrics"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=2e-8)
    assert found == expected
    load_pretrained(tmp_path / "model")


def test_every_config_is_run_here_or_by_a_test_of_its_own():
    elsewhere = {"common", "fixes", "generate", "probes", "study", "tokenizer"}
    configs = {path.stem for path in (ROOT / "configs" / "signs").glob("*.py")}
    assert configs - elsewhere == {recipe for recipe, _ in RUNS.values()}
