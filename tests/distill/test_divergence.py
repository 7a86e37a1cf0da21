import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.special import logsumexp

from sdistill.distill.divergence import token_divergence

ALPHAS = (0, 0.25, 1)
V = 7
LOGITS = arrays.arrays(np.float32, (2, 3, V), elements=st.floats(-80, 80, width=32))


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - logsumexp(x, axis=-1, keepdims=True)


def kl(log_p, log_q):
    return sum(np.exp(a) * (a - b) for a, b in zip(log_p, log_q, strict=True))


def oracle(student, teacher, *, alpha, support, top_k=None, tail=None):
    log_s, log_t = log_softmax(student), log_softmax(teacher)
    result = np.empty(log_s.shape[:-1])
    for index in np.ndindex(result.shape):
        s, t = log_s[index], log_t[index]
        if support == "topk":
            kept = sorted(range(len(s)), key=lambda i: -s[i])[:top_k]
            rest = [i for i in range(len(s)) if i not in kept]
            if tail == "bucket":
                s, t = (np.append(x[kept], logsumexp(x[rest]) if rest else -np.inf) for x in (s, t))
                s, t = (x[:-1] if not rest else x for x in (s, t))
            else:
                s, t = (x[kept] - logsumexp(x[kept]) for x in (s, t))
        if alpha in (0, 1):
            result[index] = kl(s, t) if alpha == 1 else kl(t, s)
        else:
            m = np.log((1 - alpha) * np.exp(s) + alpha * np.exp(t))
            result[index] = (1 - alpha) * kl(s, m) + alpha * kl(t, m)
    return result


@functools.partial(jax.jit, static_argnames=("alpha", "support", "top_k", "tail"))
def divergence(student, teacher, ids=None, *, alpha, support="full", top_k=None, tail=None):
    student, teacher = jnp.asarray(student, jnp.float32), jnp.asarray(teacher, jnp.float32)
    ids = jnp.zeros(student.shape[:2], jnp.int32) if ids is None else ids
    return token_divergence(
        student, teacher, alpha=alpha, support=support, top_k=top_k, tail=tail, sampled_ids_BT=ids
    )


def logits(seed, shape=(2, 3, V), scale=2.0):
    rng = np.random.default_rng(seed)
    return [(scale * rng.standard_normal(shape)).astype(np.float32) for _ in range(2)]


SUPPORTS = [
    {"support": "full"},
    {"support": "topk", "top_k": 1, "tail": "bucket"},
    {"support": "topk", "top_k": 3, "tail": "bucket"},
    {"support": "topk", "top_k": 3, "tail": "renormalise"},
]
WHOLE = [{"support": "topk", "top_k": V, "tail": tail} for tail in ("bucket", "renormalise")]
SETTINGS = [{"alpha": alpha, **support} for alpha in ALPHAS for support in [*SUPPORTS, *WHOLE]]


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # quick to compile
def of_all_settings(student, teacher):
    def total(x, settings):
        values = divergence(x, teacher, **settings)
        return values.sum(), values

    both = [jax.value_and_grad(total, has_aux=True)(student, settings) for settings in SETTINGS]
    return jnp.stack([values for (_, values), _ in both]), jnp.stack([gradient for _, gradient in both])


@pytest.mark.parametrize("seed", range(5))
def test_matches_float64(seed):
    student, teacher = logits(seed)
    values, _ = of_all_settings(student, teacher)
    for ours, settings in zip(values, SETTINGS, strict=True):
        expected = oracle(student, teacher, **settings)
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6, err_msg=str(settings))


def test_gradient_matches_float64_differences():
    student, teacher = logits(10)
    _, gradients = of_all_settings(student, teacher)
    for ours, settings in zip(gradients, SETTINGS, strict=True):
        expected = numeric_gradient(
            functools.partial(lambda x, kwargs: oracle(x, teacher, **kwargs).sum(), kwargs=settings),
            student.astype(np.float64),
        )
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=5e-6, err_msg=str(settings))


def numeric_gradient(function, x, step=1e-5):
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        nudge = np.zeros_like(x)
        nudge[index] = step
        gradient[index] = (function(x + nudge) - function(x - nudge)) / (2 * step)
    return gradient


@given(LOGITS, LOGITS)
def test_never_negative_and_finite_with_finite_gradient(student, teacher):
    values, gradients = (np.asarray(x) for x in of_all_settings(student, teacher))
    assert np.all(np.isfinite(values)) and np.all(np.isfinite(gradients))
    assert np.all(values >= -3e-6)  # rounding of log-probabilities down to -160, and of the bucket


@given(LOGITS)
def test_zero_where_teacher_and_student_agree(student):
    values, gradients = (np.asarray(x) for x in of_all_settings(student, student + 5))
    np.testing.assert_allclose(values, 0, atol=2e-5)
    np.testing.assert_allclose(gradients, 0, atol=2e-5)


@given(LOGITS, LOGITS)
def test_full_matches_float64_at_extreme_logits(student, teacher):
    values, _ = of_all_settings(student, teacher)
    for ours, settings in zip(values, SETTINGS, strict=True):
        if settings["support"] == "full":
            expected = oracle(student, teacher, **settings)
            np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=2e-5)


def test_directions_by_hand():
    student, teacher = np.log([[[0.75, 0.25]]]), np.log([[[0.5, 0.5]]])
    forward = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)
    reverse = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
    np.testing.assert_allclose(divergence(student, teacher, alpha=0), forward, rtol=1e-5)
    np.testing.assert_allclose(divergence(student, teacher, alpha=1), reverse, rtol=1e-5)


def test_half_is_symmetric_and_bounded_by_log_two():
    student, teacher = logits(1, scale=20.0)
    values = divergence(student, teacher, alpha=0.5)
    np.testing.assert_allclose(values, divergence(teacher, student, alpha=0.5), rtol=1e-5)
    assert np.all(values <= np.log(2) * (1 + 1e-6)) and np.max(values) > 0.6


@pytest.mark.parametrize("scale", [2.0, 30.0])
def test_whole_vocabulary_as_support_is_the_full_divergence(scale):
    values, _ = of_all_settings(*logits(2, scale=scale))
    by_settings = dict(zip([tuple(s.values()) for s in SETTINGS], np.asarray(values), strict=True))
    for alpha in ALPHAS:
        for whole in WHOLE:
            close = by_settings[alpha, *whole.values()]
            np.testing.assert_allclose(close, by_settings[alpha, "full"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
def test_ties_in_the_student_take_exactly_k_ids(tail):
    student = np.zeros((1, 1, V), np.float32)
    _, teacher = logits(3, (1, 1, V))
    settings = {"alpha": 0.25, "support": "topk", "top_k": 3, "tail": tail}
    value = float(divergence(student, teacher, **settings)[0, 0])
    candidates = []
    for kept in itertools.combinations(range(V), 3):
        nudged = student.astype(np.float64)
        nudged[0, 0, list(kept)] += 1e-9
        candidates.append(oracle(nudged, teacher, **settings)[0, 0])
    assert np.min(np.abs(np.asarray(candidates) / value - 1)) < 1e-5


def test_support_is_the_students():
    student = np.array([[[5.0, 4.0, 0.0, 0.0]]])
    teacher = np.array([[[0.0, 0.0, 4.0, 5.0]]])
    settings = {"alpha": 1, "support": "topk", "top_k": 2, "tail": "renormalise"}
    expected = kl(log_softmax([5.0, 4.0]), log_softmax([0.0, 0.0]))
    np.testing.assert_allclose(divergence(student, teacher, **settings), expected, rtol=1e-5)


def test_bucket_loses_less_the_more_ids_it_leaves():
    student, teacher = logits(4)
    full = np.asarray(divergence(student, teacher, alpha=0.5))
    previous = np.zeros_like(full)
    for k in (1, 2, 4, V - 1):
        coarse = np.asarray(divergence(student, teacher, alpha=0.5, support="topk", top_k=k, tail="bucket"))
        assert np.all(coarse >= previous - 1e-6) and np.all(coarse <= full + 1e-6)
        previous = coarse


@pytest.mark.parametrize("settings", [SUPPORTS[0], SUPPORTS[2], {"support": "sampled"}])
def test_teacher_gets_no_gradient(settings):
    student, teacher = logits(6)
    gradient = jax.grad(lambda t: divergence(student, t, alpha=1, **settings).sum())(jnp.asarray(teacher))
    assert not np.any(gradient)


def test_sampled_value_is_the_log_ratio_times_the_log_probability():
    student, teacher = logits(7)
    ids = np.random.default_rng(0).integers(0, V, (2, 3))
    log_s, log_t = (
        np.take_along_axis(log_softmax(x), ids[..., None], -1)[..., 0] for x in (student, teacher)
    )
    values = divergence(student, teacher, jnp.asarray(ids), alpha=1, support="sampled")
    np.testing.assert_allclose(values, (log_s - log_t) * log_s, rtol=1e-5, atol=1e-6)


def test_sampled_gradient_is_on_average_that_of_the_full_divergence():
    student, teacher = logits(8, (1, 1, V))
    probabilities = np.exp(log_softmax(student))[0, 0]

    def gradient(token):
        ids = jnp.full((1, 1), token)
        return jax.grad(lambda x: divergence(x, teacher, ids, alpha=1, support="sampled").sum())(
            jnp.asarray(student)
        )

    mean = sum(p * gradient(token) for token, p in enumerate(probabilities))
    full = jax.grad(lambda x: divergence(x, teacher, alpha=1).sum())(jnp.asarray(student))
    np.testing.assert_allclose(mean, full, rtol=1e-5, atol=1e-6)


def test_bfloat16_logits_are_compared_in_float32():
    student, teacher = (jnp.asarray(x, jnp.bfloat16) for x in logits(9))
    ids = jnp.zeros((2, 3), jnp.int32)
    values = token_divergence(
        student, teacher, alpha=0.5, support="full", top_k=None, tail=None, sampled_ids_BT=ids
    )
    assert values.dtype == jnp.float32
    expected = oracle(
        np.asarray(student, np.float64), np.asarray(teacher, np.float64), alpha=0.5, support="full"
    )
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-7)
