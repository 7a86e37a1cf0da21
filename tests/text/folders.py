"""Small Hugging Face model folders: a byte-level BPE made by hand, and chat templates of three kinds."""

import json
from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

MERGED = (
    "Ġthe",
    "Ġis",
    "problem",
    "Solve",
    "assistant",
    "system",
    "user",
    "think",
    "im_end",
    "<|",
    "|>",
    "</",
)
"""Words that are one token; the last four are what added tokens are made of."""

ADDED = (
    ("<|endoftext|>", True),
    ("<|im_start|>", True),
    ("<|im_end|>", True),
    ("<｜User｜>", False),
    ("<｜Assistant｜>", False),
    ("<tool_call>", False),
    ("|||EMAIL|||", False),
    ("<|im_end|>|", False),  # longer than another that it begins with
    ("<think>", False),
    ("</think>", False),
)
"""Content and whether it is special."""

LISTENING = """\
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
"""Turns thinking off with an empty block, as Qwen3 does."""

ALWAYS = """\
{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}\
{% elif message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}\
{% elif message['role'] == 'assistant' %}\
{{ '<｜Assistant｜>' + message['content'].split('</think>')[-1] + eos_token }}\
{% else %}{{ raise_exception('unknown role ' + message['role']) }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"""
"""Opens the thinking itself, begins with a token, and has a system prompt without one, as the R1 distills."""

SELF_OPENING = ALWAYS.replace("<think>\\n", "")
"""The model opens the thinking, as with the first release of the R1 distills."""

NEVER = """\
{%- if messages[0].role != 'system' -%}
    {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
    {%- if loop.last and add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
{%- endfor -%}
"""
"""Knows of no thinking, as OLMo-3-Instruct, and has a system prompt of its own."""

TEMPLATES = {"listening": LISTENING, "always": ALWAYS, "self_opening": SELF_OPENING, "never": NEVER}

MODES = [
    ("listening", True),
    ("listening", False),
    ("always", True),
    ("self_opening", True),
    ("never", False),
]
"""Templates with the values of `thinking` they can be asked for."""


def tokenizer_json() -> dict[str, Any]:
    """A `tokenizer.json` with every byte, the merged words and the added tokens."""
    vocabulary = {character: index for index, character in enumerate(sorted(ByteLevel.alphabet()))}
    merges = []
    for word in MERGED:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                merges.append([word[: end - 1], word[end - 1]])
                vocabulary[word[:end]] = len(vocabulary)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    split = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": len(vocabulary) + index, "content": content, "special": special, **flags}
            for index, (content, special) in enumerate(ADDED)
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False},
                byte_level,
            ],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def added_ids() -> dict[str, int]:
    """Added tokens and their ids."""
    return {token["content"]: token["id"] for token in tokenizer_json()["added_tokens"]}


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON."""
    path.write_text(json.dumps(value), encoding="utf-8")


def write_folder(folder: Path, template: str | None = LISTENING) -> Path:
    """Writes a whole model folder, without a model; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "tokenizer.json", tokenizer_json())
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": {"__type": "AddedToken", "content": "<|im_start|>", "normalized": True},
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", settings)
    ids = added_ids()
    stops = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    write_json(folder / "generation_config.json", {"eos_token_id": stops})
    write_json(folder / "config.json", {"model_type": "qwen3", "eos_token_id": ids["<|endoftext|>"]})
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder
