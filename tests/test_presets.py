"""The presets of configs/models: real names for real runs, and a tiny form of each that trains."""

import dataclasses
import importlib
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs.signs import pretrain, sdpo
from sdistill.config import AnyTrainConfig
from sdistill.model.hugging_face import to_hugging_face
from sdistill.settings import parse
from sdistill.storage import write_records
from sdistill.train import train

FOLDER = Path(__file__).parents[1] / "configs" / "models"
FAMILIES = {
    "olmo3_7b": "olmo3",
    "qwen3_0p6b": "qwen3",
    "qwen3_1p7b": "qwen3",
    "qwen3_8b": "qwen3",
    "r1_distill_qwen_1p5b": "qwen2",
    "r1_distill_qwen_7b": "qwen2",
}
TRAINED = ("olmo3_7b", "qwen3_0p6b", "r1_distill_qwen_1p5b")
"""One of each family; with and without a tied head."""

ALL = pytest.mark.parametrize("name", FAMILIES)


def preset(name: str, arg: str) -> ConfigDict:
    return importlib.import_module(f"configs.models.{name}").get_config(arg)


def config(recipe: ConfigDict, name: str, arg: str) -> AnyTrainConfig:
    recipe.update(preset(name, arg))
    return parse(AnyTrainConfig, recipe.to_dict())


def test_every_file_of_the_folder_is_a_preset_but_what_they_share():
    assert {path.stem for path in FOLDER.glob("*.py")} == {*FAMILIES, "common"}


@pytest.mark.parametrize("name", TRAINED)
def test_the_tiny_form_trains_two_steps(name, tmp_path):
    examples = [{"prompt": "8 4 7 = 5 <think>", "response": "</think> + -"}] * 64
    write_records(tmp_path / "examples.jsonl.gz", examples)
    recipe = pretrain.get_config("tiny")
    recipe.examples.source = str(tmp_path / "examples.jsonl.gz")  # the corpus takes longer to read
    model = train(config(recipe, name, "tiny"), tmp_path / "run")
    assert model.config.compute.dtype == "bfloat16" and model.config.compute.remat == "full"
    assert '"step": 2' in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert f'"model_type": "{FAMILIES[name]}"' in to_hugging_face(model.config, "float32")


@ALL
def test_other_tiny_forms_are_those_with_or_without_a_tied_head(name):
    (trained,) = (other for other in TRAINED if FAMILIES[other] == FAMILIES[name])
    ours, theirs = (config(pretrain.get_config("tiny"), other, "tiny") for other in (name, trained))
    tied = ours.model.tie_word_embeddings
    model = dataclasses.replace(theirs.model, tie_word_embeddings=tied)
    assert ours == dataclasses.replace(theirs, model=model)
    assert tied == (name in ("qwen3_0p6b", "qwen3_1p7b"))  # as their config.json has it


@ALL
def test_the_real_form_names_a_model(name):
    real = config(sdpo.get_config(), name, "")
    assert real.model is None and real.init_from.count("/") == 1


@pytest.mark.parametrize(
    ("recipe", "known"),
    [
        ("signs.sdpo", "'solution', 'answer', 'tiny'"),
        ("signs.grpo", "'', 'tiny', 'dr_grpo', 'dapo'"),
        *((f"signs.{name}", "'', 'tiny'") for name in ("sft", "pretrain")),
        *((f"signs.{name}", "'', 'quick', 'tiny'") for name in ("study", "fixes", "probes")),
        ("signs.generate", "'plain', 'walk', .*'tiny'"),
        ("one_chip.sdpo", "'', 'tiny'"),
    ],
)
def test_an_unknown_argument_of_a_config_is_refused_with_those_that_it_knows(recipe, known):
    with pytest.raises(ValueError, match=f"^unknown argument 'foo'; known: {known}$"):
        importlib.import_module(f"configs.{recipe}").get_config("foo")


@ALL
def test_other_arguments_are_refused(name):
    with pytest.raises(ValueError, match="unknown argument 'small'; known: '', 'tiny'"):
        preset(name, "small")
