"""SDPO on the signs puzzle: one run of section 5.

    python -m sdistill.train --config configs/signs/sdpo.py --workdir runs/sdpo
    python -m sdistill.train --config configs/signs/sdpo.py:answer --workdir runs/sdpo_answer

16 prompts × 8 rollouts of three numbers a step, evaluated on unseen problems of three and (never trained
on) four. The argument is the context: `solution` (c = s, the default) or `answer` (c = s∖think). `tiny`
makes two steps of a small batch.
"""

from ml_collections import ConfigDict

from configs.signs.common import CONTEXT, EVALUATION, FULL_DIVERGENCE, MODEL, TINY_SLOTS, check_argument


def get_config(arg: str = "solution") -> ConfigDict:
    """Settings of one run; `arg` is the context or `tiny`."""
    check_argument(arg, ("solution", "answer", "tiny"))
    tiny = arg == "tiny"
    kind = "solution" if tiny else arg
    return ConfigDict(
        {
            **MODEL,
            "objective": "sdpo",
            "seed": 0,
            "steps": 2 if tiny else 60,
            "optimizer": {"learning_rate": 1e-4, "warmup_steps": 10},
            "rollouts": {
                "split": "k3_pool",
                "num_problems": None,
                "num_prompts": 4 if tiny else 16,
                "num_samples": 4 if tiny else 8,
                "max_prompt_length": 8,
                "max_response_length": 48,
                "slots": TINY_SLOTS if tiny else 128,
            },
            "teacher": {
                "context": {"kind": kind, **CONTEXT},
                "max_prompt_length": 64 if kind == "solution" else 16,
                "weights": "fixed",
            },
            "loss": {"divergence": FULL_DIVERGENCE},
            "evaluation": {
                **EVALUATION,
                "slots": TINY_SLOTS if tiny else EVALUATION["slots"],
                "every": 2 if tiny else 20,
                "at_start": ["k3_test", "k4_test"],
                "datasets": ["k3_test", "k4_test"],
                "num_problems": 8 if tiny else 128,
            },
            "checkpoint_every": 2 if tiny else 20,
        }
    )
