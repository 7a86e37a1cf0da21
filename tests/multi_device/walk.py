"""A walk small enough for eight devices on two cores, that ends within its second stride."""

from ml_collections import ConfigDict

from configs.signs import generate


def get_config() -> ConfigDict:
    config = generate.get_config("walk")
    config.update({"split": "k3_pool", "num_samples": 2, "max_response_length": 24, "slots": 8})
    config.walk = {"num_problems": 3, "min_correct": 1, "max_correct": 1, "stride": 4}
    config.mesh = {"data": 1, "fsdp": 1, "tensor": 1, "context": 1}
    return config
