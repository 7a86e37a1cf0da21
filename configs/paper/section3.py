"""Section 3: what richer contexts do to answers. DeepSeek-R1-Distill-Qwen-7B, 100 problems of DAPO-Math-17k.

The steps, in this order; each is one generation, and all after the first take its problems:

    for step in walk unguided solution answer regenerated regenerated_again; do
      python -m sdistill.generate --config configs/paper/section3.py:$step --workdir runs/section3/$step
    done

`walk` answers problems in the order of the data, 8 times each, until 100 had 1 to 4 right. The others answer
these again: c = ∅, c = s, c = s∖think, then c = ỹ, the correct response to c = s, and so on; where no
response was correct, the first one is passed on. As released: temperature 0.6, top-p 0.95, top-k 20, at most
32,768 new tokens, seed 0 in the walk. Reported (two summaries agree): score and mean length of 0.30 and
13,054 tokens for ∅, 0.98 and 1,873 for s, 0.78 and 12,036 for s∖think, 0.95 and 2,808 for ỹ.

The argument is STEP or STEP:WHERE. WHERE: `v5e_8` (the default), `v5e_4`, the smallest slice, or `tiny`, the
same on the puzzle.

Estimates: answers × their tokens as reported / slots × the bound of a token's time in the longest answers
(docs/scale.md); in hours on v5e_8 (32 slots: 9.5 ms, 16 under guidance: 11.5) and v5e_4 (8 slots: 6.9 ms, 4:
7.9). `unguided`, 10 million tokens: 0.8 and 2.4; `solution`, 1.5 million: 0.3 and 0.8; `answer`, 9.6 million:
1.9 and 5.3; `regenerated`, 2.2 million: 0.4 and 1.2, and about as much again for the next. `walk`: 0.6 and
1.6 for each 64 problems; how many it passes over until it has its 100 is not known. Real hours are several
times as many.
"""

from ml_collections import ConfigDict

from configs.paper.common import ONE, slice_of
from configs.signs.common import CONTEXT

STEPS = ("walk", "unguided", "solution", "answer", "regenerated", "regenerated_again")
SHOWN_FROM = {"regenerated": "solution", "regenerated_again": "regenerated"}
TEMPLATE = "{prompt}\n\nCorrect solution: {solution}\n\nCorrectly solve the original question."
"""The user turn under guidance, as released."""


SLICES = {
    "v5e_8": {"mesh": ONE | {"fsdp": 2, "tensor": 4}, "slots": 32},
    "v5e_4": {"mesh": ONE | {"tensor": 4}, "slots": 8},
}
"""How it lies on a slice. A guided answer has a prompt as long as an answer: half as many fit."""


def get_config(arg: str = "walk") -> ConfigDict:
    """Settings of one step; `arg` is its name, or that and where."""
    step, _, where = arg.partition(":")
    if step not in STEPS:
        raise ValueError(f"unknown argument {arg!r}; give STEP or STEP:WHERE, STEP one of {', '.join(STEPS)}")
    where = slice_of(where, SLICES)
    config = _tiny() if where == "tiny" else _paper(where)
    if step == "walk":
        config.walk = {"num_problems": 100, "min_correct": 1, "max_correct": 4, "stride": 64}
        if where == "tiny":
            config.walk.update({"num_problems": 4, "max_correct": 7, "stride": 8})
        return config
    config.after = f"runs/section3/{SHOWN_FROM.get(step, 'walk')}"
    config.seed = 1  # fresh answers: those of the walk were chosen for how many are right
    if step != "unguided":
        guide(config, "answer" if step == "answer" else "solution", tiny=where == "tiny")
        config.first_if_none = step in SHOWN_FROM
    return config


def guide(config: ConfigDict, kind: str, *, tiny: bool) -> None:
    """Shows a correct answer, or the end of one, before the problem is answered."""
    config.max_prompt_length += config.max_response_length
    config.context = {"kind": kind, **(CONTEXT if tiny else {"template": TEMPLATE})}
    if not tiny:
        config.slots //= 2


def _paper(where: str) -> ConfigDict:
    return ConfigDict(
        {
            "init_from": "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
            "tokenizer": None,
            "dtype": "bfloat16",
            "split": "dapo_math_17k",
            "num_problems": None,
            "num_samples": 8,
            "max_prompt_length": 2048,
            "max_response_length": 32_768,
            "sampling": {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
            "seed": 0,
            "after": None,
            "data_dir": None,
            **SLICES[where],
        }
    )


def _tiny() -> ConfigDict:
    config = _paper("v5e_8")
    changes = {"init_from": "signs_base", "dtype": "float32", "split": "k3_pool", "num_problems": 32}
    lengths = {"max_prompt_length": 16, "max_response_length": 112}
    config.update(
        {
            **changes,
            **lengths,
            "sampling": {"temperature": 1.0, "top_p": 1.0},
            "mesh": ONE,
        }
    )
    config.sampling.top_k = None
    return config
