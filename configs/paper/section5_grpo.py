"""Section 5: GRPO on mathematics; only the objective and its learning rate differ from `section5_sdpo.py`.

    python -m sdistill.train --config configs/paper/section5_grpo.py:qwen3_8b --workdir runs/section5_grpo

The argument is MODEL or MODEL:WHERE, as there, and steps and tokens are the same. Estimate: sampling takes
as long as there, and the gradient, which has no teacher, 64 to 68 % of the arithmetic by the models'
shapes. The paper's figure of it on AIME24: about level with the base for Qwen3-8B, thinking on.
"""

from ml_collections import ConfigDict

from configs.paper import common


def get_config(arg: str = "qwen3_8b") -> ConfigDict:
    """Settings of one run."""
    model, where = common.parsed(arg, {name: name for name in common.MODELS})
    return common.grpo(common.on_policy(model, where, split="dapo_math_17k", prompts=256, mini_batch=128))
