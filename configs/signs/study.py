"""The whole study on the signs puzzle: sections 3 to 6 of arXiv 2603.24472.

    python -m sdistill.study --config configs/signs/study.py --workdir runs/study
    python -m sdistill.study --config configs/signs/study.py:quick --workdir runs/quick

Three seeds, on two CPU cores. `quick` is one seed of everything, shorter; `tiny` only
exercises the code. What comes out of the full study, and what both take, is in the README.
"""

from ml_collections import ConfigDict

from configs.signs.common import CONTEXT, EVALUATION, FULL_DIVERGENCE, MODEL, TINY_SLOTS, check_argument

SIZES = {
    "": {
        "seeds": [0, 1, 2],
        "coverage_seeds": [0, 1, 2],
        "walk": 100,
        "answer_fractions": [0.0, 0.25, 0.5],  # of four numbers: none, one and two of three signs
        "richness_models": ["grpo", "sdpo_solution_fixed"],
        "responses": 800,
        "sft_steps": 37,
        "steps": 40,
        "every": 10,
        "num_problems": 128,
        "coverage": [1, 8, 64, 512],
    },
    "quick": {
        "seeds": [0],
        "coverage_seeds": [0],
        "walk": 12,
        "answer_fractions": [0.0, 0.25, 0.5],
        "richness_models": ["grpo", "sdpo_solution_fixed"],
        "responses": 200,
        "sft_steps": 9,
        "steps": 16,
        "every": 8,
        "num_problems": 32,
        "coverage": [8, 64],
    },
    "tiny": {
        "seeds": [0],
        "coverage_seeds": [0],
        "walk": 4,
        "answer_fractions": [0.5],
        "richness_models": ["grpo"],
        "responses": 16,
        "sft_steps": 2,
        "steps": 2,
        "every": 1,
        "num_problems": 8,
        "coverage": [8],
    },
}


def get_config(arg: str = "") -> ConfigDict:
    """Settings of the study; `arg` is a key of `SIZES`."""
    check_argument(arg, SIZES)
    size = SIZES[arg]
    tiny = arg == "tiny"
    evaluation = {
        **EVALUATION,
        "slots": TINY_SLOTS if tiny else EVALUATION["slots"],
        "every": size["every"],
        "datasets": ["trained", "k3_test", "k4_test"],
        "num_problems": size["num_problems"],
    }
    on_policy = {
        **MODEL,
        "seed": 0,  # the study's seeds take its place
        "steps": size["steps"],
        "rollouts": {
            "split": "k3_pool",
            "num_problems": None,
            "num_prompts": 4 if tiny else 16,
            "num_samples": 8,
            "max_prompt_length": 8,
            "max_response_length": 48,
            "slots": TINY_SLOTS if tiny else 128,
        },
        "evaluation": evaluation,
        "attribution": True,
        "checkpoint_every": size["every"],
    }
    grpo = ConfigDict(on_policy)
    grpo.objective = "grpo"
    grpo.optimizer = ConfigDict({"learning_rate": 1e-4, "warmup_steps": 10})
    sdpo = ConfigDict(on_policy)
    sdpo.objective = "sdpo"
    sdpo.teacher = {"context": {"kind": "solution", **CONTEXT}, "max_prompt_length": 64}
    sdpo.loss = {"divergence": FULL_DIVERGENCE}
    sdpo.optimizer = ConfigDict({"learning_rate": 1e-4, "warmup_steps": 10})
    return ConfigDict(
        {
            "seeds": size["seeds"],
            "coverage_seeds": size["coverage_seeds"],
            "max_prompt_length": 144,
            "richness": {
                "splits": ["k3_pool", "k4_pool"],
                "walk": {"num_problems": size["walk"], "min_correct": 1, "max_correct": 4, "stride": 128},
                "walk_samples": 8,
                "num_samples": 8,
                "answer_fractions": size["answer_fractions"],
                "solution_fractions": [0.5],
                "models": size["richness_models"],
            },
            "sft": {
                "split": "k3_pool",
                "responses": size["responses"],
                "per_problem": 2,
                "num_samples": 8,
                "train": {
                    **MODEL,
                    "objective": "sft",
                    "seed": 0,
                    "steps": size["sft_steps"],  # three epochs
                    "optimizer": {"learning_rate": 3e-4, "warmup_steps": 4},
                    "examples": {
                        "source": "filled in",
                        "batch_size": 64,
                        "sequence_length": 64,
                        "packed": False,
                    },
                    "evaluation": {**evaluation, "datasets": ["k3_test", "k4_test"], "every": 1000},
                    "checkpoint_every": 20,
                },
            },
            "grpo": grpo,
            "sdpo": sdpo,
            "contexts": [
                {"kind": "solution", "max_prompt_length": 64},
                {"kind": "answer", "max_prompt_length": 16},
            ],
            "ema_rate": 0.05,
            "coverage": size["coverage"],
        }
    )
