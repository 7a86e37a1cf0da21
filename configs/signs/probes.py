"""What doubt does: words forbidden, forced, moved, or left out of the loss, on the signs puzzle.

    python -m sdistill.study --config configs/signs/probes.py --workdir runs/probes
    python -m sdistill.study --config configs/signs/probes.py:quick --workdir runs/quick_probes

The base, and GRPO and SDPO (c = s) trained as in section 5 of `study.py`, answer puzzles of four numbers; one
seed. As many that a difference of 3 points of accuracy would be found; `quick` is shorter and finds larger
ones, `tiny` only exercises the code. What comes out, and what it takes, is in docs/probes.md.
"""

from ml_collections import ConfigDict

from configs.signs import study

PROBLEMS = {"": 4777, "quick": 64, "tiny": 6}  # the first: all that there are


def get_config(arg: str = "") -> ConfigDict:
    """Settings of the study; `arg` is a key of `study.SIZES`."""
    paper = study.get_config(arg)
    for run in (paper.grpo, paper.sdpo):
        run.evaluation.datasets = ["k3_test"]
        run.evaluation.every = run.steps
        run.attribution = False
    return ConfigDict(
        {
            "seeds": [0],
            "max_prompt_length": paper.max_prompt_length,
            "grpo": paper.grpo,
            "sdpo": paper.sdpo,
            "probes": {
                "split": "k4_test",
                "num_problems": PROBLEMS[arg],
                "num_samples": {"quick": 4}.get(arg, 2),
                "max_response_length": 144,
                "cue": "wait",
                "extra_attempts": 1 if arg == "tiny" else 2,
            },
        }
    )
