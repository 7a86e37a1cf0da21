"""What the presets of this folder share: how a model is computed, and the size of their tiny forms.

Each preset says which model it names and how its tiny form differs from `TINY`.
"""

from ml_collections import ConfigDict

from configs.signs.common import check_argument
from sdistill.model.hugging_face import FAMILIES

TINY = {
    "vocab_size": 168,  # of the signs tokenizer 166, and a multiple of 8 to split over devices
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def preset(arg: str, name: str, family: str, **fields: object) -> ConfigDict:
    """Fields of TrainConfig for one of the paper's models.

    Args:
      arg: The argument of `get_config`: empty for the model itself, `tiny` for its architecture with
        random weights.
      name: What the model is called on Hugging Face.
      family: Its architecture, a key of `FAMILIES`.
      **fields: Fields of ModelConfig in which the tiny form differs from `TINY`.

    Raises:
      ValueError: if `arg` is anything else.
    """
    check_argument(arg, ("", "tiny"))
    start: dict[str, object] = {"init_from": name}
    if arg == "tiny":
        start = {"init_from": None, "model": {**TINY, **FAMILIES[family].flags, **fields}}
    return ConfigDict(
        {
            **start,
            "param_dtype": "float32",
            "compute": {"dtype": "bfloat16", "remat": "full", "attention": "auto"},
        }
    )
