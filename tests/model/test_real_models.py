"""The models people train have the size that was published."""

import dataclasses

import pytest

from sdistill.model.config import ModelConfig, YarnConfig
from sdistill.model.hugging_face import from_hugging_face, to_hugging_face
from tests.public_files import FOLDER

CONFIGS = FOLDER / "hf"
"""The published `config.json` files, where somebody has put them."""

_QWEN2 = {"attention_bias": True, "qk_norm": None, "tie_word_embeddings": False}
_QWEN3 = {"rope_theta": 1_000_000.0, "max_position_embeddings": 40_960}
_OLMO3 = ModelConfig(
    *(100_278, 4096, 11_008, 32, 32, 32, 128),
    rope_theta=500_000.0,
    rope_scaling=YarnConfig(8.0, 8192, 1.2079441541679836, sliding_layers=False),
    tie_word_embeddings=False,
    qk_norm="projection",
    norm="output",
    layer_types=(*("sliding_attention",) * 3, "full_attention") * 8,
    sliding_window=4096,
    max_position_embeddings=65_536,
)

# Width and depth of each model (vocabulary, width, feed-forward width, layers, query heads, key heads, head
# width) as its config.json on Hugging Face says, and how many parameters transformers 5.23 makes of it,
# tied embeddings counted once. Qwen's model cards: 0.6B, 1.7B and 8.2B; DeepSeek's: 1.5B and 7B.
MODELS = {
    "Qwen3-0.6B": (
        ModelConfig(151_936, 1024, 3072, 28, 16, 8, 128, **_QWEN3),
        596_049_920,
    ),
    "Qwen3-1.7B": (
        ModelConfig(151_936, 2048, 6144, 28, 16, 8, 128, **_QWEN3),
        1_720_574_976,
    ),
    "Qwen3-8B": (
        ModelConfig(151_936, 4096, 12_288, 36, 32, 8, 128, tie_word_embeddings=False, **_QWEN3),
        8_190_735_360,
    ),
    "DeepSeek-R1-Distill-Qwen-1.5B": (
        ModelConfig(151_936, 1536, 8960, 28, 12, 2, 128, max_position_embeddings=131_072, **_QWEN2),
        1_777_088_000,
    ),
    "DeepSeek-R1-Distill-Qwen-7B": (
        ModelConfig(152_064, 3584, 18_944, 28, 28, 4, 128, max_position_embeddings=131_072, **_QWEN2),
        7_615_616_512,
    ),
    "DeepSeek-R1-Distill-Qwen-32B": (
        ModelConfig(
            *(152_064, 5120, 27_648, 64, 40, 8, 128),
            rope_theta=1_000_000.0,
            rms_norm_eps=1e-5,
            max_position_embeddings=131_072,
            **_QWEN2,
        ),
        32_763_876_352,
    ),
    "Olmo-3-7B-Instruct": (_OLMO3, 7_298_011_136),
    "Olmo-3.1-32B-Instruct": (
        dataclasses.replace(
            _OLMO3,
            hidden_size=5120,
            intermediate_size=27_648,
            num_hidden_layers=64,
            num_attention_heads=40,
            num_key_value_heads=8,
            layer_types=_OLMO3.layer_types * 2,
        ),
        32_233_522_176,
    ),
}
ALL = pytest.mark.parametrize("name", MODELS)


@ALL
def test_the_number_of_parameters_is_the_published_one(name):
    config, published = MODELS[name]
    assert config.parameter_count() == published


@ALL
def test_the_published_config_is_read_as_this_model(name):
    folder = CONFIGS / name
    if not folder.is_dir():
        pytest.skip(f"no {folder} with the published config.json")
    paths = [path for path in (folder / "config.json", folder / "config.assembled.json") if path.exists()]
    config, published = MODELS[name]
    assert [from_hugging_face(path) for path in paths] == [config]


@ALL
def test_transformers_counts_as_many(name, tmp_path):
    pytest.importorskip("torch", reason="counts with transformers, which needs torch")
    pytest.importorskip("transformers", reason="counts with transformers")
    from tests.model.oracle import transformers_side as theirs

    config, published = MODELS[name]
    (tmp_path / "config.json").write_text(to_hugging_face(config, "bfloat16"))
    assert theirs.parameter_count(tmp_path) == published
