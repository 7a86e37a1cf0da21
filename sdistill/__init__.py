"""On-policy self-distillation in JAX (arXiv 2601.20802, 2603.24472). `dir(sdistill)` lists the public API."""

import importlib
from typing import Any

_HOME = {
    "load": "api",
    "Policy": "api",
    "Trainer": "api",
    "TokenComparison": "api",
    "Problem": "tasks.problem",
    "Response": "types",
    "open_problems": "data.catalogue",
    "task_of": "data.catalogue",
    "Task": "tasks.problem",
    "Verdict": "tasks.problem",
    "Sampling": "engine.sampling",
    "ContextConfig": "config",
    "GRPOConfig": "config",
    "SDPOConfig": "config",
    "teacher_turn": "contexts",
    "teacher_turns": "contexts",
    "DivergenceConfig": "divergence.definition",
    "token_divergence": "divergence.definition",
    "parse": "settings",
    "read_responses": "storage",
    "read_records": "storage",
    "measure": "evaluate",
}
"""Name → its module, imported when the name is first used: commands start without all of them."""

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sdistill' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"sdistill.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
