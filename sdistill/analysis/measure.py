"""From the responses to one problem to figures about them."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sdistill.analysis.statistics import maj_at_k, pass_at_k
from sdistill.types import Response


def _mean(field: str) -> Callable[[Sequence[Response]], float]:
    return lambda group: float(np.mean([getattr(response, field) for response in group]))


METRICS: Mapping[str, Callable[[Sequence[Response]], float]] = {
    "accuracy": _mean("correct"),
    "length": _mean("length"),
    "words": _mean("num_epistemic"),
    "words_substring": _mean("num_epistemic_substrings"),
    "finished": lambda group: float(np.mean([r.finish == "stop" for r in group])),
}
RICHNESS_METRICS: Mapping[str, Callable[[Sequence[Response]], float]] = {
    "bits_per_response": _mean("bits"),
    "bits_per_token": lambda group: float(np.mean([(r.bits or 0.0) / r.length for r in group])),
}


def by_problem(responses: Sequence[Response]) -> dict[str, dict[str, float]]:
    """Metric → problem → figure. pass@n and maj@n take all n samples that every problem has."""
    groups: dict[str, list[Response]] = {}
    for response in responses:
        groups.setdefault(response.problem, []).append(response)
    metrics = dict(METRICS)
    if responses[0].bits is not None:
        metrics |= RICHNESS_METRICS
    n = min(len(group) for group in groups.values())
    metrics[f"pass@{n}"] = lambda group: pass_at_k([r.correct for r in group], n)
    metrics[f"maj@{n}"] = lambda group: maj_at_k([r.answer for r in group], [r.correct for r in group], n)
    return {name: {p: metric(group) for p, group in groups.items()} for name, metric in metrics.items()}
