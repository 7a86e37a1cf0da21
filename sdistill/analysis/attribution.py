"""Where the training signal falls in the rollouts of a run, and which words change their frequency.

The signal needs runs with `attribution`. Tokens are grouped by class, by their place in the response, and by
the student's entropy. A group has a share of the tokens, a share of the signal, and a mean divergence from
the teacher.

Words are compared by their occurrences in a response, paired by problem. Their p-values come from flipping
signs and are adjusted for all compared words (`statistics.benjamini_hochberg`): the question is which words
have changed, and a small share of false discoveries does no harm. Words beside the paper's list are ranked by
log-odds with an informative Dirichlet prior, which neither rare nor common words win by chance (Monroe,
Colaresi & Quinn 2008, "Fightin' Words", doi:10.1093/pan/mpn018).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sdistill.analysis.epistemic import CLASSES, WORDS, token_classes
from sdistill.analysis.statistics import (
    Estimate,
    benjamini_hochberg,
    bootstrap_mean,
    bootstrap_ratio,
    sign_flip_p_values,
)
from sdistill.text.words import map_rows, word_counts
from sdistill.types import Response, group_by_problem

ATTRIBUTION = "attribution"
TENTHS, FIFTHS = 10, 5
GROUPINGS: Mapping[str, Sequence[str]] = {
    "class": CLASSES,
    "tenth": [str(i + 1) for i in range(TENTHS)],
    "fifth": [str(i + 1) for i in range(FIFTHS)],
}
"""Groupings: by class, by `tenth` of the response, and by `fifth` of all tokens by the student's entropy; the
last fifth are the forks."""
MEASURES = ("tokens", "signal", "divergence")
PRIOR = 500  # words that the prior counts for
RARE = 10  # words with fewer occurrences in both together are not compared
FOUND = 8  # words in either direction that are taken from the data


class Tokens(NamedTuple):
    """The N tokens of some rollouts to P problems.

    Attributes:
      num_problems: P.
      problem_N: Index of the problem of each token.
      groups: Grouping → the group of each token.
      signal_N: Norm of the objective's gradient.
      divergence_N: From the teacher, in nats; 0 where there is none.
      has_teacher_N: 1 where the rollout has a teacher.
    """

    num_problems: int
    problem_N: Int[np.ndarray, " N"]
    groups: dict[str, Int[np.ndarray, " N"]]
    signal_N: Float[np.ndarray, " N"]
    divergence_N: Float[np.ndarray, " N"]
    has_teacher_N: Float[np.ndarray, " N"]


def tokens_of(responses: Sequence[Response]) -> Tokens | None:
    """The tokens of the rollouts that have an attribution; None if none has."""
    rows = [(r.problem, r.attribution) for r in responses if r.attribution and r.attribution.signal]
    if not rows:
        return None
    problems = {problem: i for i, problem in enumerate(dict.fromkeys(problem for problem, _ in rows))}
    lengths = [len(a.signal) for _, a in rows]
    classes_BT = map_rows(token_classes, [a.tokens for _, a in rows], max(lengths))
    entropy_N = np.concatenate([np.asarray(a.entropy) for _, a in rows])
    ranks_N = np.empty(len(entropy_N), int)
    ranks_N[np.argsort(entropy_N, kind="stable")] = np.arange(len(entropy_N))
    return Tokens(
        len(problems),
        np.repeat([problems[problem] for problem, _ in rows], lengths),
        {
            "class": classes_BT[np.arange(max(lengths)) < np.reshape(lengths, (-1, 1))],
            "tenth": np.concatenate([np.arange(n) * TENTHS // n for n in lengths]),
            "fifth": ranks_N * FIFTHS // len(ranks_N),
        },
        np.concatenate([np.asarray(a.signal) for _, a in rows]),
        np.concatenate([np.asarray(a.divergence or np.zeros(len(a.signal))) for _, a in rows]),
        np.repeat([float(a.divergence is not None) for _, a in rows], lengths),
    )


def signal_by_group(seeds: Sequence[Tokens], grouping: str) -> dict[tuple[str, str], Estimate]:
    """(Measure, group) → estimate, with intervals over problems within seeds. A group is `GROUPING:NAME`.

    The shares are of all tokens of the rollouts and of all their signal; the mean divergence, in nats, is
    over the group's tokens in rows with a teacher. A share of nothing, or a mean over no tokens, is left out.
    """
    parts = [_by_problem(tokens, grouping) for tokens in seeds]
    estimates = {
        (measure, f"{grouping}:{group}"): bootstrap_ratio([part[measure][:, :, index] for part in parts])
        for measure in MEASURES
        for index, group in enumerate(GROUPINGS[grouping])
    }
    return {name: estimate for name, estimate in estimates.items() if estimate is not None}


def _by_problem(tokens: Tokens, grouping: str) -> dict[str, Float[np.ndarray, "2 P G"]]:
    """Measure → what each of P problems adds to the numerator and the denominator of each of G groups."""
    size = len(GROUPINGS[grouping])
    cells_N = tokens.problem_N * size + tokens.groups[grouping]

    def total(weights_N: Float[np.ndarray, " N"]) -> Float[np.ndarray, "P G"]:
        return np.bincount(cells_N, weights_N, tokens.num_problems * size).reshape(-1, size)

    def share(weights_N: Float[np.ndarray, " N"]) -> Float[np.ndarray, "2 P G"]:
        above = total(weights_N)
        return np.stack([above, np.broadcast_to(above.sum(axis=1, keepdims=True), above.shape)])

    taught_N = tokens.has_teacher_N
    return {
        "tokens": share(np.ones_like(taught_N)),
        "signal": share(tokens.signal_N),
        "divergence": np.stack([total(tokens.divergence_N * taught_N), total(taught_N)]),
    }


def word_changes(
    ours: Mapping[int, Sequence[Response]], theirs: Mapping[int, Sequence[Response]]
) -> dict[tuple[str, str], Estimate | float]:
    """The words of the paper's list that occur, and the words beside it that changed most.

    A problem's difference is the mean over the seeds that both have: intervals and p-values are about other
    problems, and not about other seeds.

    Returns: (measure, word) → `word_base`, occurrences in a response of the baseline; `word_change`, their
      difference, with an interval over problems; `word_p`, adjusted for all compared words; and `word_z`, of
      the log-odds.
    """
    shared = [seed for seed in ours if seed in theirs]
    # Problem → occurrences of each word in the responses to it, and the number of responses.
    counts = [
        {
            problem: (word_counts(r.text for r in group), len(group))
            for problem, group in group_by_problem(r for seed in shared for r in side[seed]).items()
        }
        for side in (ours, theirs)
    ]
    problems = [p for p in counts[0] if p in counts[1]]
    if not problems:
        return {}
    totals = [sum((side[p][0] for p in problems), Counter[str]()) for side in counts]
    pooled = totals[0] + totals[1]
    words = sorted(w for w, n in pooled.items() if n >= RARE or w in WORDS)
    if not words:
        return {}
    rates = [np.asarray([[side[p][0][w] / side[p][1] for w in words] for p in problems]) for side in counts]
    changes_PW = rates[0] - rates[1]
    p_values = benjamini_hochberg(sign_flip_p_values(changes_PW))
    z = log_odds(totals[0], totals[1], pooled)
    chosen = {*WORDS, *standing_out({word: z[word] for word in words if word not in WORDS})}
    found: dict[tuple[str, str], Estimate | float] = {}
    for i, word in enumerate(words):
        if word in chosen:
            found["word_base", word] = float(rates[1][:, i].mean())
            found["word_change", word] = bootstrap_mean([changes_PW[:, i]])
            found["word_p", word], found["word_z", word] = p_values[i], z[word]
    return found


def log_odds(ours: Counter[str], theirs: Counter[str], background: Counter[str]) -> dict[str, float]:
    """Word → z-score of the difference of its log-odds, above 0 where ours has it more often.

    The prior is `PRIOR` words, distributed as in the background (equations 15, 16, 20 and 22 of the paper).
    """
    scale = PRIOR / sum(background.values())
    size, others = sum(ours.values()) + PRIOR, sum(theirs.values()) + PRIOR
    found = {}
    for word, total in background.items():
        a, b = ours[word] + scale * total, theirs[word] + scale * total
        difference = math.log(a / (size - a)) - math.log(b / (others - b)) if size > a and others > b else 0.0
        found[word] = difference / math.sqrt(1 / a + 1 / b)
    return found


def standing_out(z: Mapping[str, float]) -> list[str]:
    """The words with the largest rise and those with the largest fall, with a z-score beyond 1.96."""
    ranked = sorted(z, key=lambda word: (z[word], word))
    return [w for w in ranked[:FOUND] if z[w] < -1.96] + [w for w in ranked[-FOUND:] if z[w] > 1.96]
