"""Which fix keeps reasoning: eight fixes on top of SDPO or GRPO, on the signs puzzle.

    python -m sdistill.study --config configs/signs/fixes.py --workdir runs/fixes
    python -m sdistill.study --config configs/signs/fixes.py:quick --workdir runs/quick_fixes

Data, steps and learning rates are those of section 5 in `study.py`, with c = s; evaluated at the end only.
38 minutes on two CPU cores that had other work, every seed a third of it; `quick`, one seed and shorter, 6.
"""

import copy

from ml_collections import ConfigDict

from configs.signs import study
from configs.signs.common import CONTEXT
from sdistill.analysis.epistemic import WORDS

# Of these constants no published value was available.
FORKS = {"threshold": 0.5, "repulsion": 0.5}  # a quarter of the base's tokens, two thirds of its markers
ANTI_SCALE = 0.5


def get_config(arg: str = "") -> ConfigDict:
    """Settings of the study; `arg` is a key of `study.SIZES`."""
    paper = study.get_config(arg)
    grpo, sdpo = paper.grpo, paper.sdpo
    for run in (grpo, sdpo):
        run.evaluation.datasets = ["k3_test", "k4_test"]
        run.evaluation.every = run.steps

    def on_sdpo(**loss: object) -> ConfigDict:
        run = copy.deepcopy(sdpo)
        run.loss.update(loss)
        return run

    def with_context(max_prompt_length: int, **context: object) -> ConfigDict:
        run = copy.deepcopy(sdpo)
        run.teacher = {"context": {**context, **CONTEXT}, "max_prompt_length": max_prompt_length}
        return run

    def on_grpo(**fix: object) -> ConfigDict:
        run = copy.deepcopy(grpo)
        run.loss = ConfigDict(fix)
        return run

    solution = {"teacher": {**sdpo.teacher.to_dict(), "weights": "live"}}
    fixes = {
        "pointwise_clip": on_sdpo(divergence={"pointwise_clip": 0.05}),
        "marker_mask": on_sdpo(masked_words=WORDS),
        "pass_rate": on_sdpo(pass_rate_weight=True),
        "fork_aware": on_sdpo(fork_aware=FORKS),
        "other_problem": with_context(64, kind="other_problem"),
        "partial": with_context(16, kind="partial", fraction=0.5),
        "contrastive_hints": on_grpo(contrastive_hints=solution),
        "anti_self_distillation": on_grpo(anti_self_distillation={**solution, "scale": ANTI_SCALE}),
    }
    return ConfigDict(
        {
            "seeds": paper.seeds,
            "max_prompt_length": paper.max_prompt_length,
            "grpo": grpo,
            "sdpo": sdpo,
            "fixes": [{"fix": name, "train": run.to_dict()} for name, run in fixes.items()],
        }
    )
