"""The signs puzzle's base model, from scratch.

    python -m sdistill.train --config configs/signs/pretrain.py --workdir runs/signs_base

0.32 M parameters learn the Bayesian reasoner's traces of puzzles of three and four numbers: 1,000 steps
of 40 packed rows of 192 tokens. The result is shipped in `sdistill/model/assets/signs_base`.
`:tiny` makes two steps.
"""

from ml_collections import ConfigDict

from configs.signs.common import MODEL, check_argument


def get_config(arg: str = "") -> ConfigDict:
    """Settings; `tiny` for two steps of a small batch."""
    check_argument(arg, ("", "tiny"))
    tiny = arg == "tiny"
    steps = 2 if tiny else 1000
    return ConfigDict(
        {
            **MODEL,
            "objective": "pretrain",
            "seed": 0,
            "steps": steps,
            "init_from": None,
            "model": {
                "vocab_size": 168,  # the tokenizer's 166, and a multiple of 8 to split over devices
                "hidden_size": 96,
                "intermediate_size": 256,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 24,
                "initializer_range": 0.05,
            },
            "optimizer": {
                "learning_rate": 2e-3,
                "warmup_steps": 1 if tiny else 100,
                "schedule": "cosine",
                "decay_steps": steps,
                "b2": 0.98,
                "weight_decay": 0.01,
            },
            "examples": {
                "source": "signs_corpus",
                "batch_size": 4 if tiny else 40,
                "sequence_length": 192,
                "packed": True,
            },
            "checkpoint_every": 200,
        }
    )
