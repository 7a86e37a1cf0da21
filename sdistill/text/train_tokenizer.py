"""Makes the tokenizer that a config describes.

python -m sdistill.text.train_tokenizer --config configs/signs/tokenizer.py --workdir sdistill/text/assets
"""

from pathlib import Path
from typing import Any

from sdistill import command
from sdistill.tasks.signs_reasoner import vocabulary
from sdistill.text.tokenizer import train_word_model


def main(values: dict[str, Any], workdir: Path) -> None:
    """Trains and writes the tokenizer."""
    path = workdir / values["name"]
    train_word_model(vocabulary(values["largest_k"]), path)
    print(f"wrote {path}.model")


if __name__ == "__main__":
    command.run(main)
