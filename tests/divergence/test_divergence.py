"""The definition against float64, at extreme logits too.

Errors are relative to what is added up: for a value Σ|terms|, for a gradient the largest |S dL/dS| of the
position. The sums themselves may cancel to nothing, and then no float32 has digits of them.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sdistill.divergence.definition import DivergenceConfig, clip_pointwise, token_divergence
from sdistill.settings import ConfigError

ALPHAS = (0.0, 0.3, 0.5, 1.0)
TEMPERATURES = st.sampled_from([1.0, 0.6, 2.0])
V = 7
LOGITS = arrays.arrays(
    np.float32,
    (2, 3, V),
    elements=st.floats(-80, 80, width=32, allow_subnormal=False) | st.sampled_from([-80.0, 0.0, 80.0]),
).map(lambda x: x + np.float32(0))  # without -0.0, which XLA sorts below 0.0
SUPPORTS = [
    {"support": "full"},
    *({"support": "topk", "top_k": k, "tail": tail} for k in (1, 3, V) for tail in ("bucket", "renormalise")),
]
SETTINGS = [{"alpha": alpha, **support} for alpha in ALPHAS for support in SUPPORTS]
SETTINGS += [{"alpha": 1.0, "support": "sampled"}]
CLIPPED = [{"support": "full"}, {"support": "topk", "top_k": 3, "tail": "bucket"}]
SETTINGS += [{"alpha": alpha, **support, "pointwise_clip": 0.05} for alpha in ALPHAS for support in CLIPPED]
IDS = np.random.default_rng(0).integers(0, V, (2, 3))
FLOOR = 1e-7  # of a bucket
QUICKLY = {"xla_backend_optimization_level": 0}


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)


def kl(log_p, log_q):
    return sum(np.exp(a) * (a - b) for a, b in zip(log_p, log_q, strict=True))


def exact(
    student, teacher, *, alpha, support, top_k=None, tail=None, pointwise_clip=None, temperature=1.0, ids=IDS
):
    """Values [B, T], gradients [B, T, V] and the scale of either, in float64."""
    batch, length = student.shape[:2]
    found = [
        [
            exact_position(
                *(np.asarray(x[row, column], np.float64) for x in (student, teacher)),
                alpha,
                support,
                top_k,
                tail,
                pointwise_clip,
                temperature,
                ids[row, column],
            )
            for column in range(length)
        ]
        for row in range(batch)
    ]
    return [np.array([[position[i] for position in row] for row in found]) for i in range(4)]


def exact_position(student, teacher, alpha, support, top_k, tail, clip, temperature, y):
    log_s, log_t = log_softmax(student / temperature), log_softmax(teacher / temperature)
    if support == "sampled":
        ratio = log_s[y] - log_t[y]
        slope = ratio * (np.arange(len(log_s)) == y)
        gradient = slope - ratio * np.exp(log_s)
        scale = abs(log_s[y]) + abs(log_t[y])
        return ratio * log_s[y], gradient / temperature, scale * (1 + abs(log_s[y])), scale / temperature

    kept = np.argsort(-student, kind="stable")[:top_k]
    rest = np.setdiff1d(np.arange(len(log_s)), kept)
    own = np.exp(log_s)  # what an id's share of its part of the support is spread by
    s, t = log_s[kept], log_t[kept]
    moves = True
    if tail == "renormalise":
        s, t = log_softmax(s), log_softmax(t)
        own = np.zeros_like(own)
        own[kept] = np.exp(s)
    if tail == "bucket":
        left_s, left_t = (np.exp(x[rest]).sum() for x in (log_s, log_t))
        moves = left_s > FLOOR
        s, t = (np.append(x, np.log(max(left, FLOOR))) for x, left in ((s, left_s), (t, left_t)))

    if alpha == 0:
        terms, slope = np.exp(t) * (t - s), -np.exp(t - s)
    elif alpha == 1:
        terms, slope = np.exp(s) * (s - t), s - t + 1
    else:
        m = np.logaddexp(s + np.log(1 - alpha), t + np.log(alpha))
        terms = np.concatenate([(1 - alpha) * np.exp(s) * (s - m), alpha * np.exp(t) * (t - m)])
        slope = (1 - alpha) * (s - m)
    if clip is not None:  # the terms of each id together
        terms = terms.reshape(-1, len(s)).sum(axis=0)
        slope, terms = np.where(terms < clip, slope, 0.0), np.minimum(terms, clip)
    by_id = np.zeros_like(own)
    by_id[kept] = slope[: len(kept)]
    if tail == "bucket" and moves:
        by_id[rest] = slope[-1]
    parts = own * by_id
    gradient = (parts - own * parts.sum()) / temperature
    return terms.sum(), gradient, np.abs(terms).sum(), np.abs(parts).max() / temperature


def config(**settings):
    return DivergenceConfig(**{"top_k": None, "tail": None} | settings)


@functools.partial(jax.jit, static_argnames=("alpha", "support", "top_k", "tail", "pointwise_clip"))
def divergence(student, teacher, ids=None, temperature=1.0, **settings):
    student, teacher = jnp.asarray(student, jnp.float32), jnp.asarray(teacher, jnp.float32)
    return token_divergence(student, teacher, config(**settings), temperature=temperature, sampled_ids_BT=ids)


@functools.partial(jax.jit, compiler_options=QUICKLY)
def of_all_settings(student, teacher, temperature=1.0):
    def total(x, settings):
        ids = jnp.asarray(IDS) if settings["support"] == "sampled" else None
        values = token_divergence(x, teacher, config(**settings), temperature=temperature, sampled_ids_BT=ids)
        return values.sum(), values

    both = [jax.value_and_grad(total, has_aux=True)(student, settings) for settings in SETTINGS]
    return jnp.stack([values for (_, values), _ in both]), jnp.stack([gradient for _, gradient in both])


def assert_exact(student, teacher, temperature=1.0):
    found = of_all_settings(student, teacher, temperature)
    values, gradients = (np.asarray(x, np.float64) for x in found)
    for value, gradient, settings in zip(values, gradients, SETTINGS, strict=True):
        expected, expected_gradient, scale, gradient_scale = exact(
            student, teacher, temperature=temperature, **settings
        )
        assert np.all(np.abs(value - expected) <= 1e-5 * scale + 1e-6), settings
        error = np.abs(gradient - expected_gradient).max(axis=-1)
        assert np.all(error <= 1e-5 * gradient_scale + 1e-6), settings
        if settings["support"] != "sampled" and "pointwise_clip" not in settings:
            assert np.all(value >= -1e-6), settings


def logits(seed, shape=(2, 3, V), scale=2.0):
    rng = np.random.default_rng(seed)
    return [(scale * rng.standard_normal(shape)).astype(np.float32) for _ in range(2)]


@given(LOGITS, LOGITS, TEMPERATURES)
def test_value_and_gradient_are_exact_at_extreme_logits(student, teacher, temperature):
    assert_exact(student, teacher, temperature)


@pytest.mark.parametrize("scale", [0.01, 2.0, 20.0])
def test_value_and_gradient_are_exact_at_usual_logits(scale):
    for seed in range(5):
        assert_exact(*logits(seed, scale=scale))


@given(LOGITS)
def test_value_and_gradient_are_exact_where_the_teacher_is_close(student):
    assert_exact(student, student + 1e-2 * logits(0)[0])


@given(LOGITS)
def test_zero_where_teacher_and_student_agree(student):
    values, gradients = (np.asarray(x) for x in of_all_settings(student, student))
    np.testing.assert_allclose(values, 0, atol=1e-6)
    np.testing.assert_allclose(gradients, 0, atol=1e-6)


def test_the_float64_gradient_is_that_of_the_float64_value():
    student, teacher = (x.astype(np.float64) for x in logits(10))
    for settings in SETTINGS:
        _, gradient, _, _ = exact(student, teacher, **settings)
        expected = numeric_gradient(
            functools.partial(lambda x, kwargs: exact(x, teacher, **kwargs)[0], kwargs=settings), student
        )
        if settings["support"] == "sampled":  # the weight counts as a constant
            log_s, log_t = (
                np.take_along_axis(log_softmax(x), IDS[..., None], -1) for x in (student, teacher)
            )
            ratio = log_s - log_t
            expected = expected * ratio / (ratio + log_s)
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-8, err_msg=str(settings))


def numeric_gradient(function, x, step=1e-5):
    """By central differences; each position's value is a function of its own logits only."""
    gradient = np.zeros_like(x)
    for token in range(x.shape[-1]):
        nudge = np.zeros_like(x)
        nudge[..., token] = step
        gradient[..., token] = (function(x + nudge) - function(x - nudge)) / (2 * step)
    return gradient


def test_one_candidate_is_certain():
    one = np.ones((1, 2, 1), np.float32)
    for support in ({"support": "full"}, *({"support": "topk", "top_k": 1, "tail": t} for t in TAILS)):
        for alpha in ALPHAS:
            np.testing.assert_array_equal(divergence(one, 3 * one, alpha=alpha, **support), 0)


TAILS = ("bucket", "renormalise")


def test_directions_by_hand():
    student, teacher = np.log([[[0.75, 0.25]]]), np.log([[[0.5, 0.5]]])
    forward = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)
    reverse = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
    np.testing.assert_allclose(divergence(student, teacher, alpha=0, support="full"), forward, rtol=1e-5)
    np.testing.assert_allclose(divergence(student, teacher, alpha=1, support="full"), reverse, rtol=1e-5)


def test_half_is_symmetric_and_bounded_by_log_two():
    student, teacher = logits(1, scale=20.0)
    values = divergence(student, teacher, alpha=0.5, support="full")
    np.testing.assert_allclose(
        values, divergence(teacher, student, alpha=0.5, support="full"), rtol=1e-5, atol=1e-7
    )
    assert np.all(values <= np.log(2) * (1 + 1e-6)) and np.max(values) > 0.6


def test_temperature_divides_the_logits_of_both():
    student, teacher = logits(2)
    settings = {"alpha": 0.3, "support": "topk", "top_k": 3, "tail": "bucket"}
    expected = divergence(student / 0.6, teacher / 0.6, **settings)
    np.testing.assert_allclose(divergence(student, teacher, temperature=0.6, **settings), expected, rtol=1e-5)


@pytest.mark.parametrize("tail", TAILS)
def test_of_equal_logits_the_lowest_ids_are_taken(tail):
    student = np.zeros((1, 1, V), np.float32)
    student[..., 4] = 1
    _, teacher = logits(3, (1, 1, V))
    first = student.copy()
    first[..., :2] += 1e-6
    settings = {"alpha": 0.3, "support": "topk", "top_k": 3, "tail": tail}
    expected = exact(first, teacher, **settings, ids=IDS[:1, :1])[0]
    np.testing.assert_allclose(divergence(student, teacher, **settings), expected, rtol=1e-4)


def test_support_is_the_students():
    student = np.array([[[5.0, 4.0, 0.0, 0.0]]])
    teacher = np.array([[[0.0, 0.0, 4.0, 5.0]]])
    settings = {"alpha": 1, "support": "topk", "top_k": 2, "tail": "renormalise"}
    expected = kl(log_softmax([5.0, 4.0]), log_softmax([0.0, 0.0]))
    np.testing.assert_allclose(divergence(student, teacher, **settings), expected, rtol=1e-5)


def test_bucket_loses_less_the_more_ids_it_leaves():
    student, teacher = logits(4)
    full = np.asarray(divergence(student, teacher, alpha=0.5, support="full"))
    previous = np.zeros_like(full)
    for k in (1, 2, 4, V - 1):
        coarse = np.asarray(divergence(student, teacher, alpha=0.5, support="topk", top_k=k, tail="bucket"))
        assert np.all(coarse >= previous - 1e-6) and np.all(coarse <= full + 1e-6)
        previous = coarse


def test_a_bucket_costs_as_if_it_held_at_least_its_floor():
    """The teacher's favourite is an id that the student all but excludes."""
    student, teacher = np.array([[[60.0, 0.0, 0.0]]]), np.array([[[0.0, 60.0, 0.0]]])
    value = divergence(student, teacher, alpha=0, support="topk", top_k=1, tail="bucket")
    np.testing.assert_allclose(value, -math.log(FLOOR), rtol=1e-5)
    full = divergence(student, teacher, alpha=0, support="full")
    np.testing.assert_allclose(full, 60.0, rtol=1e-5)


@pytest.mark.parametrize("settings", [SUPPORTS[0], SUPPORTS[3], {"support": "sampled"}])
def test_teacher_gets_no_gradient(settings):
    student, teacher = logits(6)
    ids = jnp.asarray(IDS) if settings["support"] == "sampled" else None
    gradient = jax.grad(lambda t: divergence(student, t, ids, alpha=1, **settings).sum())(
        jnp.asarray(teacher)
    )
    assert not np.any(gradient)


def test_sampled_gradient_is_on_average_that_of_the_full_divergence():
    student, teacher = logits(8, (1, 1, V))
    probabilities = np.exp(log_softmax(student))[0, 0]

    def gradient(token):
        ids = jnp.full((1, 1), token)
        return jax.grad(lambda x: divergence(x, teacher, ids, alpha=1, support="sampled").sum())(
            jnp.asarray(student)
        )

    mean = sum(p * gradient(token) for token, p in enumerate(probabilities))
    full = jax.grad(lambda x: divergence(x, teacher, alpha=1, support="full").sum())(jnp.asarray(student))
    np.testing.assert_allclose(mean, full, rtol=1e-5, atol=1e-6)


def test_bfloat16_logits_are_compared_in_float32():
    student, teacher = (jnp.asarray(x, jnp.bfloat16) for x in logits(9))
    values = token_divergence(student, teacher, config(alpha=0.5, support="full"))
    assert values.dtype == jnp.float32
    expected = exact(
        np.asarray(student, np.float32), np.asarray(teacher, np.float32), alpha=0.5, support="full"
    )[0]
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-7)


def test_terms_are_capped_from_above_and_have_no_gradient_there():
    terms = jnp.array([-3.0, 0.01, 0.05, 0.06, 7.0])
    np.testing.assert_allclose(clip_pointwise(terms, 0.05), [-3.0, 0.01, 0.05, 0.05, 0.05], rtol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(clip_pointwise(x, 0.05)))(terms)
    np.testing.assert_array_equal(gradient, [1, 1, 0, 0, 0])


def test_a_pointwise_clip_by_hand_may_turn_the_sum_negative():
    student, teacher = np.log([[[0.5, 0.3, 0.2]]]), np.log([[[0.2, 0.35, 0.45]]])
    terms = [0.5 * math.log(0.5 / 0.2), 0.3 * math.log(0.3 / 0.35), 0.2 * math.log(0.2 / 0.45)]
    assert terms[0] > 0.05 and sum(terms) > 0
    value = divergence(student, teacher, alpha=1, support="full", pointwise_clip=0.05)
    np.testing.assert_allclose(value, 0.05 + terms[1] + terms[2], rtol=1e-5)
    assert value < 0


TOPK = {"alpha": 0.5, "support": "topk", "top_k": 3, "tail": "bucket"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**TOPK, "alpha": 1.5}, "alpha=1.5 must be 0 to 1"),
        ({**TOPK, "alpha": -0.1}, "alpha=-0.1 must be 0 to 1"),
        ({**TOPK, "top_k": 0}, "top_k=0 must be positive"),
        ({**TOPK, "top_k": None}, "top_k=None goes with support='topk'"),
        ({**TOPK, "tail": None}, "tail=None goes with support='topk'"),
        ({**TOPK, "support": "full"}, "top_k=3 goes with support='topk' and only with it"),
        ({"alpha": 0.5, "support": "full", "tail": "bucket"}, "tail='bucket' goes with support='topk'"),
        ({"alpha": 0.5, "support": "sampled"}, "support='sampled' estimates KL"),
        ({**TOPK, "pointwise_clip": 0.0}, "pointwise_clip=0.0 must be positive"),
        (
            {"alpha": 1.0, "support": "sampled", "pointwise_clip": 0.1},
            "pointwise_clip=0.1: support='sampled' has no sum over ids to clip",
        ),
    ],
)
def test_contradictions_are_refused(settings, message):
    with pytest.raises(ConfigError) as error:
        config(**settings)
    assert message in str(error.value)


@pytest.mark.parametrize(("settings", "ids"), [({"alpha": 1.0, "support": "sampled"}, None), (TOPK, IDS)])
def test_sampled_ids_go_with_their_support(settings, ids):
    with pytest.raises(ConfigError, match="sampled_ids_BT goes with support='sampled'"):
        token_divergence(*map(jnp.asarray, logits(0)), config(**settings), sampled_ids_BT=ids)


def test_a_support_larger_than_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="top_k=8 is above the 7 ids of the vocabulary"):
        token_divergence(*map(jnp.asarray, logits(0)), config(**TOPK | {"top_k": 8}))


def test_different_vocabularies_are_refused():
    student, teacher = map(jnp.asarray, logits(0))
    with pytest.raises(ValueError, match="the student has 7 ids and the teacher 6"):
        token_divergence(student, teacher[..., :6], config(alpha=0.5, support="full"))
