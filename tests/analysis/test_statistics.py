import itertools
import math
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sdistill.analysis.statistics import (
    bootstrap_mean,
    maj_at_k,
    minimum_detectable,
    paired_bootstrap,
    pass_at_k,
)


@pytest.mark.parametrize(("n", "c"), [(20, 7), (50, 25), (128, 100)])
def test_interval_of_a_share_is_that_of_the_binomial(n, c):
    values = np.repeat([1.0, 0.0], [c, n - c])
    estimate = bootstrap_mean([values])
    assert estimate.value == c / n
    below, above = (stats.binom(n, c / n).ppf(q) / n for q in (0.025, 0.975))
    assert abs(estimate.low - below) <= 1.01 / n and abs(estimate.high - above) <= 1.01 / n


def test_interval_of_three_values_is_that_of_all_their_resamples():
    values = np.array([0.0, 1.0, 10.0])
    means = [np.mean(r) for r in itertools.product(values, repeat=3)]
    estimate = bootstrap_mean([values])
    low, high = np.percentile(means, [2.5, 97.5], method="inverted_cdf")
    assert (estimate.low, estimate.high) == (low, high)
    assert estimate.value == pytest.approx(11 / 3, rel=1e-12)


def test_strata_are_averaged_and_their_spread_shrinks_by_the_root():
    rng = np.random.default_rng(0)
    strata = [rng.normal(i, 1, 400) for i in range(4)]
    estimate = bootstrap_mean(strata)
    assert estimate.value == pytest.approx(np.mean([np.mean(s) for s in strata]), rel=1e-12)
    error = math.sqrt(sum(np.var(s) / 400 for s in strata)) / 4
    assert (estimate.high - estimate.low) / 2 == pytest.approx(1.96 * error, rel=0.06)
    assert (estimate.high + estimate.low) / 2 == pytest.approx(estimate.value, abs=0.2 * error)


def test_every_stratum_weighs_the_same_whatever_its_size():
    assert bootstrap_mean([np.zeros(1), np.ones(9)]).value == 0.5


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12))
def test_interval_holds_the_resampled_means_and_moves_with_the_values(values):
    values = np.asarray(values)
    estimate = bootstrap_mean([values])
    assert values.min() - 1e-9 <= estimate.low <= estimate.high <= values.max() + 1e-9
    assert bootstrap_mean([values]) == estimate
    moved = bootstrap_mean([2 * values + 3])
    np.testing.assert_allclose(moved, 2 * np.asarray(estimate) + 3, rtol=1e-9, atol=1e-9)


def test_one_problem_gives_a_point():
    assert bootstrap_mean([np.array([0.25])]) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("strata", [[], [np.array([])], [np.ones(3), np.array([])]])
def test_nothing_to_average(strata):
    with pytest.raises(ValueError, match="no values to average"):
        bootstrap_mean(strata)


def crossed(rng, seeds, problems, sd_seed, sd_problem, sd_rest):
    """Differences of which seed and problem each have their share; their true mean is 0."""
    return (
        rng.normal(0, sd_seed, (seeds, 1))
        + rng.normal(0, sd_problem, (1, problems))
        + rng.normal(0, sd_rest, (seeds, problems))
    )


def test_pairs_of_one_seed_are_resampled_by_problem():
    differences = np.random.default_rng(0).uniform(-1, 1, (1, 30))
    expected = bootstrap_mean([differences[0]])
    np.testing.assert_allclose(paired_bootstrap(differences), expected, rtol=1e-12)


def test_pairs_are_resampled_by_seed_and_by_problem():
    """Against the plainest way: rows and columns drawn with replacement, the table of both averaged."""
    rng = np.random.default_rng(1)
    differences = crossed(rng, 5, 12, 1.1, 2.2, 0.7) + 3
    means = []
    for _ in range(20_000):
        rows, columns = rng.integers(0, 5, 5), rng.integers(0, 12, 12)
        means.append(differences[np.ix_(rows, columns)].mean())
    low, high = np.percentile(means, [2.5, 97.5])
    estimate = paired_bootstrap(differences)
    assert estimate.value == pytest.approx(differences.mean(), rel=1e-12)
    assert estimate.low == pytest.approx(low, abs=0.05 * (high - low))
    assert estimate.high == pytest.approx(high, abs=0.05 * (high - low))


def test_intervals_over_seeds_and_problems_hold_the_truth_where_those_within_seeds_do_not():
    rng = np.random.default_rng(2)
    within, across, runs = 0, 0, 300
    for _ in range(runs):
        table = crossed(rng, 10, 40, 0.3, 1.0, 1.0)
        estimate = paired_bootstrap(table)
        across += estimate.low <= 0 <= estimate.high
        estimate = bootstrap_mean(list(table))
        within += estimate.low <= 0 <= estimate.high
    assert 0.91 <= across / runs <= 0.99  # 0.95, give or take three standard errors
    assert within / runs < 0.75


@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 0)])
def test_what_is_not_paired_is_refused(shape):
    with pytest.raises(ValueError, match="an array of seeds × problems"):
        paired_bootstrap(np.zeros(shape))


@given(st.floats(-1, 1), st.floats(1e-3, 10))
def test_the_detectable_difference_is_found_four_times_in_five(value, error):
    margin = stats.norm.ppf(0.975)
    effect = minimum_detectable(value - margin * error, value + margin * error)
    power = stats.norm.sf(margin - effect / error)  # the other side of zero adds next to nothing
    assert power == pytest.approx(0.8, abs=1e-6)


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_k_is_the_share_of_groups_with_a_success(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        correct = [True] * c + [False] * (n - c)
        groups = [any(group) for group in itertools.combinations(correct, k)]
        assert pass_at_k(correct, k) == pytest.approx(np.mean(groups), abs=1e-12)


@pytest.mark.parametrize("k", [0, -1, 4])
@pytest.mark.parametrize(
    "figure", [lambda k: pass_at_k([True] * 3, k), lambda k: maj_at_k("abc", [True] * 3, k)]
)
def test_groups_larger_than_the_samples_are_refused(figure, k):
    with pytest.raises(ValueError, match=rf"@{k} needs 1 <= k <= n = 3 samples"):
        figure(k)


def vote(answers, right):
    counts = {a: answers.count(a) for a in answers if a is not None}
    if not counts:
        return 0.0
    tied = [a for a in counts if counts[a] == max(counts.values())]
    return sum(a in right for a in tied) / len(tied)


@pytest.mark.parametrize(
    ("answers", "right", "score"),
    [
        ("aab", "a", 1.0),
        ("aab", "b", 0.0),
        ("ab", "a", 0.5),
        ("abc", "ab", 2 / 3),
        ("aabbc", "bc", 0.5),
        ([None, None, "a"], "a", 1.0),
        ([None, None], "", 0.0),
    ],
)
def test_maj_of_all_samples(answers, right, score):
    correct = [a is not None and a in right for a in answers]
    assert maj_at_k(answers, correct, len(answers)) == pytest.approx(score, abs=1e-12)


@given(st.lists(st.sampled_from([None, "a", "b", "c"]), min_size=2, max_size=6), st.data())
def test_maj_at_k_is_near_the_mean_over_all_groups(answers, data):
    k = data.draw(st.integers(1, len(answers)))
    correct = [a in ("a", "b") for a in answers]
    exact = np.mean([vote(group, "ab") for group in itertools.combinations(answers, k)])
    assert maj_at_k(answers, correct, k, resamples=2000) == pytest.approx(exact, abs=4 * 0.5 / 2000**0.5)


def test_maj_at_k_does_not_depend_on_the_order_of_all_samples():
    answers, correct = list("aabbc"), [True, True, False, False, False]
    scores = {
        maj_at_k(*zip(*p, strict=True), 5) for p in itertools.permutations(zip(answers, correct, strict=True))
    }
    assert scores == {0.5}


def test_equal_answers_of_which_one_was_cut_count_the_same_in_any_order():
    assert maj_at_k("aa", [True, False], 2) == maj_at_k("aa", [False, True], 2)


def test_maj_at_k_is_the_same_every_time():
    answers, correct = list(string.ascii_lowercase[:6]) * 2, [True, False] * 6
    assert maj_at_k(answers, correct, 5) == maj_at_k(answers, correct, 5)
