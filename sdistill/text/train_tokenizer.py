"""Makes the tokenizer that a config describes.

    python -m sdistill.text.train_tokenizer --config configs/signs/tokenizer.py
"""

from ml_collections import config_flags

from sdistill import command
from sdistill.tasks.signs.reasoner import vocabulary
from sdistill.text.tokenizer import train_word_model

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)


def main(argv: list[str]) -> None:
    """Trains and writes the tokenizer."""
    del argv
    config = _CONFIG.value
    train_word_model(vocabulary(config.largest_k), config.prefix)
    print(f"wrote {config.prefix}.model")


if __name__ == "__main__":
    command.run(main)
