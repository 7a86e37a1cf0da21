"""Where the training signal falls, from the rollouts of a run that kept it (`training.attribution`).

Tokens are grouped by class, by where they stand in their response, and by how unsure the student was of them.
Of each group: its share of the tokens, its share of the signal, and its mean divergence from the teacher.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sdistill.analysis.statistics import Estimate, bootstrap_ratio
from sdistill.analysis.token_classes import CLASSES, token_classes
from sdistill.types import Response

ATTRIBUTION = "attribution"
TENTHS, FIFTHS = 10, 5
GROUPINGS: Mapping[str, Sequence[str]] = {
    "class": CLASSES,
    "tenth": [str(i + 1) for i in range(TENTHS)],
    "fifth": [str(i + 1) for i in range(FIFTHS)],
}
"""How tokens are grouped: by class, by the `tenth` of the response they stand in, and by the `fifth` of all
tokens they are in by the entropy of the student; the last are the forks."""
MEASURES = ("tokens", "signal", "divergence")


class Tokens(NamedTuple):
    """The N tokens of some rollouts to P problems.

    Attributes:
      problems: How many problems there are.
      problem_N: Which of them a token answers.
      groups: Grouping → the group of each token.
      signal_N: Norm of the objective's gradient there.
      divergence_N: From the teacher, in nats; 0 where there is none.
      taught_N: 1 where the row has a teacher.
    """

    problems: int
    problem_N: Int[np.ndarray, " N"]
    groups: dict[str, Int[np.ndarray, " N"]]
    signal_N: Float[np.ndarray, " N"]
    divergence_N: Float[np.ndarray, " N"]
    taught_N: Float[np.ndarray, " N"]


def tokens_of(responses: Sequence[Response]) -> Tokens | None:
    """The tokens of the rollouts that kept their signal; None if none did."""
    rows = [(r.problem, r.attribution) for r in responses if r.attribution and r.attribution.signal]
    if not rows:
        return None
    problems = {problem: i for i, problem in enumerate(dict.fromkeys(problem for problem, _ in rows))}
    lengths = [len(a.signal) for _, a in rows]
    texts = [text for _, a in rows for text in (*a.tokens, "\n")]  # so that no word goes over an end
    classes = np.delete(token_classes(texts), np.cumsum([n + 1 for n in lengths]) - 1)
    entropy_N = np.concatenate([np.asarray(a.entropy) for _, a in rows])
    ranks_N = np.empty(len(entropy_N), int)
    ranks_N[np.argsort(entropy_N, kind="stable")] = np.arange(len(entropy_N))
    return Tokens(
        len(problems),
        np.repeat([problems[problem] for problem, _ in rows], lengths),
        {
            "class": classes,
            "tenth": np.concatenate([np.arange(n) * TENTHS // n for n in lengths]),
            "fifth": ranks_N * FIFTHS // len(ranks_N),
        },
        np.concatenate([np.asarray(a.signal) for _, a in rows]),
        np.concatenate([np.asarray(a.divergence or np.zeros(len(a.signal))) for _, a in rows]),
        np.repeat([float(a.divergence is not None) for _, a in rows], lengths),
    )


def measured(seeds: Sequence[Tokens], grouping: str) -> dict[str, Estimate]:
    """`MEASURE:GROUPING:GROUP` → estimate, with intervals over problems within seeds.

    Shares of tokens and of signal are of all tokens of the rollouts; mean divergence is over a group's tokens
    in rows with a teacher, in nats. What has no tokens, or no signal at all, is left out.
    """
    parts = [_by_problem(tokens, grouping) for tokens in seeds]
    found = {}
    for measure in MEASURES:
        for index, group in enumerate(GROUPINGS[grouping]):
            estimate = bootstrap_ratio(
                [(above[:, index], below[:, index]) for above, below in (part[measure] for part in parts)]
            )
            if estimate is not None:
                found[f"{measure}:{grouping}:{group}"] = estimate
    return found


def _by_problem(
    tokens: Tokens, grouping: str
) -> dict[str, tuple[Float[np.ndarray, "P G"], Float[np.ndarray, "P G"]]]:
    """Measure → what each problem adds to the numerator and the denominator of each group."""
    count = len(GROUPINGS[grouping])
    places_N = tokens.problem_N * count + tokens.groups[grouping]

    def total(weights_N: Float[np.ndarray, " N"]) -> Float[np.ndarray, "P G"]:
        return np.bincount(places_N, weights_N, tokens.problems * count).reshape(-1, count)

    def share(weights_N: Float[np.ndarray, " N"]) -> tuple[np.ndarray, np.ndarray]:
        above = total(weights_N)
        return above, np.broadcast_to(above.sum(axis=1, keepdims=True), above.shape)

    return {
        "tokens": share(np.ones_like(tokens.signal_N)),
        "signal": share(tokens.signal_N),
        "divergence": (total(tokens.divergence_N * tokens.taught_N), total(tokens.taught_N)),
    }
