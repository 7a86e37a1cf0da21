"""Qwen3-0.6B: what a training config of this model has in common.

    config = section.get_config(...)
    config.update(qwen3_0p6b.get_config())

The smallest of the family, to try things out on one chip. The template has a switch for thinking.
596,049,920 parameters: 2.2 GiB in float32, 6.7 GiB with Adam's moments. `:tiny` is the same
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
                "tie_word_embeddings": True,
                "qk_norm": "head",
            },
        }
    else:
        model = {"init_from": "Qwen/Qwen3-0.6B"}
    return ConfigDict(
        {
            **model,
            "parameters": "float32",
            "compute": {"dtype": "bfloat16", "remat": "full", "attention": "auto"},
        }
    )
