"""Section 4: SFT on matched answers, evaluated on AIME24, AIME25, AMC23 and MATH500 with 16 answers each.

    for set in unguided guided; do
      python -m sdistill.train --config configs/paper/section4_sft.py:$set --workdir runs/section4/sft_$set
    done

The sets come from configs/paper/section4.py. The paper's hyper-parameters of SFT were not published in
anything available: 150 steps of 16 packed rows, learning rate 1e-5, 10 warm-up steps and no decay are ours.
Reported, AIME24: 51.04 after unguided and 20.21 after guided answers, from 54.79.

The argument is SET or SET:WHERE, WHERE as in `section5_sdpo.py` for `deepseek_7b`, or `tiny`, which makes two
steps with random weights. Estimated at most, for full rows: 150 × 16 × 34,816 = 84 million tokens, and
6 × 7.6e9 parameters × 84e6 = 3.8e18 FLOPs; on v5p_4 150 × 16 / 4 rows × 6.9 s (docs/scale.md), 1.2 hours
at least without the evaluations.
"""

from ml_collections import ConfigDict

from configs.models import r1_distill_qwen_7b
from configs.paper import common


def get_config(arg: str = "guided") -> ConfigDict:
    """Settings of one run; `arg` is the set to learn from, or that and where."""
    name, _, where = arg.partition(":")
    if name not in ("unguided", "guided"):
        raise ValueError(f"unknown argument {arg!r}; give unguided or guided, or one of them and :WHERE")
    layouts = common.MODELS["deepseek_7b"].layouts
    where = common.slice_of(where, layouts)
    tiny = where == "tiny"
    config = ConfigDict(
        {
            "objective": "sft",
            "seed": 0,
            "steps": 2 if tiny else 150,
            "optimizer": {"learning_rate": 1e-5, "warmup_steps": 10},
            "examples": {
                "source": f"runs/section4/matched/{name}.jsonl.gz",
                "batch_size": 4 if tiny else 16,
                "sequence_length": 256 if tiny else 2048 + 32_768,
                "packed": True,
            },
            "checkpoint_every": 2 if tiny else 25,
        }
    )
    if not tiny:
        config.update({name: value for name, value in layouts[where].items() if name != "rollouts"})
        on_policy = common.on_policy("deepseek_7b", where, split="math500", prompts=8, mini_batch=8)
        config.evaluation = on_policy.evaluation
        config.evaluation.every = 150
    config.update(r1_distill_qwen_7b.get_config("tiny" if tiny else ""))
    return config
