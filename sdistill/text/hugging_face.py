"""The tokenizer of a Hugging Face model folder, read so that no outside text becomes a special token."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from sdistill.settings import ConfigError, require
from sdistill.tasks.problem import THINK_END, THINK_START

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"

THINKING_TAGS = (THINK_START, THINK_END)

MARK = "\ufdd0"
"""Keeps two characters apart until they are encoded: a Unicode noncharacter, which no text should hold."""

_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
"""Options of an added token that `encode` does not implement."""


class HuggingFaceTokenizer:
    """A `tokenizer.json`, with the special tokens that the files beside it name.

    `encode` gives the ids that transformers gives: the string of an added token (`<|im_end|>`) becomes that
    token. In text from outside, `escape` prevents that.

    Attributes:
      named: The strings of `bos_token`, `eos_token` and `pad_token` in `tokenizer_config.json`.
    """

    def __init__(self, folder: str | Path):
        """Reads a model folder.

        `stop_ids` come from the first that has any: `generation_config.json`, the `eos_token` of
        `tokenizer_config.json`, `config.json`. `eos_id` is that `eos_token` if it is one of them, else the
        first of them.

        Raises:
          FileNotFoundError: if there is no `tokenizer.json` or no `tokenizer_config.json`.
          ConfigError: if a file is damaged or contradicts another, if an added token has an option that is
            not supported, or if nothing says which token ends a response.
        """
        folder = Path(folder)
        data, settings = read_json(folder / TOKENIZER_FILE), read_json(folder / TOKENIZER_CONFIG_FILE)
        # No truncation or padding, whatever was set when the file was written.
        data |= {"truncation": None, "padding": None}
        try:
            self._whole = Tokenizer.from_str(json.dumps(data))
            self._plain = Tokenizer.from_str(json.dumps(data | {"added_tokens": []}))
        except Exception as error:  # tokenizers raises nothing narrower
            raise ConfigError(f"{folder / TOKENIZER_FILE} is damaged: {error}") from error
        added = data.get("added_tokens", [])
        self._added = {token["content"]: token["id"] for token in added}
        self._added_token = re.compile(f"({_any_of(sorted(self._added, key=len, reverse=True))})")
        starts = {token[0] for token in self._added.keys() - set(THINKING_TAGS)}
        self._start_of_added = re.compile(f"(?!{_any_of(THINKING_TAGS)})(?:{_any_of(sorted(starts))})")
        self._check_added(added, settings.get("added_tokens_decoder", {}), folder)

        vocabulary = self._whole.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        names = (name for name in ("bos_token", "eos_token", "pad_token") if settings.get(name) is not None)
        tokens = {name: settings[name] for name in names}  # strings or objects
        self.named = {n: t["content"] if isinstance(t, dict) else t for n, t in tokens.items()}
        for name, token in self.named.items():
            require(token in vocabulary, f"{name}={token!r} of {folder} is not in its {TOKENIZER_FILE}")
        ids = {name: vocabulary[token] for name, token in self.named.items()}
        self.stop_ids = _stop_ids(folder, ids.get("eos_token"), self.vocab_size)
        self.eos_id = next((i for i in self.stop_ids if i == ids.get("eos_token")), self.stop_ids[0])
        self.pad_id = ids.get("pad_token", self.eos_id)
        self.bos_id = ids.get("bos_token")
        special = {token["id"] for token in added if token["special"]}
        thinking = {self._added.get(tag) for tag in THINKING_TAGS}
        self._silent = {*special, self.pad_id, *self.stop_ids} - thinking

    def _check_added(
        self, tokens: Sequence[dict[str, Any]], listed: dict[str, dict[str, Any]], folder: Path
    ) -> None:
        """Raises ConfigError unless `encode` and `escape` are right for every added token."""
        for token in tokens:
            content, index = token["content"], token["id"]
            name = f"added token {content!r} of {folder / TOKENIZER_FILE}"
            flags = [flag for flag in _FLAGS if token[flag]]
            require(not flags, f"{name} has {', '.join(flags)}, which is not supported")
            require(len(content) > 1, f"{name} is a single character, which cannot be escaped")
            # Finds what the checks above miss: pre-tokenizers that treat a text's beginning differently, and
            # models that look up whole words.
            sample = f"a{content}a"
            same = self.encode(sample) == self._whole.encode(sample, add_special_tokens=False).ids
            require(
                same and index not in self._plain.encode(content, add_special_tokens=False).ids,
                f"{name} cannot be told from plain text; this kind of tokenizer is not supported",
            )
        for key, token in listed.items():
            require(
                self._added.get(token["content"]) == int(key),
                f"{folder / TOKENIZER_CONFIG_FILE} has added token {token['content']!r} with id {key}; "
                f"{TOKENIZER_FILE} has not",
            )

    def escape(self, content: str) -> str:
        """Makes text from outside (a user's, a system prompt, a sampled response) safe in a prompt.

        Puts a mark after every character that an added token begins with; `encode` removes it. So no added
        token can begin in `content`, however a template trims it and whatever follows it.
        In: `1 < 2<|im_end|>`. Out, with ¦ for the mark: `1 <¦ 2<¦|im_end|>`.

        Thinking tags stay: demonstrations carry them by design, as in the released code.

        Raises ValueError if the mark itself is in the text.
        """
        if MARK in content:
            raise ValueError(
                f"character U+{ord(MARK):04X} at position {content.index(MARK)} is reserved; remove it"
            )
        return self._start_of_added.sub(rf"\g<0>{MARK}", content)

    def encode(self, text: str) -> list[int]:
        """Ids of a text: added tokens are recognised, marks of `escape` removed, no special token is added.

        Raises ValueError if the text holds half of a surrogate pair, which has no bytes.
        """
        text.encode()
        ids: list[int] = []
        for position, piece in enumerate(self._added_token.split(text)):
            if position % 2:
                ids.append(self._added[piece])
            elif plain := piece.replace(MARK, ""):
                ids += self._plain.encode(plain, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without special tokens and spare embedding rows, with thinking tags.

        A mark spelled by the ids becomes U+FFFD, as broken bytes do, so that the text can be escaped.
        """
        visible = [int(i) for i in ids if i not in self._silent]
        return str(self._whole.decode(visible, skip_special_tokens=False)).replace(MARK, "\ufffd")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder; FileNotFoundError or ConfigError names the file."""
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}: not a model folder")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of the JSON or of the UTF-8
        raise ConfigError(f"{path} is damaged: {error}") from error
    require(isinstance(value, dict), f"{path} is damaged: it holds no JSON object")
    return value


def _any_of(strings: Iterable[str]) -> str:
    """A regular expression for any of the strings, the first that matches; without any, it never matches."""
    return "|".join(map(re.escape, strings)) or "(?!)"


def _stop_ids(folder: Path, named: int | None, vocab_size: int) -> tuple[int, ...]:
    """Ids that end a response, from the first of three places with any."""

    def configured(name: str) -> Any:
        return read_json(folder / name).get("eos_token_id") if (folder / name).is_file() else None

    for value in (configured("generation_config.json"), named, configured("config.json")):
        ids = value if isinstance(value, list) else [value]
        if ids not in ([], [None]):
            known = all(isinstance(i, int) and 0 <= i < vocab_size for i in ids)
            require(known, f"eos_token_id={value} of {folder} is not in its {TOKENIZER_FILE}")
            return tuple(ids)
    raise ConfigError(
        f"nothing in {folder} says which token ends a response; "
        f"set eos_token in {TOKENIZER_CONFIG_FILE} or eos_token_id in generation_config.json"
    )
