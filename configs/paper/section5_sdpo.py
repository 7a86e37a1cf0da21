"""Section 5: SDPO on mathematics, 256 prompts × 8 rollouts a step, 100 steps.

    python -m sdistill.train --config configs/paper/section5_sdpo.py:qwen3_8b --workdir runs/section5
    python -m sdistill.train --config configs/paper/section5_sdpo.py:qwen3_8b:v6e_16 --workdir runs/section5
    python launch/compile_check.py --config configs/paper/section5_sdpo.py:qwen3_8b --topology v5p:2x2x2

The argument is MODEL or MODEL:WHERE. MODEL and WHERE, the first of which is the default:

    qwen3_8b, qwen3_8b_nothink   v5p_8, v5p_4, v6e_16, v5e_16
    qwen3_1p7b                   v6e_4, v5e_4
    deepseek_7b                  v5p_4, v6e_8
    olmo3_7b                     v5p_4, v5p_8

or `tiny`, which makes two steps of the puzzle with random weights of the same architecture. The context is
the whole solution, c = s; `--config.teacher.context.kind=answer` takes its thinking away. Changes against the
base on AIME24, as the paper reports them: −40.7 % (DeepSeek), −12.1 % (Qwen3-8B), −45.9 % (Qwen3-1.7B, all
with c = s), below the base for Olmo-3.

A teacher's row has up to 22,528 + 20,480 = 43,008 tokens, which is beyond Qwen3's 40,960 positions: the
released runs go there, so this does too; `--config.teacher.max_prompt_length=20480` does not.

Estimates. A step learns from 2,048 responses of at most 20,480 tokens: 42 million, 4.2 billion in 100 steps.
Were all that long, a step would take at least 2,048 / rows × the seconds of a gradient, and 2,048 / slots ×
20,480 × those of a token (docs/scale.md; bounds from the shapes, no measurements). So 100 steps would
take at least, in hours and with WHERE in the order above: qwen3_8b 200, 420, 140, 330; qwen3_1p7b
370, 720; deepseek_7b 200, 120; olmo3_7b 770, 390. Shorter responses take less.
"""

from ml_collections import ConfigDict

from configs.paper import common


def get_config(arg: str = "qwen3_8b") -> ConfigDict:
    """Settings of one run."""
    model, where = common.parsed(arg, {name: name for name in common.MODELS})
    return common.sdpo(common.on_policy(model, where, split="dapo_math_17k", prompts=256, mini_batch=128))
