"""The protocol of tokenizers, the SentencePiece one, and checks for all of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import sentencepiece

from sdistill.settings import require

SIGNS_TOKENIZER = Path(__file__).parent / "assets" / "signs.model"
"""The shipped tokenizer of the signs puzzle, made from `configs/signs/tokenizer.py`."""


class Tokenizer(Protocol):
    """A tokenizer.

    Attributes:
      vocab_size: The highest id plus one; a model's embedding may have more rows, never fewer.
      pad_id: Padding; has no text.
      bos_id: Begins a text, None if nothing does. `encode` never adds it: chat templates write it.
      eos_id: Ends the responses we make for training; the first choice among `stop_ids`.
      stop_ids: Each of them ends a response when the model samples it.
    """

    vocab_size: int
    pad_id: int
    bos_id: int | None
    eos_id: int
    stop_ids: tuple[int, ...]

    def __hash__(self) -> int:
        """Of the object: texts of its tokens are cached."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text, with no special token added."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; padding and end-of-sequence are dropped."""
        ...


class SentencePieceTokenizer:
    """A SentencePiece model. Text it cannot represent is an error, never an unknown token."""

    def __init__(self, path: str | Path):
        """Loads a `.model` file; FileNotFoundError says how to make the shipped one."""
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"no SentencePiece model at {path}; the signs puzzle's is made by "
                "`python launch/train_tokenizer.py --config configs/signs/tokenizer.py "
                "--workdir sdistill/text/assets`"
            )
        self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.vocab_size: int = self._processor.vocab_size()
        self.pad_id: int = self._processor.pad_id()
        bos_id: int = self._processor.bos_id()
        self.bos_id: int | None = bos_id if bos_id >= 0 else None
        self.eos_id: int = self._processor.eos_id()
        self.stop_ids: tuple[int, ...] = (self.eos_id,)

    def encode(self, text: str) -> list[int]:
        """Ids of a text. ValueError quotes the first word outside the vocabulary."""
        ids: list[int] = self._processor.encode(text)
        if (unknown := self._processor.unk_id()) in ids:
            word = next((w for w in text.split(" ") if unknown in self._processor.encode(w)), text)
            raise ValueError(f"word {word!r} of {text!r} is not in the tokenizer's vocabulary")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without those that have none (control, unknown, spare embedding rows)."""
        unknown = self._processor.unk_id()
        known = [int(i) for i in ids if i < self.vocab_size and i != unknown]
        return str(self._processor.decode(known))


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises ConfigError if a model's `vocab_size` has no row for some id of the tokenizer."""
    require(
        tokenizer.vocab_size <= vocab_size,
        f"the model's vocab_size={vocab_size} is smaller than the tokenizer's {tokenizer.vocab_size}; "
        "they do not belong together",
    )


def check_response(ids: Sequence[int], stop_ids: Sequence[int]) -> None:
    """Raises ValueError if the response goes on after an end token: only its last id may be one."""
    for position, token in enumerate(ids[:-1]):
        if token in stop_ids:
            raise ValueError(
                f"the response goes on after end token {token} at position {position} of {len(ids)}; "
                "only its last token may be one"
            )
