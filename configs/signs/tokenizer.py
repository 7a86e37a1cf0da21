"""The signs puzzle's SentencePiece model: one piece a word, 166 in all, made in a second.

    python launch/train_tokenizer.py --config configs/signs/tokenizer.py --workdir sdistill/text/assets

A word model, because arithmetic on whole-number tokens is what a 0.36 M-parameter decoder learns in
minutes. The result is shipped with the package and is byte-identical when made again by this command.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The words of puzzles of up to five numbers."""
    return ConfigDict({"largest_k": 5, "name": "signs"})
