"""SFT on the signs puzzle, on examples of your own: one run of section 4.

    python -m sdistill.train --config configs/signs/sft.py --workdir runs/sft \
        --config.examples.source=FILE.jsonl.gz

FILE holds `prompt` and `response` on each line, such as `8 4 7 = 19 <think>` and what should follow; the
study leaves the sets of section 4 in `runs/sft/data`. Without it, and with `:tiny`, the source is the
pretraining corpus.
"""

from ml_collections import ConfigDict

from configs.signs.common import EVALUATION, MODEL, TINY_SLOTS, check_argument


def get_config(arg: str = "") -> ConfigDict:
    """Settings of one run; `tiny` for two steps of a small batch."""
    check_argument(arg, ("", "tiny"))
    tiny = arg == "tiny"
    return ConfigDict(
        {
            **MODEL,
            "objective": "sft",
            "seed": 0,
            "steps": 2 if tiny else 37,
            "optimizer": {"learning_rate": 3e-4, "warmup_steps": 4},
            "examples": {
                "source": "signs_corpus",
                "batch_size": 4 if tiny else 64,
                "sequence_length": 192,
                "packed": False,
            },
            "evaluation": {
                **EVALUATION,
                "slots": TINY_SLOTS if tiny else EVALUATION["slots"],
                "every": 1000,
                "datasets": ["k3_test", "k4_test"],
                "num_problems": 8 if tiny else 128,
            },
        }
    )
