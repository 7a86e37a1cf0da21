"""Which words rise and fall: recovered where they do, and seldom where nothing changes."""

import math
from collections import Counter

import numpy as np
import pytest

from sdistill.analysis.statistics import benjamini_hochberg, sign_flip_p_values
from sdistill.analysis.word_changes import PRIOR, log_odds, standing_out, word_changes
from tests import tiny

VOCABULARY = [*"abcdefghijklmnopqrstuvwxyz"]
WORDS = [a + b for a in "klmn" for b in "aeiou"]  # none of them epistemic


def responses(rng, rates, problems=60, samples=3):
    """Responses whose words have Poisson counts; a problem makes all words more or less frequent."""
    rows = []
    for problem in range(problems):
        hard = np.random.default_rng(problem).gamma(4, 0.25)
        for _ in range(samples):
            words = [w for w, rate in rates.items() for _ in range(rng.poisson(rate * hard))]
            rng.shuffle(words)
            rows.append(tiny.response(f"p{problem}", " ".join(words)))
    return rows


def test_words_that_changed_are_found_with_their_sizes():
    base = dict.fromkeys(WORDS, 1.0) | {"wait": 2.0, "perhaps": 1.0, "maybe": 0.5}
    trained = base | {"wait": 0.5, "ka": 2.0, "le": 0.2}
    rng = np.random.default_rng(0)
    ours = {seed: responses(rng, trained) for seed in (0, 1)}
    theirs = {seed: responses(rng, base) for seed in (0, 1, 2)}
    changes = {change.word: change for change in word_changes(ours, theirs)}
    assert {"wait", "perhaps", "maybe", "ka", "le"} <= changes.keys() and len(changes) <= 3 + 2 * 8
    assert all(changes[w].listed == (w in ("wait", "perhaps", "maybe")) for w in changes)
    for word, change in (("wait", -1.5), ("ka", 1.0), ("le", -0.8), ("perhaps", 0.0)):
        found = changes[word]
        assert found.change.low <= change <= found.change.high, word
        assert found.before == pytest.approx(base[word], abs=0.2)
        assert (found.p < 0.01) == (change != 0)
        assert (abs(found.z) > 4) == (change != 0) and (change == 0 or found.z * change > 0)


def test_hardly_a_word_changes_where_nothing_does():
    """In 60 comparisons of a model with itself: with 95 % confidence at most 5 % have any discovery."""
    rates = dict.fromkeys(WORDS, 0.7) | {"wait": 1.0, "hmm": 0.05}
    false = 0
    for trial in range(60):
        rng = np.random.default_rng(trial)
        sides = [{0: responses(rng, rates, problems=30, samples=2)} for _ in range(2)]
        false += any(change.p < 0.05 for change in word_changes(*sides))
    assert false <= 7  # the 97.8 % point of a binomial of 60 at 0.05 is 7


def test_p_values_are_exact_for_few_problems():
    """Of 8 flips of three problems 2 are as large as equal differences, and 4 as large as 3, 2, -1."""
    p = sign_flip_p_values(np.array([[1.0, 0.0, 3.0], [1.0, 0.0, 2.0], [1.0, 0.0, -1.0]]))
    assert p == pytest.approx([0.25, 1.0, 0.5], abs=0.015)


def test_adjusted_p_values_are_the_step_up_procedure():
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = rng.uniform(0, 1, 12) ** 3
        adjusted = benjamini_hochberg(p.tolist())
        for q in (0.01, 0.05, 0.2, 0.6):
            ranked = sorted(p)
            passed = [k for k in range(12) if ranked[k] <= q * (k + 1) / 12]
            limit = ranked[passed[-1]] if passed else -1.0
            assert [a <= q for a in adjusted] == [x <= limit for x in p]
    assert benjamini_hochberg([]) == []


def test_log_odds_are_those_of_the_paper():
    ours, theirs = Counter(wait=2, so=30, yes=8), Counter(wait=40, so=35)
    pooled = ours + theirs
    alpha = {w: PRIOR * n / sum(pooled.values()) for w, n in pooled.items()}
    total = sum(alpha.values())
    for word, z in log_odds(ours, theirs, pooled).items():
        odds = [
            (side[word] + alpha[word]) / (sum(side.values()) + total - side[word] - alpha[word])
            for side in (ours, theirs)
        ]
        variance = sum(1 / (side[word] + alpha[word]) for side in (ours, theirs))
        assert z == pytest.approx((math.log(odds[0]) - math.log(odds[1])) / math.sqrt(variance))


def test_the_most_extreme_words_stand_out():
    z = {f"w{i}": i - 20.0 for i in range(41)}
    found = standing_out(z)
    assert found == [f"w{i}" for i in [*range(8), *range(33, 41)]]
    assert standing_out({"a": 1.9, "b": -1.9}) == []


def test_without_shared_problems_there_is_nothing_to_compare():
    row = tiny.response("a", "wait")
    assert word_changes({0: [row]}, {1: [row]}) == []
    assert word_changes({0: [row]}, {0: [tiny.response("b", "wait")]}) == []
    assert word_changes({}, {}) == []
