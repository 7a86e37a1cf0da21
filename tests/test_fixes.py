"""Every fix does what its formula says, one number at a time in plain Python."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdistill.config import (
    AntiSelfDistillation,
    ContextConfig,
    ContrastiveHints,
    ForkAware,
    TeacherConfig,
)
from sdistill.fixes import (
    anti_advantages,
    contrastive_advantages,
    contrastive_evidence,
    fork_weights,
    gate_is_open,
    pass_rate_weights,
    without_words,
)

TEACHER = TeacherConfig(ContextConfig("solution"), 64, weights="live")


def test_words_are_masked_besides_what_is_masked_already():
    mask = np.array([[1, 1, 1, 0], [1, 0, 0, 0]], np.float32)
    markers = np.array([[0, 1, 0, 1], [1, 0, 0, 0]], np.float32)
    np.testing.assert_array_equal(without_words(mask, markers), [[1, 0, 1, 0], [0, 0, 0, 0]])


def test_problems_solved_half_the_time_weigh_most():
    correct = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
    raw = [math.sqrt(p * (1 - p)) for p in (0.5, 0.25, 0.0, 1.0)]
    expected = [w / (sum(raw) / 4) for w in raw]
    np.testing.assert_allclose(pass_rate_weights(correct), expected, rtol=1e-6)


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=6))
def test_pass_rate_weights_have_mean_one_or_are_all_zero(groups):
    weights = pass_rate_weights(np.array(groups))
    assert weights.dtype == np.float32
    undecided = any(0 < sum(group) < 4 for group in groups)
    assert weights.mean() == pytest.approx(1 if undecided else 0)


def test_forks_are_repelled_and_the_rest_attracted():
    entropy = jnp.array([[0.2, 1.0, 1.1]])
    config = ForkAware(threshold=1.0, repulsion=0.3)
    np.testing.assert_allclose(fork_weights(entropy, config), [[1, 1, -0.3]], rtol=1e-6)
    assert not jax.grad(lambda x: jnp.sum(fork_weights(x, config)))(entropy).any()


def test_evidence_is_the_gap_between_the_correct_hint_and_the_mean_of_wrong_ones():
    log_probs = np.log(np.random.default_rng(0).uniform(0.05, 0.9, (4, 5, 3))).astype(np.float32)
    shown = np.array([[1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 0, 0, 1, 0], [1, 0, 0, 0, 0]], np.float32)
    expected = np.zeros((5, 3))
    for row, hints in ((0, [1, 2, 3]), (1, [1])):  # the others lack a correct or any wrong hint
        for t in range(3):
            wrong = np.mean([math.exp(log_probs[hint, row, t]) for hint in hints])
            expected[row, t] = log_probs[0, row, t] - math.log(wrong)
    np.testing.assert_allclose(contrastive_evidence(log_probs, shown), expected, rtol=1e-5, atol=1e-7)


def test_evidence_survives_hints_that_rule_a_token_out():
    log_probs = np.array([[[-1.0]], [[-800.0]], [[-801.0]]], np.float32)
    found = contrastive_evidence(log_probs, np.ones((3, 1), np.float32))
    expected = -1 + 800 - math.log((1 + math.exp(-1)) / 2)
    np.testing.assert_allclose(found, [[expected]], rtol=1e-6)


@given(
    st.floats(-1, 1, width=32),
    st.one_of(st.just(0.0), st.floats(-0.1, 0.1), st.floats(-10, 10)),
)
def test_contrastive_advantages_follow_the_rule_and_never_flip(advantage, evidence):
    config = ContrastiveHints(TEACHER)
    r = 0.5 * math.tanh(evidence / 0.02)
    expected = advantage + r if abs(r) > 0.02 else advantage
    if expected * advantage <= 0:
        expected = 0.0
    found = contrastive_advantages(np.array([[advantage]]), np.array([[evidence]]), config)
    np.testing.assert_allclose(found, [[expected]], rtol=1e-6, atol=1e-12)
    assert found[0, 0] * advantage >= 0


def test_anti_self_distillation_takes_from_what_the_teacher_likes_and_gives_a_bounded_bonus():
    gap = np.array([[-50.0, -1.0, 0.0, 1.0, 4.0, 800.0]])
    phi = [(math.log1p(math.exp(u)) - math.log(2)) / 2 if u < 700 else (u - math.log(2)) / 2 for u in gap[0]]
    found = anti_advantages(np.full((1, 6), 0.25), gap, scale=0.4)
    np.testing.assert_allclose(found, [[0.25 - 0.4 * x for x in phi]], rtol=1e-12)
    assert found[0, 2] == 0.25 and found[0, 0] == pytest.approx(0.25 + 0.4 * math.log(2) / 2)


def test_the_gate_compares_with_the_mean_of_the_warm_up():
    config = AntiSelfDistillation(TEACHER, gate=0.9, warmup=3)
    entropies = [1.0, 0.7, 1.3, 0.91, 0.89, 0.5, 0.95]
    found = [gate_is_open(entropies[: n + 1], config) for n in range(len(entropies))]
    # Means over the warm-up so far: 1, 0.85, then 1 for good.
    assert found == [True, False, True, True, False, False, True]
