"""What contexts do to a model of Hugging Face's, on one chip of 16 GB: section 3 in small, Qwen3-0.6B.

    for step in walk unguided answer solution; do
      python -m sdistill.generate --config configs/one_chip/generate.py:$step --workdir runs/one_chip/$step
    done

`walk` answers problems of DAPO-Math-17k, 4 times each, until 8 had 1 to 3 right; the others answer these
again: c = ∅, c = s∖think, c = s. Another model: `--config.init_from=NAME`.

Nothing here ran on a chip; that it fits:

    python launch/compile_check.py --config configs/one_chip/generate.py:solution --topology v5e:1x1

STEP:tiny is the same on the puzzle, with its base.
"""

from ml_collections import ConfigDict

from configs.paper.common import TEMPLATE
from configs.signs.common import CONTEXT

STEPS = ("walk", "unguided", "answer", "solution")
MODEL, SPLIT = "Qwen/Qwen3-0.6B", "dapo_math_17k_seen_64"
ONE = {"data": 1, "fsdp": 1, "tensor": 1, "context": 1}


def get_config(arg: str = "walk") -> ConfigDict:
    """Settings of one step; `arg` is its name, or that and `:tiny`."""
    step, _, size = arg.partition(":")
    if step not in STEPS or size not in ("", "tiny"):
        raise ValueError(f"unknown argument {arg!r}; give {', '.join(STEPS)}, or one of them and :tiny")
    tiny, guided = size == "tiny", step in ("answer", "solution")
    prompt, response = (16, 112) if tiny else (1024, 4096)
    config = ConfigDict(
        {
            "init_from": "signs_base" if tiny else MODEL,
            "dtype": "float32" if tiny else "bfloat16",
            "split": "k3_pool" if tiny else SPLIT,
            "num_problems": None,
            "num_samples": 4,
            "max_prompt_length": prompt + (response if guided else 0),
            "max_response_length": response,
            "sampling": {"temperature": 1.0},  # the distribution that bits are defined on
            "slots": 8 if guided else 16,
            "seed": int(step != "walk"),  # fresh answers: the walk's were chosen for how many are right
            "after": None if step == "walk" else "runs/one_chip/walk",
            "data_dir": None,
            "mesh": ONE,
        }
    )
    if step == "walk":
        config.walk = {"num_problems": 4 if tiny else 8, "min_correct": 1, "max_correct": 3, "stride": 8}
    if guided:
        config.context = {"kind": step, **(CONTEXT if tiny else {"template": TEMPLATE})}
    return config
