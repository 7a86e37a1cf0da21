"""Section 6: task coverage. Qwen3-8B, thinking off, on |D| problems; 64 prompts × 8 rollouts a step.

    python -m sdistill.train --config configs/paper/section6.py:sdpo_64 --workdir runs/section6_sdpo_64
    python -m sdistill.train --config configs/paper/section6.py:grpo_all:v6e_16 --workdir runs/section6_grpo

The argument is WHAT or WHAT:WHERE. WHAT: objective and |D|, `sdpo_` or `grpo_` and 1, 8, 64, 128, 512 or
`all`; where there are fewer problems than prompts, they come more than once. WHERE as in `section5_sdpo.py`
for `qwen3_8b`. Estimates: 100 steps of 512 responses, at most 1.0 billion tokens; a step takes a quarter of
the time there, where it has four times as many responses: 100 take at least 50 hours on v5p_8, were all
responses full, 35 on v6e_16 and 80 on v5e_16.
Reported: with |D| up to 128 SDPO gains on the trained problems quickly; the smaller |D|, the more it loses
elsewhere; on all problems it falls below the base on AIME24, where GRPO gains.
"""

from ml_collections import ConfigDict

from configs.paper import common

MODEL = "qwen3_8b_nothink"
SIZES = ("1", "8", "64", "128", "512", "all")
OBJECTIVES = {"sdpo": common.sdpo, "grpo": common.grpo}


def get_config(arg: str = "sdpo_64") -> ConfigDict:
    """Settings of one run."""
    known = {f"{objective}_{size}": MODEL for objective in OBJECTIVES for size in SIZES}
    what, where = common.parsed(arg, known)
    objective, size = what.split("_")
    split = "dapo_math_17k" if size == "all" else f"dapo_math_17k_seen_{size}"  # the released sets
    config = common.on_policy(MODEL, where, split=split, prompts=64, mini_batch=32)
    return OBJECTIVES[objective](config)
