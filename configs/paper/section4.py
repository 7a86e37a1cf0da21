"""Section 4: off-policy self-distillation. SFT on 800 of the model's own correct answers, guided or not.

    for step in unguided guided; do
      python -m sdistill.generate --config configs/paper/section4.py:$step --workdir runs/section4/$step
    done
    python -m sdistill.match runs/section4/unguided runs/section4/guided --out runs/section4/matched
    python -m sdistill.train --config configs/paper/section4_sft.py:guided --workdir runs/section4/sft_guided

DeepSeek-R1-Distill-Qwen-7B on the first 400 problems of DAPO-Math-17k; the guided answers see c = s, the
first correct unguided one. Matching takes the same problems and as many answers to each from both, correct
ones only. How many problems and samples the paper started from is not known: 400 × 4 is ours; `match` says
if that was too little. Sampling and slices as in section 3. Reported (two summaries agree), AIME24: base
54.79, SFT on unguided answers (about 12,000 tokens each) 51.04, on guided ones (about 2,000) 20.21. The
argument is STEP or STEP:WHERE; STEP:tiny is the same on the puzzle. Estimates, by the formula
of section 3: `unguided`, 1,600 answers × 12,000 = 19 million tokens, 1.6 hours on v5e_8 and 4.6 on v5e_4;
`guided`, × 2,000 = 3.2 million, 0.6 and 1.8.
"""

from ml_collections import ConfigDict

from configs.paper import section3


def get_config(arg: str = "unguided") -> ConfigDict:
    """Settings of one of the two generations; `arg` is its name, or that and where."""
    step, _, where = arg.partition(":")
    if step not in ("unguided", "guided"):
        raise ValueError(f"unknown argument {arg!r}; give unguided or guided, or one of them and :WHERE")
    config = section3.get_config(f"unguided:{where}")
    config.update({"num_problems": 32 if where == "tiny" else 400, "num_samples": 4, "seed": 0})
    config.after = None
    if step == "guided":
        config.after = "runs/section4/unguided"
        section3.guide(config, "solution", tiny=where == "tiny")
    return config
