"""From the responses to one problem to figures about them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sdistill.analysis.statistics import maj_at_k, pass_at_k

Generation = dict[str, Any]
"""One response and its verdict, as it is kept on disk: `problem` (id), `sample`, `prompt`, `response`,
`correct`, `answer`, `feedback` and `timed_out` (see `Verdict`), `finish` (`stop`, `length` or `error`),
`length` in tokens, `words` and `substrings` (epistemic, see `epistemic`), and where richness was measured
`bits`. Optional, for the report's viewer: `context` (the teacher's user turn, or None). Of rollouts of a run
with `attribution`, lists of one entry a token: `tokens` (texts), `signal`, `entropy` and `divergence` (see
`training.attribution`)."""


def _mean(field: str) -> Callable[[Sequence[Generation]], float]:
    return lambda group: float(np.mean([generation[field] for generation in group]))


METRICS: Mapping[str, Callable[[Sequence[Generation]], float]] = {
    "accuracy": _mean("correct"),
    "length": _mean("length"),
    "words": _mean("words"),
    "words_substring": _mean("substrings"),
    "finished": lambda group: float(np.mean([g["finish"] == "stop" for g in group])),
}
RICHNESS_METRICS: Mapping[str, Callable[[Sequence[Generation]], float]] = {
    "bits_per_response": _mean("bits"),
    "bits_per_token": lambda group: float(np.mean([g["bits"] / g["length"] for g in group])),
}


def by_problem(generations: Sequence[Generation]) -> dict[str, dict[str, float]]:
    """Metric → problem → figure. pass@n and maj@n take all n samples that every problem has."""
    groups: dict[str, list[Generation]] = {}
    for generation in generations:
        groups.setdefault(generation["problem"], []).append(generation)
    metrics = dict(METRICS)
    if "bits" in generations[0]:
        metrics |= RICHNESS_METRICS
    n = min(len(group) for group in groups.values())
    metrics[f"pass@{n}"] = lambda group: pass_at_k([g["correct"] for g in group], n)
    metrics[f"maj@{n}"] = lambda group: maj_at_k(
        [g["answer"] for g in group], [g["correct"] for g in group], n
    )
    return {name: {p: metric(group) for p, group in groups.items()} for name, metric in metrics.items()}
