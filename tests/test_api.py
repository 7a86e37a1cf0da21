"""`import sdistill`: every name resolves, and each call does what the modules below it do."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sdistill
from configs.signs import sdpo
from sdistill.config import SDPOConfig
from sdistill.settings import ConfigError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def policy():
    return sdistill.load("signs_base")


@pytest.fixture(scope="module")
def problems(data_dir):
    return sdistill.open_problems("k3_pool", str(data_dir))[:2]


@pytest.fixture(scope="module")
def responses(policy, problems):
    return policy.sample(problems, task=sdistill.task_of("k3_pool"), num_samples=4, slots=8)


def test_every_name_of_the_api_resolves_and_is_documented():
    assert dir(sdistill) == sdistill.__all__
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    rows = "".join(re.findall(r"^\| (`.*?) \|", page, re.MULTILINE))
    assert sorted(re.findall(r"`(\w+)`", rows)) == sdistill.__all__
    assert all(getattr(sdistill, name) is not None for name in sdistill.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'; it has ContextConfig, "):
        sdistill.nothing  # noqa: B018


def test_samples_are_verified_and_measured(responses, problems):
    assert [r.problem for r in responses] == [p.id for p in problems for _ in range(4)]
    assert any(r.correct for r in responses)
    accuracy = sdistill.measure(responses)["accuracy"]
    assert accuracy.value == pytest.approx(np.mean([r.correct for r in responses]))
    assert accuracy.low <= accuracy.value <= accuracy.high
    assert all(sdistill.Response.from_json(json.loads(json.dumps(r.to_json()))) == r for r in responses)


def test_a_context_changes_what_the_teacher_says(policy, problems, responses):
    problem, solved = problems[0], next(r for r in responses if r.correct)
    context = sdistill.ContextConfig("solution", template="{prompt} solution {solution}")
    turn = sdistill.teacher_turn(context, problem, solved.text)
    told, untold = policy.compare([problem] * 2, [solved.text] * 2, [turn, None])
    ids = [*policy.chat.tokenizer.encode(solved.text), policy.chat.tokenizer.eos_id]
    assert len(told.tokens) == len(ids) == len(told.divergence)
    np.testing.assert_allclose(untold.divergence, 0, atol=1e-6)
    assert untold.bits == pytest.approx(0, abs=1e-4) and abs(told.bits) > 0.1
    np.testing.assert_allclose(told.student_log_probs, untold.student_log_probs, atol=1e-4)
    assert told.teacher_entropy.shape == told.student_entropy.shape == (len(ids),)


def test_a_response_that_was_cut_has_no_end_to_score(policy, problems, responses):
    [whole] = policy.compare(problems[:1], [responses[0].text], [None])
    cut = sdistill.Response.from_json(responses[0].to_json() | {"finish": "length"})
    [without] = policy.compare(problems[:1], [cut], [None])
    assert len(without.tokens) == len(whole.tokens) - 1


def test_a_training_step_moves_the_weights(problems, data_dir):
    settings = sdpo.get_config("tiny").to_dict() | {"evaluation": None, "data_dir": str(data_dir)}
    settings["optimizer"]["warmup_steps"] = 0
    trainer = sdistill.Trainer(sdistill.parse(SDPOConfig, settings), problems)
    with pytest.raises(ConfigError, match=r"indices=\[99\] must be of the 2 problems: 0 to 1"):
        trainer.step([99])
    before = np.asarray(trainer.state.params["norm_D"][...])
    metrics, responses = trainer.step([0, 1, 0, 1])
    assert metrics["loss"] > 0 and len(responses) == 16 and len(trainer.metrics) == 1
    assert not np.array_equal(before, trainer.state.params["norm_D"][...])
    assert trainer.policy.model.config.vocab_size == 168


@pytest.mark.parametrize(
    ("page", "printed"), [("README.md", r"(.*\n)*[\d.]+ bits; most at '.+'\n"), ("docs/api.md", "")]
)
def test_the_example_of_a_page_runs(data_dir, page, printed):
    [example] = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    environment = os.environ | {"TFDS_DATA_DIR": str(data_dir), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", example], env=environment, capture_output=True, text=True, check=True
    )
    assert re.fullmatch(printed, done.stdout)


def test_what_does_not_fit_together_is_refused(policy, problems):
    task = sdistill.task_of("k3_pool")
    with pytest.raises(ConfigError, match="2 problems, 1 responses, 2 contents: give one of each"):
        policy.compare(problems, ["8"], [None, None])
    with pytest.raises(ConfigError, match="2 problems, 1 contents: give one of each"):
        policy.sample(problems, task=task, contents=[None])
    with pytest.raises(ConfigError, match="num_samples=0 must be positive"):
        policy.sample(problems, task=task, num_samples=0)
    with pytest.raises(ConfigError, match=r"problems=\[\]: there is nothing to respond to"):
        policy.sample([], task=task)
    with pytest.raises(ConfigError, match="kind='soluton' must be one of 'solution', 'answer', "):
        sdistill.ContextConfig("soluton", template="{prompt} solution {solution}")


def test_records_are_read_from_a_path_or_its_text(tmp_path):
    (tmp_path / "records.jsonl").write_text('{"step": 1}\n')
    assert sdistill.read_records(str(tmp_path / "records.jsonl")) == [{"step": 1}]
    assert sdistill.read_responses(str(tmp_path / "absent.jsonl.gz")) == []
