"""The paper's generation protocols (sections 3 and 4), from their configs, step by step."""

import dataclasses
import importlib
from pathlib import Path

import pytest

from sdistill.config import SFTConfig
from sdistill.data.prepare import prepare
from sdistill.generate import DONE, GenerateConfig, generate, responses_by_problem
from sdistill.match import match
from sdistill.model.config import ModelConfig
from sdistill.model.weights import new_model, save_pretrained
from sdistill.settings import parse
from sdistill.storage import read_records
from sdistill.train import train
from tests import tiny
from tests.public_files import FOLDER

DATA = FOLDER
QWEN3 = DATA / "hf" / "Qwen3-8B"


def settings(section, arg, **changes):
    module = importlib.import_module(f"configs.paper.{section}")
    return parse(GenerateConfig, module.get_config(arg).to_dict() | changes)


def section3(folder, **changes):
    """Generates all steps; returns each step's responses by problem."""
    found = {}
    for step in ("walk", "unguided", "solution", "answer", "regenerated", "regenerated_again"):
        config = settings("section3", f"{step}:tiny", **changes)
        if config.after is not None:
            config = dataclasses.replace(config, after=str(folder / Path(config.after).name), num_samples=2)
        found[step] = run(config, folder / step)
    return found


def run(config, folder):
    generate(config, folder)
    return responses_by_problem(folder)


def test_section_3_on_the_puzzle(tmp_path, data_dir):
    found = section3(tmp_path, data_dir=str(data_dir))
    kept = list(found["walk"])
    assert len(kept) == 4
    assert all(1 <= sum(r.correct for r in found["walk"][name]) <= 7 for name in kept)
    assert all(list(found[step]) == kept for step in found)
    of_walk = {name: next(r for r in group if r.correct) for name, group in found["walk"].items()}
    for name in kept:
        assert found["unguided"][name][0].prompt == of_walk[name].prompt
        assert of_walk[name].text in found["solution"][name][0].prompt
        assert of_walk[name].text not in found["answer"][name][0].prompt
        shown = [r.text for r in found["regenerated"][name]]
        assert any(text in found["regenerated_again"][name][0].prompt for text in shown)


def test_section_4_on_the_puzzle(tmp_path, data_dir):
    """Two matched sets; a model learns from one of them."""
    changes = {"data_dir": str(data_dir), "num_problems": 8}
    run(settings("section4", "unguided:tiny", **changes), tmp_path / "unguided")
    run(settings("section4", "guided:tiny", **changes, after=str(tmp_path / "unguided")), tmp_path / "guided")
    out = tmp_path / "matched"
    counts = match([tmp_path / "unguided", tmp_path / "guided"], out, responses=12, per_problem=2)
    assert 4 < counts["responses"] <= 12
    sets = [read_records(out / f"{name}.jsonl.gz") for name in ("unguided", "guided")]
    assert [row["prompt"] for row in sets[0]] == [row["prompt"] for row in sets[1]]
    assert sets[0] != sets[1]
    values = importlib.import_module("configs.paper.section4_sft").get_config("guided:tiny").to_dict()
    values["examples"]["source"] = str(out / "guided.jsonl.gz")
    train(parse(SFTConfig, values), tmp_path / "sft")
    assert len(read_records(tmp_path / "sft" / "metrics.jsonl")) == 2


@pytest.mark.parametrize("name", ["section3", "section4"])
def test_unknown_steps_are_refused(name):
    with pytest.raises(ValueError, match=r"unknown argument 'nothing'; give .*unguided"):
        importlib.import_module(f"configs.paper.{name}").get_config("nothing")


@pytest.mark.parametrize(
    "arg", ["walk", "unguided", "solution", "answer", "regenerated", "regenerated_again"]
)
def test_the_paper_s_own_settings_are_accepted(arg):
    config = settings("section3", arg)
    assert (config.num_samples, config.max_response_length, config.sampling.top_k) == (8, 32_768, 20)
    settings("section4", "guided" if config.context else "unguided")


@pytest.fixture(scope="module")
def random_qwen3(tmp_path_factory):
    """Qwen3's architecture and vocabulary, very narrow, with random weights."""
    folder = tmp_path_factory.mktemp("random_qwen3")
    shape = {"vocab_size": 151_936, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config: ModelConfig = dataclasses.replace(tiny.CONFIG, **shape, max_position_embeddings=4096)
    save_pretrained(new_model(config, seed=0), folder)
    return folder


@pytest.mark.skipif(not QWEN3.is_dir(), reason=f"no tokenizer in {QWEN3}")
def test_the_plumbing_holds_with_real_prompts_templates_and_verification(random_qwen3, tmp_path):
    """MATH-500 in Qwen3's words. With random weights nothing is solved, and no figure means anything."""
    prepare("math500", tmp_path / "data", files=[DATA / "math" / "math500.parquet"])
    changes = {
        **{"init_from": str(random_qwen3), "tokenizer": str(QWEN3), "dtype": "float32", "split": "math500"},
        **{"data_dir": str(tmp_path / "data"), "num_problems": 4, "num_samples": 2},
        **{"max_response_length": 24, "slots": 4},
        "mesh": {"data": 1},
    }
    walk = {"num_problems": 2, "min_correct": 0, "max_correct": 1, "stride": 2}
    walked = run(settings("section3", "walk", **changes, max_prompt_length=512, walk=walk), tmp_path / "walk")
    assert len(walked) == 2
    record = next(iter(walked.values()))[0]
    assert "Please reason step by step" in record.prompt and record.length == 24
    assert not record.correct and record.feedback and not record.timed_out
    guided = run(
        settings("section3", "regenerated", **changes, max_prompt_length=1024, after=str(tmp_path / "walk")),
        tmp_path / "regenerated",
    )
    for name, group in guided.items():
        shown = walked[name][0].text
        assert f"Correct solution: {shown}\n\nCorrectly solve the original question." in group[0].prompt
    assert (tmp_path / "regenerated" / DONE).exists()
