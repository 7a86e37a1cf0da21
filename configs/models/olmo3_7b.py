"""Olmo-3-7B-Instruct: what a training config of this model has in common.

    config = section.get_config(...)
    config.update(olmo3_7b.get_config())

Section 5 of the paper. It never thinks: it is the instruct model.
7,298,011,136 parameters: 27.2 GiB in float32, 81.6 GiB with Adam's moments. `:tiny` is the same
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
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "head_dim": 8,
                "tie_word_embeddings": False,
                "qk_norm": "projection",
                "norm": "output",
                "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
                "sliding_window": 16,
                "rope_scaling": {
                    "factor": 8.0,
                    "original_max_position_embeddings": 128,
                    "sliding_layers": False,
                },
            },
        }
    else:
        model = {"init_from": "allenai/Olmo-3-7B-Instruct"}
    return ConfigDict(
        {
            **model,
            "parameters": "float32",
            "compute": {"dtype": "bfloat16", "remat": "full", "attention": "auto"},
        }
    )
