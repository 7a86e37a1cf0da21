"""The presets of configs/models: real names for real runs, and a tiny form of each that trains."""

import importlib.util
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs.signs import pretrain, sdpo
from sdistill.config import parse
from sdistill.models.hugging_face import to_hugging_face
from sdistill.train import train
from sdistill.training.config import TrainConfig

FOLDER = Path(__file__).parents[1] / "configs" / "models"
PRESETS = sorted(path.stem for path in FOLDER.glob("*.py"))


def preset(name: str, arg: str):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


def config(recipe: ConfigDict, name: str, arg: str) -> TrainConfig:
    recipe.update(preset(name, arg))
    return parse(TrainConfig, recipe.to_dict())


@pytest.mark.parametrize("name", PRESETS)
def test_the_tiny_form_trains_two_steps(name, tmp_path):
    model = train(config(pretrain.get_config("tiny"), name, "tiny"), tmp_path)
    assert model.config.compute.dtype == "bfloat16" and model.config.compute.remat == "full"
    assert '"step": 2' in (tmp_path / "metrics.jsonl").read_text()
    family = {"qwen3": "qwen3", "r1": "qwen2", "olmo3": "olmo3"}[name.split("_")[0]]
    assert f'"model_type": "{family}"' in to_hugging_face(model.config, "float32")


@pytest.mark.parametrize("name", PRESETS)
def test_the_real_form_names_a_model(name):
    real = config(sdpo.get_config(), name, "")
    assert real.model is None and real.init_from.count("/") == 1
