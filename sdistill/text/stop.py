"""Ends responses at strings, however those are split into tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

from sdistill.settings import ConfigError, require
from sdistill.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class StopStrings:
    """A stop function: cuts a response after the token that completes one of the strings.

    Attributes:
      strings: A response ends where the first of them is complete.
    """

    tokenizer: Tokenizer
    strings: tuple[str, ...]

    def __post_init__(self) -> None:
        for string in self.strings:
            try:
                ids = self.tokenizer.encode(string)
            except ValueError as error:
                raise ConfigError(f"stop string {string!r} can never come: {error}") from error
            require(
                bool(string) and bool(ids),
                f"stop string {string!r} has no tokens, so it would end every response or none; remove it",
            )

    def __call__(self, ids: Sequence[int], seen: int) -> int | None:
        """How many ids to keep, or None if none of the strings has occurred.

        Args:
          ids: The response so far.
          seen: How many of them an earlier call has searched.
        """
        # A token of text has at least one byte: a string that ends in a new token spans no more tokens.
        back = max((len(string.encode()) for string in self.strings), default=0)
        start = max(0, seen - back)
        if not self._found(ids[start:]):
            return None
        return next(end for end in range(seen + 1, len(ids) + 1) if self._found(ids[start:end]))

    def _found(self, ids: Sequence[int]) -> bool:
        text = self.tokenizer.decode(ids)
        return any(string in text for string in self.strings)
