"""GRPO on the signs puzzle: one run of section 5, in everything but the objective as `sdpo.py`.

    python -m sdistill.train --config configs/signs/grpo.py --workdir runs/grpo
    python -m sdistill.train --config configs/signs/grpo.py:dapo --workdir runs/dapo

The argument is one of `sdistill.config.GRPO_PRESETS`, by default none of them: the settings of the
paper. `tiny` makes two steps of a small batch.
"""

import dataclasses

from ml_collections import ConfigDict

from configs.signs import sdpo
from configs.signs.common import check_argument
from sdistill.config import GRPO_PRESETS as PRESETS


def get_config(arg: str = "") -> ConfigDict:
    """Settings of one run; `arg` is a preset or `tiny`."""
    check_argument(arg, ("", "tiny", *PRESETS))
    config = sdpo.get_config("tiny" if arg == "tiny" else "solution")
    config.objective = "grpo"
    config.loss = ConfigDict(dataclasses.asdict(PRESETS[arg]) if arg in PRESETS else {})
    del config.teacher
    return config
