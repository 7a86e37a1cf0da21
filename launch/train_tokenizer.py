"""Makes the tokenizer that a config describes.

python launch/train_tokenizer.py --config configs/signs/tokenizer.py --workdir sdistill/text/assets
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the package beside this folder

import sentencepiece

from sdistill import command
from sdistill.tasks.signs_reasoner import vocabulary


def train_word_model(words: Iterable[str], prefix: str | Path) -> None:
    """Writes `{prefix}.model`: a SentencePiece `word` model with exactly these words.

    Ids 0, 1, 2 are padding, unknown and end of sequence. The words follow in order of frequency, which is
    equal, and so alphabetically.
    """
    words = list(words)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words),
        model_prefix=str(prefix),
        model_type="word",
        vocab_size=len(words) + 3,
        normalization_rule_name="identity",
        character_coverage=1.0,
        pad_id=0,
        unk_id=1,
        eos_id=2,
        bos_id=-1,
        minloglevel=1,
    )
    Path(f"{prefix}.vocab").unlink()


def main(values: dict[str, Any], workdir: Path) -> None:
    """Trains and writes the tokenizer."""
    path = workdir / values["name"]
    train_word_model(vocabulary(values["largest_k"]), path)
    print(f"wrote {path}.model")


if __name__ == "__main__":
    command.run(main)
