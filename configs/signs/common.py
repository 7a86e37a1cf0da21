"""What the puzzle's configs share, where it differs from a real model: short texts, few words, one device."""

from collections.abc import Iterable

CONTEXT = {"template": "{prompt} solution {solution}", "example_template": "{example} ; {prompt}"}
"""How the puzzle's corpus writes a problem with a solution; `kind` says which."""

FULL_DIVERGENCE = {"support": "full", "top_k": None, "tail": None}
"""The vocabulary is small enough to compare all of it."""

MODEL = {
    "init_from": "signs_base",
    "logits_chunk_size": 64,
    "mesh": {"data": 1, "fsdp": 1, "tensor": 1, "context": 1},
}
"""Fields of every training run."""

EVALUATION = {"num_samples": 4, "max_prompt_length": 16, "max_response_length": 112, "slots": 256}

TINY_SLOTS = 4
"""The pool does not shrink while draining (`engine.engine.MIN_POOL`), so one program is compiled."""


def check_argument(arg: str, known: Iterable[str]) -> None:
    """Raises ValueError unless the argument of a config is one of those that it knows."""
    if arg not in known:
        raise ValueError(f"unknown argument {arg!r}; known: {', '.join(map(repr, known))}")
