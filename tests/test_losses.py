import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from sdistill.rows import layout

from sdistill.fixes import AntiSelfDistillation, ContrastiveHints, ForkAware
from sdistill.losses import (
    PRESETS,
    DistillationConfig,
    GRPOConfig,
    OnPolicyBatch,
    group_advantages,
    grpo_loss,
    k3,
    masked_sum,
    sdpo_loss,
    token_weights,
    weighted_sum,
)
from sdistill.model.config import ModelConfig
from sdistill.model.decoder import Decoder
from sdistill.settings import ConfigError

MODEL = ModelConfig(12, 8, 12, 1, 2, 1, 4, initializer_range=0.7)
TEMPERATURE = 0.8
QUICK = {"xla_backend_optimization_level": 0}  # to compile; the formulas are the same
LENGTHS = np.array([5, 3, 1, 4])
RESPONSES = np.where(np.arange(5) < LENGTHS[:, None], np.random.default_rng(0).integers(1, 12, (4, 5)), 0)
PROMPTS = [[3, 4, 5], [6], [7, 8], [9, 3, 1]]
TEACHER_PROMPTS = [[3, 4, 5, 2, 2, 7], [6, 1], [7, 8, 8], [9, 3, 1, 5, 4]]
HAS_TEACHER = np.array([1.0, 1.0, 0.0, 1.0], np.float32)
ADVANTAGES = np.array([0.75, -0.25, -0.5, 0.0], np.float32)
MARKERS = np.array([[1, 0, 0, 1, 0], [0, 1, 0, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]], np.float32)
MASK = (np.arange(5) < LENGTHS[:, None]).astype(np.float64)
FULL = {"support": "full", "top_k": None, "tail": None}


def parameters(seed):
    return nnx.state(Decoder(MODEL, nnx.Rngs(params=seed)), nnx.Param)


PARAMS, TEACHER = parameters(0), parameters(1)


GRAPH = nnx.graphdef(Decoder(MODEL, nnx.Rngs(params=0)))
ROWS, COLUMNS = np.mgrid[:4, :5]


def log_softmax_of(params, prompts):
    ids = np.zeros((4, 11), int)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt) + 5] = [*prompt, *RESPONSES[row]]
    model = nnx.merge(GRAPH, params)
    positions = jnp.broadcast_to(jnp.arange(11), ids.shape)
    hidden = model(jnp.asarray(ids), positions, jnp.ones_like(positions))
    predicting = COLUMNS + np.array([len(prompt) - 1 for prompt in prompts])[:, None]
    return jax.nn.log_softmax((hidden @ model.head())[ROWS, predicting] / TEMPERATURE)


def log_probabilities(params, prompts):
    return np.asarray(jax.jit(lambda p: log_softmax_of(p, prompts))(params), np.float64)


LOG_S, LOG_T = log_probabilities(PARAMS, PROMPTS), log_probabilities(TEACHER, TEACHER_PROMPTS)
CHOSEN = LOG_S[ROWS, COLUMNS, RESPONSES]
RATIO = np.exp(np.random.default_rng(1).uniform(-1.2, 1.2, (4, 5)))
SAMPLER = ((CHOSEN - np.log(RATIO)) * MASK).astype(np.float32)
BATCH = OnPolicyBatch(
    layout(PROMPTS, RESPONSES, LENGTHS, 3),
    SAMPLER,
    MARKERS,
    np.zeros((4, 5), np.float32),  # weights are put in when a loss is called
    np.repeat(ADVANTAGES[:, None], 5, axis=1),
    layout(TEACHER_PROMPTS, RESPONSES, LENGTHS, 6),
    HAS_TEACHER,
)


def kl(log_p, log_q):
    return np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)


def divergence(alpha):
    if alpha in (0, 1):
        return kl(LOG_S, LOG_T) if alpha == 1 else kl(LOG_T, LOG_S)
    log_m = np.log((1 - alpha) * np.exp(LOG_S) + alpha * np.exp(LOG_T))
    return (1 - alpha) * kl(LOG_S, log_m) + alpha * kl(LOG_T, log_m)


def mean_of(losses, mask, mode):
    if mode == "token_mean":
        return (losses * mask).sum() / max(mask.sum(), 1)
    total = 0.0
    for row, kept in zip(losses, mask, strict=True):
        summed = sum(value for value, keep in zip(row, kept, strict=True) if keep)
        total += summed / max(kept.sum(), 1) if mode == "seq_mean_token_mean" else summed
    return total / len(losses)


def vector(gradient):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])


@functools.cache
def compiled(loss, config, chunk, transform):
    settings = {"model": MODEL, "config": config, "temperature": TEMPERATURE, "chunk": chunk}
    return jax.jit(transform(functools.partial(loss, **settings)), compiler_options=QUICK)


with_gradient = functools.partial(jax.value_and_grad, has_aux=True)


def identity(loss):
    return loss


def weighed(batch, config, rows=1.0):
    return batch._replace(weights=token_weights((MASK * rows).astype(np.float32), config.aggregation))


def sdpo(batch=BATCH, teacher=TEACHER, *, chunk=64, transform=identity, **config):
    config = DistillationConfig(**{**FULL, **config})
    batch = weighed(batch, config, batch.has_teacher[:, None])
    return compiled(sdpo_loss, config, chunk, transform)(PARAMS, teacher, batch)


def sdpo_gradient(*arguments, **config):
    return vector(sdpo(*arguments, chunk=2, transform=with_gradient, **config)[1])


def grpo(batch=BATCH, *, chunk=64, transform=identity, **config):
    config = GRPOConfig(**config)
    return compiled(grpo_loss, config, chunk, transform)(PARAMS, weighed(batch, config))


def grpo_gradient(*arguments, **config):
    return vector(grpo(*arguments, chunk=2, transform=with_gradient, **config)[1])


@functools.cache
def gradients_of_rows():
    log_t = jnp.asarray(LOG_T, jnp.float32)

    def row_means(losses):
        return jnp.sum(losses * MASK / LENGTHS[:, None]) / 4

    def sdpo_total(params):
        log_s = log_softmax_of(params, PROMPTS)
        log_m = jnp.log((jnp.exp(log_s) + jnp.exp(log_t)) / 2)
        halves = [jnp.sum(jnp.exp(p) * (p - log_m), axis=-1) / 2 for p in (log_s, log_t)]
        return row_means(sum(halves) * np.minimum(RATIO, 2) * HAS_TEACHER[:, None])

    def grpo_total(params):
        chosen = log_softmax_of(params, PROMPTS)[ROWS, COLUMNS, RESPONSES]
        return row_means(-chosen * ADVANTAGES[:, None])

    gradients = jax.jit(lambda p: (jax.grad(sdpo_total)(p), jax.grad(grpo_total)(p)), compiler_options=QUICK)(
        PARAMS
    )
    return [vector(gradient) for gradient in gradients]


def test_sdpo_gradient_is_that_of_the_formula():
    expected = gradients_of_rows()[0]
    np.testing.assert_allclose(sdpo_gradient(), expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


def test_on_policy_grpo_gradient_is_that_of_the_weighted_log_likelihood():
    expected = gradients_of_rows()[1]
    found = grpo_gradient(BATCH._replace(rollout_log_probs=CHOSEN.astype(np.float32)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("alpha", "cap", "mode", "chunk"),
    [
        (0.5, 2.0, "seq_mean_token_mean", 64),
        (0, None, "token_mean", 64),
        (1, 1.3, "seq_mean_token_sum", 2),
        (0.3, 0.7, "token_mean", 3),
    ],
)
def test_sdpo_matches_float64(alpha, cap, mode, chunk):
    loss, (metrics, *_) = sdpo(alpha=alpha, importance_cap=cap, aggregation=mode, chunk=chunk)
    weights = 1.0 if cap is None else np.minimum(RATIO, cap)
    expected = mean_of(divergence(alpha) * weights, MASK * HAS_TEACHER[:, None], mode)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert ("capped" in metrics) == (cap is not None)


def test_sdpo_metrics():
    _, (metrics, *_) = sdpo(alpha=0.5, importance_cap=2.0)
    taught, losses = MASK * HAS_TEACHER[:, None], divergence(0.5)
    teacher_chosen = LOG_T[ROWS, COLUMNS, RESPONSES]
    expected = {
        "loss": (mean_of(losses * np.minimum(RATIO, 2), taught, "seq_mean_token_mean"), 0),
        "divergence": ((losses * taught).sum(), 12),
        "divergence_epistemic": ((losses * taught * MARKERS).sum(), 3),
        "divergence_other": ((losses * taught * (1 - MARKERS)).sum(), 9),
        "teacher_entropy": ((kl(LOG_T, np.zeros_like(LOG_T)) * -taught).sum(), 12),
        "teacher_advantage": (((teacher_chosen - CHOSEN) * taught).sum(), 12),
        "entropy": ((kl(LOG_S, np.zeros_like(LOG_S)) * -MASK).sum(), 13),
        "sampler_gap": (np.abs(np.log(RATIO) * MASK).sum(), 13),
        "capped": (((RATIO > 2) * taught).sum(), 12),
    }
    assert set(metrics) == set(expected)
    for name, (total, count) in expected.items():
        np.testing.assert_allclose(metrics[name], (total, count), rtol=1e-5, err_msg=name)
    assert 0 < expected["capped"][0] < 12


def test_rows_without_teacher_have_no_influence():
    other = layout([*TEACHER_PROMPTS[:2], [1] * 6, TEACHER_PROMPTS[3]], RESPONSES, LENGTHS, 6)
    np.testing.assert_array_equal(sdpo_gradient(BATCH._replace(teacher=other)), sdpo_gradient())


def test_a_batch_without_teachers_is_zero_with_zero_gradient():
    batch = BATCH._replace(has_teacher=np.zeros(4, np.float32))
    loss, (metrics, *_) = sdpo(batch)
    assert loss == 0 and metrics["divergence"] == (0, 0)
    np.testing.assert_array_equal(sdpo_gradient(batch), 0)


def test_a_live_teacher_is_the_student_without_gradient():
    live, fixed = sdpo_gradient(teacher=None), sdpo_gradient(teacher=PARAMS)
    np.testing.assert_allclose(live, fixed, rtol=1e-5, atol=1e-7)
    assert np.abs(live).max() > 1e-3


def test_a_teacher_that_sees_nothing_more_is_no_teacher():
    batch = BATCH._replace(teacher=layout(PROMPTS, RESPONSES, LENGTHS, 6))
    np.testing.assert_allclose(sdpo(batch, teacher=PARAMS)[0], 0, atol=1e-6)
    np.testing.assert_allclose(sdpo_gradient(batch, teacher=PARAMS), 0, atol=1e-6)


@pytest.mark.parametrize(("ratio", "factor"), [(0.5, 0.5), (1.5, 1.5), (1e12, 2.0)])
def test_importance_weights_scale_the_gradient_and_have_none_themselves(ratio, factor):
    plain = sdpo_gradient(BATCH._replace(rollout_log_probs=CHOSEN.astype(np.float32)))
    batch = BATCH._replace(rollout_log_probs=(CHOSEN - np.log(ratio)).astype(np.float32))
    np.testing.assert_allclose(sdpo_gradient(batch), factor * plain, rtol=1e-4, atol=1e-6)


def test_sampled_support_has_the_gradient_of_the_log_ratio():
    loss, _ = sdpo(alpha=1.0, support="sampled", importance_cap=None)
    teacher_chosen = LOG_T[ROWS, COLUMNS, RESPONSES]
    expected = mean_of((CHOSEN - teacher_chosen) * CHOSEN, MASK * HAS_TEACHER[:, None], "seq_mean_token_mean")
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_a_pointwise_clip_bounds_what_each_id_adds_and_counts_negative_losses():
    loss, (metrics, *_) = sdpo(alpha=1.0, pointwise_clip=0.05)
    clipped = np.minimum(np.exp(LOG_S) * (LOG_S - LOG_T), 0.05).sum(axis=-1)
    taught = MASK * HAS_TEACHER[:, None]
    expected = mean_of(clipped * np.minimum(RATIO, 2), taught, "seq_mean_token_mean")
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["negative"], (((clipped < 0) * taught).sum(), 12))
    assert metrics["negative"][0] > 0


def test_forks_are_turned_away_from_the_teacher():
    entropy = -kl(LOG_S, np.zeros_like(LOG_S))
    threshold = float(np.median(entropy[MASK * HAS_TEACHER[:, None] > 0]))
    loss, (metrics, *_) = sdpo(fork_aware=ForkAware(threshold, repulsion=0.3))
    signs, taught = np.where(entropy > threshold, -0.3, 1.0), MASK * HAS_TEACHER[:, None]
    expected = mean_of(divergence(0.5) * np.minimum(RATIO, 2) * signs, taught, "seq_mean_token_mean")
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(metrics["forks"], (((entropy > threshold) * taught).sum(), 12))
    assert 0 < metrics["forks"][0] < 12


def test_top_k_of_the_whole_vocabulary_is_full():
    top_k = {"support": "topk", "top_k": 12, "tail": "bucket"}
    np.testing.assert_allclose(sdpo(**top_k)[0], sdpo()[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "chunk"),
    [
        ({}, 64),
        ({"aggregation": "token_mean", "clip_low": 0.05, "clip_high": 0.6}, 2),
        ({"aggregation": "seq_mean_token_sum", "clip_low": 0.9, "clip_high": 9.0}, 3),
    ],
)
def test_grpo_matches_float64(config, chunk):
    loss, (metrics, *_) = grpo(chunk=chunk, **config)
    low, high = 1 - config.get("clip_low", 0.2), 1 + config.get("clip_high", 0.28)
    gains = np.zeros((4, 5))
    for row, column in np.ndindex(4, 5):
        ratio, advantage = RATIO[row, column], float(ADVANTAGES[row])
        gains[row, column] = min(ratio * advantage, min(max(ratio, low), high) * advantage)
    expected = mean_of(-gains, MASK, config.get("aggregation", "seq_mean_token_mean"))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    outside = (np.clip(RATIO, low, high) != RATIO) * MASK
    np.testing.assert_allclose(metrics["clipped"], (outside.sum(), 13), rtol=1e-6)
    np.testing.assert_allclose(metrics["signal"], (3, 4))
    np.testing.assert_allclose(metrics["sampler_gap"], (np.abs(np.log(RATIO) * MASK).sum(), 13), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], (expected, 0), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["entropy"], ((kl(LOG_S, np.zeros_like(LOG_S)) * -MASK).sum(), 13), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [(1.5, 1.0, False), (1.5, -1.0, True), (0.5, 1.0, True), (0.5, -1.0, False), (1.0, 1.0, True)],
)
def test_clipping_stops_the_gradient_on_one_side_only(ratio, advantage, moves):
    batch = BATCH._replace(
        advantages=np.full((4, 5), advantage, np.float32),
        rollout_log_probs=(CHOSEN - np.log(ratio)).astype(np.float32),
    )
    assert np.any(grpo_gradient(batch)) == moves


def test_the_kl_term_is_k3_against_the_reference():
    reference = (CHOSEN + np.random.default_rng(2).normal(0, 0.5, (4, 5)) * MASK).astype(np.float32)
    batch = BATCH._replace(reference_log_probs=reference)
    loss, (metrics, *_) = grpo(batch, kl_coefficient=0.3)
    r = np.exp(reference - CHOSEN)
    penalty = r - np.log(r) - 1
    expected = float(grpo()[0]) + 0.3 * mean_of(penalty, MASK, "seq_mean_token_mean")
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["kl"], ((penalty * MASK).sum(), 13), rtol=1e-5)


def test_k3_is_least_at_the_reference_and_pulls_towards_it():
    log_prob, reference = jnp.array([-1.0, -1.0, -1.0]), jnp.array([-0.5, -1.0, -3.0])
    value, gradient = jax.vmap(jax.value_and_grad(k3))(log_prob, reference)
    r = np.exp(np.asarray(reference, np.float64) - np.asarray(log_prob))
    np.testing.assert_allclose(value, r - 1 - np.log(r), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(gradient, 1 - r, rtol=1e-5, atol=1e-7)


def test_presets_are_what_their_papers_say():
    dr_grpo, dapo = PRESETS["dr_grpo"], PRESETS["dapo"]
    assert (dr_grpo.divide_by_std, dr_grpo.aggregation) == (False, "seq_mean_token_sum")
    assert (dr_grpo.clip_low, dr_grpo.clip_high) == (0.2, 0.2)
    assert (dapo.divide_by_std, dapo.aggregation) == (True, "token_mean")
    assert (dapo.clip_low, dapo.clip_high) == (0.2, 0.28)
    assert dr_grpo.kl_coefficient is dapo.kl_coefficient is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GRPOConfig(kl_coefficient=0.0), "kl_coefficient=0.0 must be positive, or None"),
        (
            lambda: GRPOConfig(
                contrastive_hints=ContrastiveHints(), anti_self_distillation=AntiSelfDistillation()
            ),
            "contrastive_hints and anti_self_distillation each need the one teacher; remove one of them",
        ),
        (
            lambda: DistillationConfig(rollout_correction_cap=0.0),
            "rollout_correction_cap=0.0 must be positive, or None",
        ),
    ],
)
def test_settings_without_effect_or_sense_are_refused(make, message):
    with pytest.raises(ConfigError) as error:
        make()
    assert str(error.value).startswith(message)


def test_equal_rewards_give_no_gradient():
    batch = BATCH._replace(advantages=np.zeros((4, 5), np.float32))
    loss, (metrics, *_) = grpo(batch)
    assert loss == 0 and metrics["signal"][0] == 0
    np.testing.assert_array_equal(grpo_gradient(batch), 0)


def test_advantages_by_hand():
    rewards = np.array([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    plain = group_advantages(rewards, divide_by_std=False)
    np.testing.assert_allclose(plain, [[0.5, -0.5, -0.5, 0.5], [0] * 4, [-0.25, -0.25, -0.25, 0.75]])
    divided = group_advantages(rewards, divide_by_std=True)
    np.testing.assert_allclose(divided[:2], [[1, -1, -1, 1], [0] * 4], rtol=1e-5)
    np.testing.assert_allclose(divided[2], np.array([-1, -1, -1, 3]) / 3**0.5, rtol=1e-5)


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=5), st.booleans())
def test_advantages_sum_to_zero_and_rank_as_rewards(groups, divide_by_std):
    rewards = np.array(groups, np.float32)
    advantages = group_advantages(rewards, divide_by_std)
    np.testing.assert_allclose(advantages.sum(axis=1), 0, atol=1e-5)
    equal = rewards.min(axis=1) == rewards.max(axis=1)
    assert not advantages[equal].any()
    assert np.all((advantages > 0)[~equal] == (rewards == 1)[~equal])


LOSSES = np.array([[1.0, 2.0, 3.0], [10.0, np.nan, np.inf], [np.nan, np.nan, np.nan]], np.float32)
LOSS_MASK = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], np.float32)


@pytest.mark.parametrize(
    ("mode", "value"),
    [("seq_mean_token_mean", (2 + 10 + 0) / 3), ("token_mean", 16 / 4), ("seq_mean_token_sum", 16 / 3)],
)
def test_aggregation_by_hand(mode, value):
    total = weighted_sum(LOSSES, token_weights(LOSS_MASK, mode))
    assert float(total) == pytest.approx(value, rel=1e-6)
    assert not token_weights(np.zeros((3, 3), np.float32), mode).any()


@pytest.mark.parametrize("mode", ["seq_mean_token_mean", "token_mean", "seq_mean_token_sum"])
def test_weights_of_the_whole_batch_add_up_over_its_parts(mode):
    weights = token_weights(LOSS_MASK, mode)
    assert weights.dtype == np.float32
    parts = sum(weighted_sum(LOSSES[i : i + 1], weights[i : i + 1]) for i in range(3))
    assert float(parts) == pytest.approx(float(weighted_sum(LOSSES, weights)), rel=1e-6)


def test_a_loss_without_weight_has_no_gradient_even_where_it_is_not_finite():
    gradient = jax.grad(weighted_sum)(jnp.asarray(LOSSES), LOSS_MASK)
    np.testing.assert_array_equal(gradient, LOSS_MASK)


def test_masked_sum_ignores_what_is_masked():
    total, count = masked_sum(jnp.asarray(LOSSES), jnp.asarray(LOSS_MASK))
    assert (float(total), float(count)) == (16.0, 4.0)
