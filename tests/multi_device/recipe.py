"""A training small enough for eight devices on two cores. The argument is the objective."""

from ml_collections import ConfigDict

from configs.signs import grpo, sdpo


def get_config(arg: str) -> ConfigDict:
    config = {"sdpo": sdpo, "grpo": grpo}[arg].get_config("tiny")
    config.steps = 4 if arg == "grpo" else 6
    config.attribution = True
    config.rollouts.update({"num_samples": 2, "max_response_length": 8, "slots": 8})
    config.evaluation.update(
        {"every": config.steps, "at_start": [], "datasets": ["k3_test"], "num_problems": 3}
    )
    config.evaluation.update({"num_problems": 3, "max_response_length": 8, "slots": 8})
    if arg == "grpo":
        config.loss.kl_coefficient = 0.1
    return config
