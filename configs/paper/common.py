"""What the configs of the paper's sections share: models, slices, lengths, evaluation, tiny forms.

Facts are the paper's (arXiv 2603.24472) or its released scripts'. What neither says is a default of ours:
Adam's decays, no weight decay, gradients clipped at norm 1.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs.models import olmo3_7b, qwen3_1p7b, qwen3_8b, r1_distill_qwen_7b
from configs.signs.common import CONTEXT

ONE = {"data": 1, "fsdp": 1, "tensor": 1, "context": 1}


def laid_out(
    fsdp: int, context: int = 1, tensor: int = 1, *, slots: int, chunk: int = 1024, **others: object
) -> dict[str, object]:
    """How a run lies on a slice: each row on as many chips as `context` says, and a row each at a time."""
    mesh = ONE | {"fsdp": fsdp, "tensor": tensor, "context": context}
    return {
        "mesh": mesh,
        "micro_batch_size": fsdp,
        "logits_chunk_size": chunk,
        "rollouts": {"slots": slots},
        **others,
    }


ROUNDED: dict[str, Any] = {"optimizer": {"first_moment": "bfloat16"}}
"""Where float32 would leave less than 5 % of the memory."""

QWEN3_8B = {
    "v5p_8": laid_out(fsdp=8, chunk=256, slots=128),
    "v5p_4": laid_out(fsdp=4, chunk=256, slots=48),
    "v6e_16": laid_out(fsdp=4, context=4, slots=64),
    "v5e_16": laid_out(fsdp=2, context=8, slots=24, **ROUNDED),
}

TOPOLOGIES = {
    **{"v5p_4": "v5p:2x2x1", "v5p_8": "v5p:2x2x2"},
    **{"v6e_4": "v6e:2x2", "v6e_8": "v6e:2x4", "v6e_16": "v6e:4x4"},
    **{"v5e_4": "v5e:2x2", "v5e_8": "v5e:2x4", "v5e_16": "v5e:4x4"},
}
"""Slices, by what the configs call them."""


class PaperModel(NamedTuple):
    """A model as the paper trains it.

    Attributes:
      preset: Module with its config.
      thinking: Whether prompts ask for it.
      layouts: By slice, how its SDPO fits there (docs/scale.md); the first is the one by default.
    """

    preset: ModuleType
    thinking: bool
    layouts: Mapping[str, Mapping[str, object]]


MODELS = {
    "qwen3_8b": PaperModel(qwen3_8b, True, QWEN3_8B),
    "qwen3_8b_nothink": PaperModel(qwen3_8b, False, QWEN3_8B),
    "qwen3_1p7b": PaperModel(
        qwen3_1p7b,
        True,
        {"v6e_4": laid_out(fsdp=4, slots=24), "v5e_4": laid_out(fsdp=1, context=4, slots=8)},
    ),
    "deepseek_7b": PaperModel(
        r1_distill_qwen_7b,
        True,
        {
            "v5p_4": laid_out(fsdp=4, chunk=256, slots=128),
            "v6e_8": laid_out(fsdp=2, context=4, slots=64),
        },
    ),
    "olmo3_7b": PaperModel(
        olmo3_7b,
        False,
        {"v5p_4": laid_out(fsdp=4, chunk=256, slots=16), "v5p_8": laid_out(fsdp=8, chunk=256, slots=32)},
    ),
}

MAX_PROMPT, MAX_RESPONSE, MAX_TEACHER_PROMPT = 2048, 20_480, 22_528
EVALUATED_RESPONSE = 38_912

TEMPLATE = "{prompt}\nCorrect solution:\n\n{solution}\n\n\n\nCorrectly solve the original question.\n"
"""The teacher's user turn, as released, for a demonstration without feedback."""


def parsed(arg: str, known: Mapping[str, str]) -> tuple[str, str]:
    """An argument `WHAT` or `WHAT:WHERE`, the latter a slice of its model or `tiny`.

    Args:
      arg: The argument.
      known: What there is, and the key in `MODELS` of each.

    Raises:
      ValueError: if one of the two is not known; lists those that are.
    """
    what, _, where = arg.partition(":")
    if what not in known:
        raise ValueError(
            f"unknown argument {arg!r}; give WHAT or WHAT:WHERE, WHAT being one of {', '.join(known)}"
        )
    return what, slice_of(where, MODELS[known[what]].layouts)


def slice_of(where: str, layouts: Mapping[str, Mapping[str, object]]) -> str:
    """The slice, the first one for an empty name, or `tiny`.

    Raises:
      ValueError: if it is none of these; lists them.
    """
    if where and where not in (*layouts, "tiny"):
        raise ValueError(f"unknown argument :{where}; give one of {', '.join(layouts)}, tiny")
    return where or next(iter(layouts))


def on_policy(model: str, where: str, *, split: str, prompts: int, mini_batch: int) -> ConfigDict:
    """All but the objective.

    Args:
      model: Key of `MODELS`.
      where: Key of its layouts, or `tiny`.
      split: Problems to train on.
      prompts: Problems a step.
      mini_batch: Problems an update.
    """
    preset, thinking, layouts = MODELS[model]
    if where == "tiny":
        return _tiny(preset.get_config("tiny"))
    sampling = {"temperature": 0.6, "top_p": 0.95} if thinking else {"temperature": 0.7, "top_p": 0.8}
    config = ConfigDict(
        {
            "seed": 0,
            "steps": 100,
            "optimizer": {"warmup_steps": 10},
            "rollouts": {
                "split": split,
                "num_problems": None,
                "num_prompts": prompts,
                "num_samples": 8,
                "max_prompt_length": MAX_PROMPT,
                "max_response_length": MAX_RESPONSE,
                "mini_batch_size": mini_batch,
                "sampling": {"temperature": 1.0},
                "thinking": thinking,
            },
            "evaluation": {
                "every": 10,
                "at_start": ["aime24", "aime25", "amc23", "math500"],
                "datasets": ["aime24", "aime25", "amc23", "math500"],
                "num_problems": 500,
                "num_samples": 16,
                "max_prompt_length": MAX_PROMPT,
                "max_response_length": EVALUATED_RESPONSE,
                "sampling": sampling,
                "thinking": thinking,
            },
            "checkpoint_every": 10,
        }
    )
    config.update(preset.get_config())
    config.update(layouts[where])
    config.evaluation.slots = config.rollouts.slots // 2  # of nearly twice as many tokens
    return config


def sdpo(config: ConfigDict) -> ConfigDict:
    """The config with the paper's SDPO: α = 0.5, top 100 with a tail, ratio capped at 2, frozen teacher."""
    config.objective = "sdpo"
    config.optimizer.learning_rate = 1e-5
    tiny = config.init_from is None
    texts = CONTEXT if tiny else {"template": TEMPLATE}
    config.teacher = {
        "context": {"kind": "solution", "thinking": config.rollouts.thinking, **texts},
        "max_prompt_length": 64 if tiny else MAX_TEACHER_PROMPT,
        "weights": "fixed",
        "dtype": "bfloat16",
    }
    config.loss = {
        "divergence": {"alpha": 0.5, "support": "topk", "top_k": 100, "tail": "bucket"},
        "importance_cap": 2.0,
    }
    return config


def grpo(config: ConfigDict) -> ConfigDict:
    """The config with the paper's GRPO: no standard deviation in advantages, clip 0.2 / 0.28, no KL term."""
    config.objective = "grpo"
    config.optimizer.learning_rate = 1e-6
    config.loss = {"clip_low": 0.2, "clip_high": 0.28, "divide_by_std": False}
    return config


def _tiny(preset: ConfigDict) -> ConfigDict:
    """Two steps of the signs puzzle on a laptop: a random model learns nothing, but every part runs."""
    config = ConfigDict(
        {
            "seed": 0,
            "steps": 2,
            "optimizer": {"warmup_steps": 0},
            "rollouts": {
                "split": "k3_pool",
                "num_problems": None,
                "num_prompts": 4,
                "num_samples": 4,
                "max_prompt_length": 8,
                "max_response_length": 16,
                "slots": 16,
                "mini_batch_size": 2,
                "thinking": True,  # as the puzzle's prompt always does
            },
            "checkpoint_every": 2,
            "mesh": ONE,
            "micro_batch_size": 4,
            "logits_chunk_size": 16,
        }
    )
    config.update(preset)
    return config
