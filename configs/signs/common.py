"""What the puzzle's configs share, where it differs from a real model: short texts, few words, one device."""

CONTEXT = {"template": "{prompt} solution {solution}", "example_template": "{example} ; {prompt}"}
"""How the puzzle's corpus writes a problem with a solution; `kind` says which."""

FULL_DIVERGENCE = {"support": "full", "top_k": None, "tail": None}
"""168 words are few enough to compare all of them."""

MODEL = {
    "init_from": "signs_base",
    "logits_chunk_size": 64,
    "mesh": {"data": 1, "fsdp": 1, "tensor": 1, "context": 1},
}
"""Fields of every training run."""

EVALUATION = {"num_samples": 4, "max_prompt_length": 16, "max_response_length": 112, "slots": 256}

TINY_SLOTS = 4
"""The pool does not shrink while draining (`engine.engine.MIN_POOL`), so one program is compiled."""
