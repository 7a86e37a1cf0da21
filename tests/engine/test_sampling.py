"""Drawing a token a row: against distributions that are sorted and truncated in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats
from scipy.special import log_softmax, softmax

from sdistill.engine.sampling import Sampling, SamplingArrays, draw, lowest_kept
from sdistill.settings import ConfigError
from tests.tiny import compilations

LOGITS = np.array([1.5, -0.5, 0.7, 2.0, -3.0, 0.1, 1.1, -1.2], np.float32)
V = len(LOGITS)
DRAWS = 20_000
ROWS = 8  # of the other calls: all of one shape, which is compiled once
NOTHING = np.zeros(V, bool)
COMPILED, LOWEST = jax.jit(draw), jax.jit(lowest_kept)

SETTINGS = [
    Sampling(),
    Sampling(temperature=0.5),
    Sampling(temperature=2.5),
    Sampling(top_k=1),
    Sampling(top_k=3),
    Sampling(top_k=100),
    Sampling(top_p=0.05),
    Sampling(top_p=0.6),
    Sampling(top_p=0.95, temperature=1.7),
    Sampling(top_k=4, top_p=0.8),
    Sampling(top_k=2, top_p=0.99, temperature=0.7),
    Sampling(min_p=0.3),
    Sampling(min_p=1.0),
    Sampling(top_k=6, top_p=0.9, min_p=0.1, temperature=1.3),
]


def allowed(p, top_k, top_p, min_p=0.0):
    order = np.argsort(-p, kind="stable")[:top_k]
    inside = p[order] / p[order].sum()
    count = next((i + 1 for i in range(len(order)) if inside[: i + 1].sum() >= top_p), len(order))
    return [i for i in order[:count] if p[i] >= min_p * p[order[0]]]


def exact(logits, sampling):
    p = softmax(np.asarray(logits, np.float64) / sampling.temperature)
    kept = allowed(p, sampling.top_k, sampling.top_p, sampling.min_p)
    truncated = np.zeros_like(p)
    truncated[kept] = p[kept] / p[kept].sum()
    return truncated


def draw_rows(logits, settings, seed=0, forbidden=NOTHING):
    """One token for each of `ROWS`, from logits and a setting of its own or from the same for all."""
    settings = SamplingArrays.of(settings if isinstance(settings, list) else [settings] * ROWS)
    keys = jax.random.split(jax.random.key(seed), ROWS)
    return COMPILED(np.broadcast_to(logits, (ROWS, V)), keys, settings, forbidden)


def check_draws(logits, sampling, forbidden):
    """Draws many tokens with one setting: frequencies by chi-square, and log-probabilities."""
    keys = jax.random.split(jax.random.key(0), DRAWS)
    settings = SamplingArrays.of([sampling] * DRAWS)
    drawn = COMPILED(np.broadcast_to(logits, (DRAWS, len(logits))), keys, settings, forbidden)
    ids = np.asarray(drawn.ids_B)
    p = exact(np.where(forbidden, -1e9, logits), sampling)
    counts = np.bincount(ids, minlength=len(logits))
    assert counts[p == 0].sum() == 0, sampling
    common = DRAWS * p > 5
    expected = np.append(DRAWS * p[common], DRAWS * p[~common].sum())
    found = np.append(counts[common], counts[~common].sum())
    if np.count_nonzero(expected) > 1:
        assert stats.chisquare(found[expected > 0], expected[expected > 0]).pvalue > 1e-3, sampling
    close = {"rtol": 1e-5, "atol": 2e-6, "err_msg": str(sampling)}
    np.testing.assert_allclose(drawn.log_prob_B, np.log(p[ids]), **close)
    full = log_softmax(logits.astype(np.float64) / sampling.temperature)
    np.testing.assert_allclose(drawn.full_log_prob_B, full[ids], **close)


@pytest.mark.parametrize("forbidden", [[], [0, 3]], ids=["all", "forbidden"])
def test_tokens_are_drawn_from_the_truncated_distribution_of_those_allowed(forbidden):
    """The likeliest two are forbidden; the full log-probability knows them all the same."""
    for sampling in SETTINGS:
        check_draws(LOGITS, sampling, np.isin(np.arange(V), forbidden))


@pytest.mark.long
def test_a_large_vocabulary_is_truncated_and_drawn_from_exactly():
    """Several blocks, the last one not full."""
    logits = np.random.default_rng(0).normal(0, 3, 1000).astype(np.float32)
    settings = [Sampling(), Sampling(top_k=300, top_p=0.95), Sampling(min_p=0.02), Sampling(top_p=0.999)]
    for sampling in settings:
        check_draws(logits, sampling, np.zeros(1000, bool))


def test_settings_are_inputs_of_one_compiled_program():
    draw_rows(LOGITS, Sampling())
    with compilations() as seen:
        for i, sampling in enumerate([*SETTINGS, Sampling(temperature=0.0)]):
            draw_rows(LOGITS, [sampling] * 4 + [Sampling()] * 4, seed=i, forbidden=np.arange(V) == i % 3)
    assert seen == []


def test_a_forbidden_token_may_be_as_likely_as_it_wants_and_greedy_passes_it_over():
    logits = np.where(np.arange(V) == 3, 1e4, LOGITS).astype(np.float32)
    drawn = draw_rows(logits, [Sampling()] * 6 + [Sampling(0.0)] * 2, forbidden=np.arange(V) == 3)
    assert np.all(drawn.finite_B) and 3 not in np.asarray(drawn.ids_B)
    assert set(np.asarray(drawn.ids_B)[6:]) == {0}


def test_temperature_zero_takes_the_likeliest():
    drawn = draw_rows(LOGITS, Sampling(temperature=0.0, top_k=3, top_p=0.5))
    assert set(np.asarray(drawn.ids_B)) == {3}
    assert not np.any(drawn.log_prob_B)
    np.testing.assert_allclose(drawn.full_log_prob_B, log_softmax(LOGITS.astype(np.float64))[3], rtol=1e-5)


def test_a_row_does_not_depend_on_the_others():
    keys = jax.random.split(jax.random.key(0), ROWS)
    logits = np.random.default_rng(0).standard_normal((ROWS, V)).astype(np.float32)
    settings = SamplingArrays.of(SETTINGS[4 : 4 + ROWS])
    together = COMPILED(logits, keys, settings, NOTHING)
    order = np.array([4, 0, 5, 5, 5, 1, 7, 4])
    apart = COMPILED(logits[order], keys[order], jax.tree.map(lambda x: x[order], settings), NOTHING)
    np.testing.assert_array_equal(together.ids_B[order], apart.ids_B)
    np.testing.assert_array_equal(together.log_prob_B[order], apart.log_prob_B)
    one = COMPILED(logits[2:3], keys[2:3], jax.tree.map(lambda x: x[2:3], settings), NOTHING)
    assert one.ids_B[0] == together.ids_B[2]


def test_equal_keys_draw_equal_tokens():
    keys = jnp.stack([jax.random.key(3)] * ROWS)
    ids = COMPILED(
        np.zeros((ROWS, V), np.float32), keys, SamplingArrays.of([Sampling()] * ROWS), NOTHING
    ).ids_B
    assert len(set(np.asarray(ids))) == 1


def kept(logits, *settings):
    """Which tokens the truncation keeps."""
    weights = jnp.exp(jnp.asarray(logits) - np.max(logits))[None]
    return np.asarray(weights >= LOWEST(weights, SamplingArrays.of([Sampling(*settings)])))[0]


DISTINCT = arrays.arrays(np.float32, V, elements=st.integers(-80, 80), unique=True)


@given(DISTINCT, st.integers(1, V + 2), st.floats(0.015625, 1.0, width=32), st.floats(0, 1, width=32))
def test_truncation_keeps_the_smallest_set(logits, top_k, top_p, min_p):
    p = softmax(logits.astype(np.float64))
    bounds = [{*allowed(p, top_k, top_p + slack, min_p * (1 - 10 * slack))} for slack in (-1e-6, 0, 1e-6)]
    assert bounds[0] <= {*np.flatnonzero(kept(logits, 1.0, top_k, top_p, min_p))} <= bounds[2]


@given(st.floats(-80, 80, width=32), st.integers(1, V), st.floats(0.015625, 1.0, width=32))
def test_ties_are_kept_or_dropped_together(level, top_k, top_p):
    assert kept(np.full(V, level, np.float32), 1.0, top_k, top_p).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_told(bad):
    logits = np.broadcast_to(LOGITS, (ROWS, V)).copy()
    logits[1, 3] = bad
    drawn = draw_rows(logits, Sampling(top_p=0.9))
    assert drawn.finite_B.tolist() == [True, False, *[True] * (ROWS - 2)]


def test_extreme_logits_stay_finite():
    logits = np.array([80.0, -80.0, 0.0, 80.0, *[-80.0] * (V - 4)], np.float32)
    for seed in range(20):
        drawn = draw_rows(
            logits, [Sampling(), Sampling(top_k=3), Sampling(top_p=0.9), Sampling(0.0)] * 2, seed
        )
        assert set(np.asarray(drawn.ids_B)) <= {0, 3}
        assert np.all(np.isfinite(drawn.log_prob_B)) and np.all(np.isfinite(drawn.full_log_prob_B))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature=-0.1 must be 0 or more"),
        ({"temperature": float("inf")}, "temperature=inf must be"),
        ({"temperature": float("nan")}, "temperature=nan must be"),
        ({"top_k": 0}, "top_k=0 must be positive, or None"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0"),
        ({"top_p": 1.01}, "top_p=1.01 must be above 0 and at most 1"),
        ({"min_p": -0.1}, "min_p=-0.1 must be 0 to 1"),
        ({"min_p": 1.1}, "min_p=1.1 must be 0 to 1"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError) as error:
        Sampling(**settings)
    assert str(error.value).startswith(message)
