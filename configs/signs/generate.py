"""Sections 3 and 4 of the paper on the signs puzzle, step by step; each step is one generation.

Section 3: walk the problems until 100 have one to four of eight responses right, then answer these again,
without a context and with each kind of it; `regenerated` shows the correct responses of `solution`:

    python -m sdistill.generate --config configs/signs/generate.py:walk --workdir runs/walk
    python -m sdistill.generate --config configs/signs/generate.py:unguided --workdir runs/unguided
    python -m sdistill.generate --config configs/signs/generate.py:solution --workdir runs/solution
    python -m sdistill.generate --config configs/signs/generate.py:regenerated --workdir runs/regenerated

and so on for `answer`, `partial` and `other_problem`. Section 4 needs matched sets of correct responses:

    python -m sdistill.generate --config configs/signs/generate.py --workdir runs/plain
    python -m sdistill.generate --config configs/signs/generate.py:answer --workdir runs/guided
        --config.after=runs/plain
    python -m sdistill.match runs/plain runs/guided --responses 800 --out runs/matched

Each takes seconds to a minute on a laptop's CPU. The argument `tiny` asks for 16 responses.
"""

from ml_collections import ConfigDict

from configs.signs.common import CONTEXT, MODEL, TINY_SLOTS, check_argument

KINDS = ("solution", "answer", "partial", "other_problem")
STEPS = ("plain", "walk", "unguided", *KINDS, "regenerated", "tiny")


def get_config(arg: str = "plain") -> ConfigDict:
    """Settings of one generation; `arg` is a step, or `tiny`."""
    check_argument(arg, STEPS)
    config = ConfigDict(
        {
            "split": "k3_pool" if arg == "tiny" else "k4_pool",  # the base solves most of three numbers
            "num_problems": {"tiny": 8, "plain": 200}.get(arg),
            "num_samples": 2 if arg == "tiny" else 8,
            "max_prompt_length": 16,
            "max_response_length": 112,
            "sampling": {"temperature": 1.0},
            "slots": TINY_SLOTS if arg == "tiny" else 256,
            "stop": (),
            "seed": 0,
            "init_from": MODEL["init_from"],
            "mesh": MODEL["mesh"],
            "after": None,
            "data_dir": None,
        }
    )
    if arg == "walk":
        config.walk = {"num_problems": 100, "min_correct": 1, "max_correct": 4}
    elif arg not in ("plain", "tiny"):
        config.after = "runs/solution" if arg == "regenerated" else "runs/walk"
        config.seed = 1  # fresh responses: those of the walk were chosen for how many are right
    if arg in (*KINDS, "regenerated"):
        config.context = {"kind": "solution" if arg == "regenerated" else arg, **CONTEXT}
        config.first_if_none = arg == "regenerated"
        config.max_prompt_length = 128  # a solution with its thinking, or two problems
    if arg == "partial":
        config.context.fraction = 0.5
    return config
