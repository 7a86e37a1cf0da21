import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.special import logsumexp

from sdistill.model.scoring import summarize, top_ids_of

B, T, D, V = 3, 5, 6, 40
RNG = np.random.default_rng(0)
HIDDEN, HEAD = RNG.normal(size=(B, T, D)).astype(np.float32), RNG.normal(size=(D, V)).astype(np.float32)
IDS = RNG.integers(0, V, (B, T))
WEIGHTS = RNG.normal(size=(B, T)).astype(np.float32)
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def exact(hidden, head, ids=IDS, temperature=1.0):
    """Log-probabilities and entropies in float64, and the gradient of the weighted log-probabilities."""
    hidden, head = hidden.astype(np.float64), head.astype(np.float64)
    log_p = hidden @ head / temperature
    log_p -= logsumexp(log_p, axis=-1, keepdims=True)
    p = np.exp(log_p)
    of_logits = WEIGHTS[..., None] * ((np.arange(head.shape[1]) == ids[..., None]) - p) / temperature
    scores = np.take_along_axis(log_p, ids[..., None], axis=-1)[..., 0], -np.sum(p * log_p, axis=-1)
    return scores, (of_logits @ head.T, np.einsum("btd,btv->dv", hidden, of_logits))


def assert_exact(head, ids, chunk, temperature, tolerance=1e-6):
    def total(hidden, head):
        scores = summarize(
            hidden, head, jnp.asarray(ids), logits_chunk_size=chunk, temperature=temperature
        ).scores()
        return jnp.sum(scores.log_prob_BT * WEIGHTS), scores

    (_, scores), gradients = jit(jax.value_and_grad(total, (0, 1), has_aux=True))(HIDDEN, head)
    expected_scores, expected_gradients = exact(HIDDEN, head, ids, temperature)
    for ours, theirs in zip(scores, expected_scores, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


@pytest.mark.parametrize("chunk", [1, 2, 5, 64])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_and_gradient_match_float64(chunk, temperature):
    assert_exact(HEAD, IDS, chunk, temperature)


@pytest.mark.parametrize("size", [2 * 4096, 97 * 128, 40_961])
def test_a_vocabulary_in_tiles_matches_float64(size):
    """Two equal tiles; three of which the last overlaps; a prime. Ids at both ends, and at ends of tiles."""
    rng = np.random.default_rng(size)
    ids = rng.integers(0, size, (B, T))
    ids[:, :2] = [[0, size - 1], [4095, 4096], [size // 2 - 1, size // 2]]
    head = rng.normal(size=(D, size)).astype(np.float32)
    assert_exact(head, ids, chunk=1, temperature=0.7, tolerance=1e-5)  # of sums over so many


def test_the_gradient_of_the_head_adds_up_in_float32():
    """A thousand equal parts in bfloat16: a sum in bfloat16 would stop growing long before."""
    hidden, head = jnp.ones((1, 1000, 1), jnp.bfloat16), jnp.zeros((1, 2), jnp.bfloat16)
    ids = jnp.zeros((1, 1000), jnp.int32)

    def total(head):
        return summarize(hidden, head, ids, logits_chunk_size=1).scores().log_prob_BT.sum()

    gradient = jit(jax.grad(total))(head)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(gradient, np.float32), [[500, -500]])


def test_entropy_has_no_gradient():
    def total(head):
        return summarize(HIDDEN, head, jnp.asarray(IDS), logits_chunk_size=2).scores().entropy_BT.sum()

    gradient = jit(jax.grad(total))(HEAD)
    assert not np.any(gradient)


summary_of = jit(summarize, static_argnames=("logits_chunk_size", "top_k"))


@given(
    arrays.arrays(
        np.float32,
        (2, 1, V),
        elements=st.floats(-80, 80, width=32, allow_subnormal=False).map(lambda x: x + 0.0),
    ),
    st.sampled_from([1, 3, V - 1, V]),
)
def test_a_summary_is_the_distribution(logits, k):
    """Of logits as they are: the head is the identity."""
    ids = jnp.zeros((2, 1), jnp.int32)
    found = summary_of(jnp.asarray(logits), jnp.eye(V), ids, logits_chunk_size=1, top_k=k)
    order = np.argsort(-logits, axis=-1, kind="stable")
    log_p = logits - logsumexp(logits.astype(np.float64), axis=-1, keepdims=True)
    np.testing.assert_array_equal(found.ids_BTK, order[..., :k])
    log_probs = np.asarray(found.log_probs())
    expected = np.take_along_axis(log_p, order, axis=-1)
    np.testing.assert_allclose(log_probs[..., :k], expected[..., :k], rtol=1e-6, atol=1e-6)
    if k < V:
        rest = logsumexp(expected[..., k:], axis=-1)
        np.testing.assert_allclose(log_probs[..., k], rest, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.scores().log_prob_BT, log_p[..., 0], rtol=1e-6, atol=1e-6)
    entropy = -np.sum(np.exp(log_p) * log_p, axis=-1)
    np.testing.assert_allclose(found.entropy_BT, entropy, rtol=1e-5, atol=1e-6)


@given(st.data())
def test_of_equal_logits_the_lowest_ids_come_first(data):
    """Sizes with and without a divisor to cut blocks by, and few values, so that many tie."""
    size = data.draw(st.sampled_from([1, 2, 31, 37, 64, 96, 120, 257]))
    k = data.draw(st.integers(1, size))
    values = arrays.arrays(np.float32, (2, 1, size), elements=st.sampled_from([-1.0, 0.0, 1.0, 2.0]))
    logits = data.draw(values)
    expected = np.argsort(-logits, axis=-1, kind="stable")[..., :k]
    np.testing.assert_array_equal(top_ids_of(jnp.asarray(logits), k), expected)
