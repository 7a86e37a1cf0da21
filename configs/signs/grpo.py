"""GRPO on the signs puzzle: one run of section 5, in everything but the objective as `sdpo.py`.

    python -m sdistill.train --config configs/signs/grpo.py --workdir runs/grpo

`:tiny` makes two steps of a small batch.
"""

from ml_collections import ConfigDict

from configs.signs import sdpo


def get_config(arg: str = "") -> ConfigDict:
    """Settings of one run."""
    config = sdpo.get_config(arg or "solution")
    config.objective = "grpo"
    config.grpo = ConfigDict()  # the defaults are the paper's
    del config.sdpo
    del config.rollouts.max_teacher_prompt
    return config
