"""Qwen3-8B: what a training config of this model has in common.

    config = section.get_config(...)
    config.update(qwen3_8b.get_config())

Sections 5 and 6 of the paper, with thinking on and off. The template has a switch for thinking.
8,190,735,360 parameters: 30.5 GiB in float32, 91.5 GiB with Adam's moments. `:tiny` is the same
architecture with random weights, small enough for two steps on a laptop.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Fields of TrainConfig; `tiny` for random weights."""
    if arg == "tiny":
        model = {
            "init_from": None,
            "model": {
                "vocab_size": 168,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "tie_word_embeddings": False,
                "qk_norm": "head",
            },
        }
    else:
        model = {"init_from": "Qwen/Qwen3-8B"}
    return ConfigDict(
        {
            **model,
            "parameters": "float32",
            "compute": {"dtype": "bfloat16", "remat": "full", "attention": "auto"},
        }
    )
