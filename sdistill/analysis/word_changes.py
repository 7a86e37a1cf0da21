"""Which words a model says more or less often than another: those of a list, and those that the data show.

Words are compared by their occurrences in a response, paired by problem; p-values are from flipping signs and
are corrected for all words that are looked at together (`statistics.benjamini_hochberg`): the question is
which words have changed, and a small share of false ones among many found is no harm. Words that are not on
the list are ranked by log-odds with an informative Dirichlet prior, which neither rare nor common words win
by chance (Monroe, Colaresi & Quinn 2008, "Fightin' Words", doi:10.1093/pan/mpn018).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sdistill.analysis.epistemic import WORDS
from sdistill.analysis.statistics import Estimate, benjamini_hochberg, bootstrap_mean, sign_flip_p_values
from sdistill.text.words import count
from sdistill.types import Response

PRIOR = 500  # words that the prior counts for
RARE = 10  # words said less often by both together are not looked at
FOUND = 8  # words in either direction that are taken from the data


@dataclass(frozen=True)
class WordChange:
    """How one word has changed.

    Attributes:
      word: In small letters.
      listed: Whether it is on the paper's list.
      before: Occurrences in a response of the model compared with.
      change: Difference of occurrences in a response, with an interval over problems.
      p: Adjusted for all words that were looked at.
      z: Of the log-odds.
    """

    word: str
    listed: bool
    before: float
    change: Estimate
    p: float
    z: float


def word_changes(
    ours: Mapping[int, Sequence[Response]], theirs: Mapping[int, Sequence[Response]]
) -> list[WordChange]:
    """The words of the paper's list that either says, and those that stand out from the data.

    A problem's difference is the mean over the seeds that both have: what is said of chance is about other
    problems, and not about other seeds.

    Args:
      ours: Seed → responses.
      theirs: The same of the model compared with.
    """
    shared = [seed for seed in ours if seed in theirs]
    counts = [_by_problem([g for seed in shared for g in side[seed]]) for side in (ours, theirs)]
    problems = [p for p in counts[0] if p in counts[1]]
    if not problems:
        return []
    totals = [sum((side[p][0] for p in problems), Counter[str]()) for side in counts]
    pooled = totals[0] + totals[1]
    words = sorted(w for w, n in pooled.items() if n >= RARE or w in WORDS)
    if not words:
        return []
    rates = [np.asarray([[side[p][0][w] / side[p][1] for w in words] for p in problems]) for side in counts]
    p_values = benjamini_hochberg(sign_flip_p_values(rates[0] - rates[1]))
    z = log_odds(totals[0], totals[1], pooled)
    shown = {*WORDS, *standing_out({word: z[word] for word in words if word not in WORDS})}
    return [
        WordChange(
            word,
            word in WORDS,
            float(rates[1][:, i].mean()),
            bootstrap_mean([rates[0][:, i] - rates[1][:, i]]),
            p_values[i],
            z[word],
        )
        for i, word in enumerate(words)
        if word in shown
    ]


def log_odds(ours: Counter[str], theirs: Counter[str], background: Counter[str]) -> dict[str, float]:
    """Word → z-score of the difference of its log-odds, above 0 where ours say it more often.

    The prior is `PRIOR` words, distributed as the background's (equations 15, 16, 20 and 22 of the paper).
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
    """The words that have risen most and those that have fallen most, with a z-score beyond 1.96."""
    ranked = sorted(z, key=lambda word: (z[word], word))
    return [w for w in ranked[:FOUND] if z[w] < -1.96] + [w for w in ranked[-FOUND:] if z[w] > 1.96]


def _by_problem(responses: Sequence[Response]) -> dict[str, tuple[Counter[str], int]]:
    """Problem → how often each word occurs in the responses to it, and how many they are."""
    texts: dict[str, list[str]] = {}
    for response in responses:
        texts.setdefault(response.problem, []).append(response.text)
    return {problem: (count(found), len(found)) for problem, found in texts.items()}
