"""A few steps of SDPO with Qwen3-0.6B on one chip of 16 GB: to see it run, not for a result.

    python -m sdistill.train --config configs/one_chip/sdpo.py --workdir runs/one_chip/sdpo

A step has 8 problems × 4 rollouts of at most 2,048 tokens, and its gradient comes from one row after another.
The teacher is a frozen copy in bfloat16, as is Adam's mean of gradients; the rest is float32.

Nothing here ran on a chip; that it fits:

    python launch/compile_check.py --config configs/one_chip/sdpo.py --topology v5e:1x1

`tiny` makes two steps of the puzzle with random weights of the same architecture.
"""

from ml_collections import ConfigDict

from configs.models import qwen3_0p6b
from configs.one_chip.generate import ONE, SPLIT
from configs.paper.common import TEMPLATE
from configs.signs import sdpo
from configs.signs.common import check_argument


def get_config(arg: str = "") -> ConfigDict:
    """Settings of one run; `tiny` for two steps on a laptop."""
    check_argument(arg, ("", "tiny"))
    if arg == "tiny":
        config = sdpo.get_config("tiny")
        config.evaluation = None
        config.update(qwen3_0p6b.get_config("tiny"))
        return config
    config = ConfigDict(
        {
            "objective": "sdpo",
            "seed": 0,
            "steps": 4,
            "optimizer": {"learning_rate": 1e-5, "warmup_steps": 1, "first_moment": "bfloat16"},
            "rollouts": {
                "split": SPLIT,
                "num_problems": None,
                "num_prompts": 8,
                "num_samples": 4,
                "max_prompt_length": 1024,
                "max_response_length": 2048,
                "slots": 16,
            },
            "teacher": {
                "context": {"kind": "solution", "template": TEMPLATE},
                "max_prompt_length": 3072,
                "weights": "fixed",
                "dtype": "bfloat16",
            },
            "checkpoint_every": 4,
            "micro_batch_size": 1,
            "logits_chunk_size": 512,
            "mesh": ONE,
        }
    )
    config.update(qwen3_0p6b.get_config())
    return config
