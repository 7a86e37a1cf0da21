"""Finding records of a study, and what the names in them mean."""

import math
from collections.abc import Sequence

from sdistill.analysis.records import Record

Seed = int | str

SECTIONS = {
    "richness": "Context richness (paper section 3)",
    "sft": "Off-policy self-distillation (paper section 4)",
    "on_policy": "On-policy self-distillation (paper section 5)",
    "trained_richness": "Context richness of trained models (section 3 after section 5)",
    "coverage": "Task coverage (paper section 6)",
}
"""The paper's sections; that of the fixes is in `ranking`."""
POOLED = "all"  # the seed of records that pool every seed
ACROSS = "any"  # the same, with an interval about other seeds too
NAMES = {
    "base": "base",
    "unguided": "no context (∅)",
    "other_problem": "another problem's solution",
    "partial": "partial solution",
    "partial_solution": "cut solution",
    "answer": "answer only (s∖think)",
    "regenerated": "regenerated (ỹ)",
    "solution": "full solution (s)",
    "sft_unguided": "SFT on unguided",
    "sft_guided": "SFT on guided (s∖think)",
    "sft_guided_solution": "SFT on guided (s)",
    "grpo": "GRPO",
    "sdpo_solution_fixed": "SDPO c = s",
    "sdpo_solution_ema": "SDPO c = s, EMA teacher",
    "sdpo_answer_fixed": "SDPO c = s∖think",
    "sdpo_answer_ema": "SDPO c = s∖think, EMA teacher",
    "sdpo": "SDPO",
    "sdpo_pointwise_clip": "SDPO + pointwise clip",
    "sdpo_marker_mask": "SDPO + marker mask",
    "sdpo_pass_rate": "SDPO + pass-rate weight",
    "sdpo_fork_aware": "SDPO + fork-aware",
    "sdpo_other_problem": "SDPO + other problem",
    "sdpo_partial": "SDPO + partial context",
    "grpo_contrastive_hints": "GRPO + contrastive hints",
    "grpo_anti_self_distillation": "GRPO + anti-self-distillation",
    "plain": "as it is",
    "forbid_words": "uncertainty words forbidden",
    "forbid_neutral": "other words forbidden",
    "forbid_half": "every second uncertainty word forbidden",
    "doubt_cue": "a word of doubt after the first wrong attempt",
    "doubt_neutral": "another word there",
    "doubt_nothing": "sampled again from there",
    "extra_cue": "a word of doubt instead of the end of thinking",
    "extra_neutral": "another word instead of the end",
    "extra_nothing": "sampled again from the end",
    "repair_cue": "a word of doubt instead of the end, where the answer was wrong",
    "repair_neutral": "another word instead of the end, where the answer was wrong",
    "repair_nothing": "sampled again from the end, where the answer was wrong",
    "shuffle_words": "uncertainty words of the first half moved about",
    "shuffle_neutral": "other words of the first half moved about",
    "shuffle_nothing": "sampled again from the first half",
    "mask_words": "no loss at uncertainty words",
    "mask_others": "no loss at other words",
}


DIALS = {"partial": "the answer", "partial_solution": "the worked solution"}
"""Contexts that show so many per cent of something, as in `partial_25`, and of what."""


def dial(condition: str) -> tuple[str, int] | None:
    """What a partial context shows a share of, and how much. In: `partial_25`. Out: `partial`, 25."""
    kind, _, percent = condition.rpartition("_")
    return (kind, int(percent)) if kind in DIALS and percent.isdecimal() else None


def name(condition: str) -> str:
    """A condition in words. In: `sdpo_64`, `grpo@answer`. Out: `SDPO |D| = 64`, `GRPO, answer only …`."""
    model, at, context = condition.partition("@")
    if at:
        return f"{name(model)}: {name(context)}"
    if found := dial(condition):
        return f"{found[1]} % of {DIALS[found[0]]}"
    kind, _, times = condition.rpartition("_")
    if kind in NAMES and kind.startswith(("extra", "repair")) and times.isdecimal():
        return f"{NAMES[kind]}, {times} ×"
    method, _, size = condition.partition("_")
    if condition not in NAMES and method in ("sdpo", "grpo"):
        return f"{method.upper()} |D| = {size}"
    return NAMES.get(condition, condition)


def condition_rank(condition: str) -> tuple[tuple[int, str, int], ...]:
    """A key that sorts conditions: known ones in the paper's order, those of a kind by |D| or share."""

    def place(part: str) -> tuple[int, str, int]:
        known = list(NAMES)
        kind, _, size = part.rpartition("_")
        if part in known:
            return known.index(part), "", 0
        return (
            known.index(kind) if kind in known else len(known),
            kind,
            int(size) if size.isdecimal() else 10**9,
        )

    model, _, context = condition.partition("@")
    return place(model), place(context)


def select(
    records: Sequence[Record],
    section: str,
    condition: str,
    dataset: str,
    metric: str,
    seed: Seed = POOLED,
) -> list[Record]:
    """The records of one curve that have a value, by step; of several for a step the last one."""
    found = {
        r["step"]: r
        for r in records
        if r["metric"] == metric
        and r["condition"] == condition
        and r["dataset"] == dataset
        and r["seed"] == seed
        and r["section"] == section
    }
    return [found[step] for step in sorted(found) if found[step]["value"] is not None]


def select_difference(
    records: Sequence[Record], section: str, condition: str, dataset: str, metric: str
) -> list[Record]:
    """`select` of a paired difference, with the interval that is about other seeds too if there is one."""
    across = select(records, section, condition, dataset, metric, ACROSS)
    return across or select(records, section, condition, dataset, metric)


def integer_seeds(records: Sequence[Record]) -> list[int]:
    """The seeds that were run."""
    return sorted({r["seed"] for r in records if isinstance(r["seed"], int)})


def coverage_sizes(records: Sequence[Record], method: str) -> list[str]:
    """The |D| of a method's runs in the coverage section, ascending and `all` last."""
    pairs = {r["condition"].partition("_")[::2] for r in records if r["section"] == "coverage"}
    sizes = [size for name, size in pairs if name == method and (size == POOLED or size.isdecimal())]
    return sorted(sizes, key=lambda size: math.inf if size == POOLED else int(size))
