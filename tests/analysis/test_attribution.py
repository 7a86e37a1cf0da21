"""Shares and means by groups of tokens, against plain loops; words that change, and how often by chance."""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest

from sdistill.analysis.attribution import (
    FIFTHS,
    GROUPINGS,
    PRIOR,
    TENTHS,
    log_odds,
    signal_by_group,
    standing_out,
    tokens_of,
    word_changes,
)
from sdistill.analysis.epistemic import CLASSES
from sdistill.analysis.statistics import benjamini_hochberg, bootstrap_ratio, sign_flip_p_values
from sdistill.types import TokenAttribution
from tests import tiny

TOKENS = [" wait", " maybe", " 8", " -3", " +", " so", " yes", " </think>", " perhaps"]
KIND = dict(zip(TOKENS, "eeddd" + "ooo" + "e", strict=True))


def rollouts(seed, problems=6, taught=lambda i: i % 3 != 0):
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(problems * 2):
        size = int(rng.integers(1, 25))
        by_token = TokenAttribution(
            tokens=rng.choice(TOKENS, size).tolist(),
            signal=rng.uniform(0, 1, size).tolist(),
            entropy=rng.uniform(0, 2, size).tolist(),
            divergence=rng.uniform(-0.1, 3, size).tolist() if taught(i) else None,
        )
        rows.append(tiny.response(f"p{i // 2}", attribution=by_token))
    return rows


def groups(rows, grouping):
    """(group, row, place) of every token, the slow way."""
    rows = [row.attribution for row in rows]
    ranked = sorted(e for row in rows for e in row.entropy)
    found = []
    for row in rows:
        size = len(row.tokens)
        for t in range(size):
            if grouping == "class":
                group = CLASSES["edo".index(KIND[row.tokens[t]])]
            elif grouping == "tenth":
                group = str(int(10 * t / size) + 1)
            else:
                group = str(int(5 * ranked.index(row.entropy[t]) / len(ranked)) + 1)
            found.append((group, row, t))
    return found


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_figures_are_those_of_plain_loops(grouping):
    seeds = [rollouts(0), rollouts(1)]
    tokens = [tokens_of(rows) for rows in seeds]
    assert None not in tokens
    found = signal_by_group(tokens, grouping)
    expected = {}
    for group in GROUPINGS[grouping]:
        by_seed = {"tokens": [], "signal": [], "divergence": []}
        for rows in seeds:
            every = groups(rows, grouping)
            mine = [(row, t) for g, row, t in every if g == group]
            by_seed["tokens"].append(len(mine) / len(every))
            by_seed["signal"].append(
                sum(row.signal[t] for row, t in mine) / sum(row.signal[t] for _, row, t in every)
            )
            taught = [row.divergence[t] for row, t in mine if row.divergence]
            by_seed["divergence"].append(np.mean(taught))
        expected |= {(m, f"{grouping}:{group}"): np.mean(v) for m, v in by_seed.items()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value), name
        assert found[name].low <= found[name].value <= found[name].high
    for measure in ("tokens", "signal"):
        assert sum(e.value for (m, _), e in found.items() if m == measure) == pytest.approx(1)
    assert len(GROUPINGS["tenth"]) == TENTHS and len(GROUPINGS["fifth"]) == FIFTHS


def test_what_has_no_teacher_has_no_divergence_and_what_has_no_signal_no_share():
    rows = rollouts(0, taught=lambda i: False)
    names = signal_by_group([tokens_of(rows)], "class")
    assert {measure for measure, _ in names} == {"tokens", "signal"}
    silent = [
        dataclasses.replace(row, attribution=dataclasses.replace(a, signal=[0.0] * len(a.signal)))
        for row in rows
        if (a := row.attribution)
    ]
    names = signal_by_group([tokens_of(silent)], "class")
    assert {measure for measure, _ in names} == {"tokens"}


def test_rollouts_of_runs_that_kept_nothing_have_no_tokens():
    assert tokens_of([tiny.response("a", "wait")]) is None and tokens_of([]) is None


def test_a_ratio_is_bootstrapped_with_both_of_its_parts():
    rng = np.random.default_rng(0)
    below = rng.uniform(1, 9, 40)
    estimate = bootstrap_ratio([np.array([0.3 * below, below])])
    assert estimate is not None  # the parts vary, and their ratio does not
    assert estimate == pytest.approx((0.3, 0.3, 0.3))
    assert bootstrap_ratio([np.array([below, 0 * below])]) is None and bootstrap_ratio([]) is None
    rare = np.zeros(40)
    rare[0] = 2.0
    found = bootstrap_ratio([np.array([rare, rare])])  # a third of the draws have none of it
    assert found is not None and np.isfinite(found).all()


def test_the_interval_of_a_ratio_holds_the_truth():
    """In 400 samples of 60 problems from a population whose ratio is known."""
    rng, held = np.random.default_rng(1), 0
    for _ in range(400):
        below = rng.gamma(2.0, 3.0, 60)
        above = below * rng.beta(2, 6, 60)
        estimate = bootstrap_ratio([np.array([above, below])])
        held += estimate.low <= 0.25 <= estimate.high
    assert 0.90 < held / 400 < 0.98


WORDS = [a + b for a in "klmn" for b in "aeiou"]  # none of them epistemic


def responses(rng, rates, problems=60, samples=3):
    """Responses whose words have Poisson counts; a problem makes all words more or less frequent."""
    rows = []
    for problem in range(problems):
        hard = np.random.default_rng(problem).gamma(4, 0.25)
        for counts in rng.poisson(hard * np.array([*rates.values()]), (samples, len(rates))):
            rows.append(tiny.response(f"p{problem}", " ".join(np.repeat([*rates], counts))))
    return rows


def test_words_that_changed_are_found_with_their_sizes():
    base = dict.fromkeys(WORDS, 1.0) | {"wait": 2.0, "perhaps": 1.0, "maybe": 0.5}
    trained = base | {"wait": 0.5, "ka": 2.0, "le": 0.2}
    rng = np.random.default_rng(0)
    ours = {seed: responses(rng, trained) for seed in (0, 1)}
    theirs = {seed: responses(rng, base) for seed in (0, 1, 2)}
    found = word_changes(ours, theirs)
    words = {word for _, word in found}
    assert {"wait", "perhaps", "maybe", "ka", "le"} <= words and len(words) <= 3 + 2 * 8
    for word, change in (("wait", -1.5), ("ka", 1.0), ("le", -0.8), ("perhaps", 0.0)):
        before, estimate, p, z = (found[f"word_{name}", word] for name in ("base", "change", "p", "z"))
        assert estimate.low <= change <= estimate.high, word
        assert before == pytest.approx(base[word], abs=0.2)
        assert (p < 0.01) == (change != 0)
        assert (abs(z) > 4) == (change != 0) and (change == 0 or z * change > 0)


def test_hardly_a_word_changes_where_nothing_does():
    """In 60 comparisons of a model with itself: with 95 % confidence at most 5 % have any discovery."""
    rates = dict.fromkeys(WORDS, 0.7) | {"wait": 1.0, "hmm": 0.05}
    false = 0
    for trial in range(60):
        rng = np.random.default_rng(trial)
        sides = [{0: responses(rng, rates, problems=30, samples=2)} for _ in range(2)]
        false += any(name == "word_p" and p < 0.05 for (name, _), p in word_changes(*sides).items())
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
    assert word_changes({0: [row]}, {1: [row]}) == {}
    assert word_changes({0: [row]}, {0: [tiny.response("b", "wait")]}) == {}
    assert word_changes({}, {}) == {}
