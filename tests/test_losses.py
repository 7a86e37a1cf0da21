"""The losses against float64, token by token; masks, chunks, and what must have no gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdistill.batch import layout
from sdistill.config import ForkAware, GRPOLossConfig, SDPOLossConfig
from sdistill.divergence.definition import DivergenceConfig
from sdistill.losses import (
    PackedBatch,
    cross_entropy_loss,
    group_advantages,
    grpo_loss,
    k3,
    masked_sum,
    mix_outputs,
    response_ids,
    score_responses,
    sdpo_loss,
    token_weights,
    weighted_sum,
)
from tests import reference, tiny
from tests.batches import FULL, MODEL, grpo_batch, random_ids, sdpo_batch
from tests.tiny import assert_same_bits, leaves

jit = functools.partial(jax.jit, compiler_options=tiny.QUICKLY)
PARAMS, TEACHER = tiny.parameters(MODEL, seed=0), tiny.parameters(MODEL, seed=1)
FLAT = reference.flatten(PARAMS)
TEMPERATURE = 0.8
T = 10
# The last response is empty: the model's logits were not finite at once.
LENGTHS = np.array([7, 1, 10, 4, 0])
RESPONSES, PROMPTS, CONTEXTS = (
    random_ids(lengths, seed) for seed, lengths in enumerate((LENGTHS, (4, 2, 6, 5, 1), (9, 3, 12, 7, 2)))
)
HAS_TEACHER = np.array([1, 1, 0, 1, 1])
ADVANTAGES = np.array([0.75, -0.25, 0.0, -0.5, 0.5])
MASK = (np.arange(T) < LENGTHS[:, None]).astype(np.float64)
TAUGHT = MASK * HAS_TEACHER[:, None]

# ── The oracle ───────────────────────────────────────────────────────────────────────────────────


def distributions(p, prompts):
    """Of each row, next-token probabilities at its response tokens."""
    return [
        reference.softmax(reference.response_logits(p, MODEL, prompt, response, TEMPERATURE))
        for prompt, response in zip(prompts, RESPONSES, strict=True)
    ]


def padded(rows):
    return np.array([[*row, *[0.0] * (T - len(row))] for row in rows])


def chosen(rows):
    """Log-probabilities of the response tokens."""
    return padded(
        [[np.log(p[t, y]) for t, y in enumerate(ids)] for p, ids in zip(rows, RESPONSES, strict=True)]
    )


def entropies(rows):
    return padded([-np.sum(p * np.log(p), axis=1) for p in rows])


# What is detached is taken at PARAMS.
NOW, TEACHER_NOW = distributions(FLAT, PROMPTS), distributions(reference.flatten(TEACHER), CONTEXTS)
# A sampler with other weights: some importance ratios are beyond every clip, on both sides.
OLD = (chosen(NOW) + np.random.default_rng(5).normal(0, 0.8, (len(LENGTHS), T)) * MASK).astype(np.float32)
RATIO = np.exp(chosen(NOW) - OLD)


def sdpo_reference(config, p):
    """The objective; divergence and loss of each token."""
    divergence, losses = [[] for _ in LENGTHS], [[] for _ in LENGTHS]
    options = config.divergence
    for row, s_TV in enumerate(distributions(p, PROMPTS)):
        if not HAS_TEACHER[row]:
            continue
        for t, y in enumerate(RESPONSES[row]):
            s, now, teacher = s_TV[t], NOW[row][t], TEACHER_NOW[row][t]
            if options.support == "sampled":
                value = np.log(now[y] / teacher[y]) * np.log(s[y])
            elif options.pointwise_clip is not None:
                value = np.minimum(s * np.log(s / teacher), options.pointwise_clip).sum()  # alpha = 1
            else:
                ids = np.argsort(-now)[: options.top_k]
                value = reference.divergence(
                    *reference.on_support(s, teacher, ids, options.tail), options.alpha
                )
            divergence[row].append(value)
            if config.importance_cap is not None:
                value = value * min(RATIO[row, t], config.importance_cap)
            if (forks := config.fork_aware) is not None and -np.sum(now * np.log(now)) > forks.threshold:
                value = -forks.repulsion * value
            losses[row].append(value)
    return reference.aggregate(losses, config.aggregation), divergence


def grpo_reference(config, p, old=OLD, penalty=None):
    losses = [[] for _ in LENGTHS]
    for row, s_TV in enumerate(distributions(p, PROMPTS)):
        for t, y in enumerate(RESPONSES[row]):
            ratio = s_TV[t, y] / np.exp(np.float64(old[row, t]))
            clipped = min(max(ratio, 1 - config.clip_low), 1 + config.clip_high)
            losses[row].append(-min(ratio * ADVANTAGES[row], clipped * ADVANTAGES[row]))
            if penalty is not None:
                r = np.exp(penalty[row, t]) / s_TV[t, y]
                losses[row][-1] += config.kl_coefficient * (r - np.log(r) - 1)
    return reference.aggregate(losses, config.aggregation)


def assert_gradient_is_that_of(objective, gradient):
    """Compares derivatives along random directions with float64 central differences."""
    g = reference.flatten(gradient)
    scale = np.sqrt(sum(np.sum(v**2) for v in g.values()))
    assert scale > 1e-3  # there is something to compare
    for seed in range(3):
        rng = np.random.default_rng(seed)
        direction = {name: rng.normal(size=v.shape) for name, v in FLAT.items()}
        if seed:  # lean towards the gradient, where most can go wrong
            direction = {k: v + g[k] / scale * 50 for k, v in direction.items()}
        h = 1e-6
        ahead, behind = (objective({k: v + s * h * direction[k] for k, v in FLAT.items()}) for s in (1, -1))
        along = sum(np.sum(g[k] * direction[k]) for k in g)
        assert along == pytest.approx((ahead - behind) / (2 * h), rel=2e-4, abs=2e-4 * scale)


# ── The losses, compiled once for each setting ───────────────────────────────────────────────────

FULL_SDPO, GRPO = SDPOLossConfig(FULL), GRPOLossConfig()
SHARED = {"model": MODEL, "temperature": TEMPERATURE}


def for_sdpo(config=FULL_SDPO):
    batch = sdpo_batch(
        RESPONSES,
        PROMPTS,
        CONTEXTS,
        columns=(T, 8, 12),
        has_teacher=HAS_TEACHER,
        aggregation=config.aggregation,
    )
    return batch._replace(rollout_log_probs=OLD)


BATCH = for_sdpo()


def for_grpo(config=GRPO):
    return grpo_batch(BATCH, ADVANTAGES, config.aggregation)


@functools.cache
def compiled(loss, **settings):
    """Value, report and gradients in the weights, the teacher's as well."""
    with_gradient = jax.value_and_grad(
        functools.partial(loss, **settings), (0, 1) if loss is sdpo_loss else 0, has_aux=True
    )
    return jit(with_gradient)


def evaluated(loss, *arguments, **settings):
    (value, report), gradient = compiled(loss, **settings)(*arguments)
    return float(value), {k: (float(s), float(n)) for k, (s, n) in report.metrics.items()}, gradient


def sdpo(batch=BATCH, teacher=TEACHER, config=FULL_SDPO, chunk=4):
    """Chunks of four of ten positions leave a rest."""
    value, metrics, (gradient, teacher_gradient) = evaluated(
        sdpo_loss, PARAMS, teacher, batch, config=config, logits_chunk_size=chunk, **SHARED
    )
    assert not any(leaf.any() for leaf in leaves(teacher_gradient))
    return value, metrics, gradient


def grpo(batch, config=GRPO, chunk=4):
    return evaluated(grpo_loss, PARAMS, None, batch, config=config, logits_chunk_size=chunk, **SHARED)


def cross_entropy(batch, chunk=5):
    return evaluated(cross_entropy_loss, PARAMS, None, batch, model=MODEL, logits_chunk_size=chunk)


# ── SDPO ─────────────────────────────────────────────────────────────────────────────────────────

SDPO_CASES = {
    "full": FULL_SDPO,
    "top-k": SDPOLossConfig(
        DivergenceConfig(alpha=0.3, top_k=5), importance_cap=None, aggregation="token_mean"
    ),
    "sampled": SDPOLossConfig(
        DivergenceConfig(1.0, "sampled", None, None), importance_cap=1.1, aggregation="seq_mean_token_sum"
    ),
    "clip and forks": SDPOLossConfig(
        DivergenceConfig(1.0, "full", None, None, pointwise_clip=0.02), fork_aware=ForkAware(1.5, 0.3)
    ),
    "to the teacher": SDPOLossConfig(DivergenceConfig(0.0, top_k=5), aggregation="token_mean"),
    "renormalised": SDPOLossConfig(
        DivergenceConfig(1.0, "topk", 5, "renormalise"), aggregation="seq_mean_token_sum"
    ),
}
LONG = ("to the teacher", "renormalised")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name in LONG else ()) for name in SDPO_CASES]
)
def test_sdpo_is_the_float64_objective(name):
    config = SDPO_CASES[name]
    value, metrics, gradient = sdpo(for_sdpo(config), config=config)
    expected, divergence = sdpo_reference(config, FLAT)
    assert value == pytest.approx(expected, rel=1e-5)
    assert metrics["loss"] == (pytest.approx(expected, rel=1e-5), 0)  # adds up over parts
    total, count = metrics["divergence"]
    assert count == TAUGHT.sum() and total == pytest.approx(sum(map(sum, divergence)), rel=1e-5)
    assert_gradient_is_that_of(lambda p: sdpo_reference(config, p)[0], gradient)
    assert ("is_clipped_frac" in metrics) == (config.importance_cap is not None)
    if name == "clip and forks":
        negative = sum(value < 0 for row in divergence for value in row)
        forks = np.sum((entropies(NOW) > 1.5) * TAUGHT)
        assert metrics["negative"] == (negative, count) and metrics["forks"] == (forks, count)
        assert negative > 0 and 0 < forks < count


def test_sdpo_metrics_are_sums_and_counts_over_the_right_tokens():
    _, metrics, _ = sdpo()
    epistemic = np.asarray(BATCH.epistemic_mask)
    objective, divergence = sdpo_reference(FULL_SDPO, FLAT)
    own = chosen(NOW)
    expected = {
        "loss": (objective, 0),
        "entropy": (entropies(NOW), MASK),
        "logprob_diff": (np.abs(own - OLD), MASK),
        "divergence": (padded(divergence), TAUGHT),
        "divergence_epistemic": (padded(divergence), TAUGHT * epistemic),
        "divergence_other": (padded(divergence), TAUGHT * (1 - epistemic)),
        "teacher_entropy": (entropies(TEACHER_NOW), TAUGHT),
        "teacher_advantage": (chosen(TEACHER_NOW) - own, TAUGHT),
        "is_clipped_frac": (RATIO > 2, TAUGHT),
    }
    assert set(metrics) == set(expected)
    for name, (values, mask) in expected.items():
        found = (np.sum(values * mask), np.sum(mask)) if name != "loss" else (values, mask)
        assert metrics[name] == pytest.approx(found, rel=1e-4), name
    assert 0 < metrics["is_clipped_frac"][0] < metrics["is_clipped_frac"][1]
    assert 0 < metrics["divergence_epistemic"][1] < metrics["divergence"][1]


def test_nothing_but_the_response_columns_of_its_own_row_reaches_the_loss():
    """Padding of prompts and responses, and all of a row without a teacher, may hold anything."""
    value, _, gradient = sdpo()

    def littered(sequences):
        tokens = np.where(sequences.segment_ids > 0, sequences.tokens, 13)
        tokens[2] = 17
        return sequences._replace(tokens=tokens)

    noise = OLD + 3 * (np.arange(T) >= LENGTHS[:, None])
    other = BATCH._replace(
        student=littered(BATCH.student),
        teacher=littered(BATCH.teacher),
        rollout_log_probs=noise.astype(np.float32),
    )
    other_value, _, other_gradient = sdpo(other)
    assert value == other_value
    assert_same_bits(gradient, other_gradient)


def test_sdpo_without_any_teacher_has_no_gradient_but_still_measures_the_student():
    batch = BATCH._replace(
        has_teacher=np.zeros(len(LENGTHS), np.float32), token_weights=0 * BATCH.token_weights
    )
    value, metrics, gradient = sdpo(batch)
    assert value == 0 and not any(leaf.any() for leaf in leaves(gradient))
    assert metrics["divergence"] == (0, 0) and np.isfinite([*metrics.values()]).all()
    assert metrics["entropy"][0] > 0 and metrics["entropy"][1] == MASK.sum()


def test_a_live_teacher_is_the_student_without_gradient():
    """Its value is that of a copy of the student, and so is the gradient: none flows through its rows."""
    live, _, gradient = sdpo(teacher=None)
    copied, _, expected = sdpo(teacher=PARAMS)
    assert live == pytest.approx(copied, rel=1e-6) and live > 0.01
    for ours, theirs in zip(leaves(gradient), leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["full", pytest.param("to the teacher", marks=pytest.mark.long)])
def test_a_teacher_that_sees_nothing_more_has_nothing_to_teach(name):
    config = SDPO_CASES[name]
    same = sdpo_batch(
        RESPONSES,
        PROMPTS,
        PROMPTS,
        columns=(T, 8, 12),
        has_teacher=HAS_TEACHER,
        aggregation=config.aggregation,
    )
    value, metrics, gradient = sdpo(same._replace(rollout_log_probs=OLD), None, config)
    assert abs(value) < 1e-6 and abs(metrics["teacher_advantage"][0]) < 1e-4
    assert np.sqrt(sum(np.sum(leaf**2) for leaf in leaves(gradient))) < 1e-4


@pytest.mark.parametrize(("ratio", "factor"), [(0.5, 0.5), (1.5, 1.5), (1e12, 2.0)])
def test_importance_weights_scale_the_gradient_and_have_none_themselves(ratio, factor):
    _, _, plain = sdpo(BATCH._replace(rollout_log_probs=chosen(NOW).astype(np.float32)))
    old = (chosen(NOW) - np.log(ratio)).astype(np.float32)
    _, _, gradient = sdpo(BATCH._replace(rollout_log_probs=old))
    for ours, theirs in zip(leaves(gradient), leaves(plain), strict=True):
        np.testing.assert_allclose(ours, factor * theirs, rtol=1e-4, atol=1e-6)


def test_a_trust_region_teacher_mixes_logits():
    rng = np.random.default_rng(0)
    h1, h2 = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 5))
    w1, w2 = rng.normal(size=(4, 7)), rng.normal(size=(5, 7))
    hidden, head = mix_outputs((h1, w1), (h2, w2), 0.3)
    np.testing.assert_allclose(hidden @ head, 0.7 * (h1 @ w1) + 0.3 * (h2 @ w2), rtol=1e-5)


def test_a_trust_region_of_nothing_is_the_fixed_teacher_and_of_all_the_live_one():
    settings = {"config": FULL_SDPO, "logits_chunk_size": 4, **SHARED}
    loss = jit(lambda mix: sdpo_loss(PARAMS, TEACHER, BATCH, mix=mix, **settings)[0])
    fixed = sdpo()[0]
    assert float(loss(0.0)) == pytest.approx(fixed, rel=1e-5)
    assert float(loss(1.0)) == pytest.approx(sdpo(teacher=None)[0], rel=1e-5)
    assert float(loss(0.5)) != pytest.approx(fixed, rel=1e-2)


# ── GRPO ─────────────────────────────────────────────────────────────────────────────────────────

WITH_KL = GRPOLossConfig(clip_low=0.5, clip_high=0.1, aggregation="token_mean", kl_coefficient=0.3)


@pytest.mark.parametrize("config", [GRPO, WITH_KL], ids=["default", "kl"])
def test_grpo_is_the_float64_objective(config):
    noise = np.random.default_rng(2).normal(0, 0.5, MASK.shape) * MASK
    penalty = None if config.kl_coefficient is None else chosen(NOW) + noise
    batch = for_grpo(config)._replace(
        reference_log_probs=None if penalty is None else penalty.astype(np.float32)
    )
    value, metrics, gradient = grpo(batch, config)
    assert value == pytest.approx(grpo_reference(config, FLAT, penalty=penalty), rel=1e-5)
    assert_gradient_is_that_of(lambda p: grpo_reference(config, p, penalty=penalty), gradient)
    outside = (np.clip(RATIO, 1 - config.clip_low, 1 + config.clip_high) != RATIO) * MASK
    expected = {
        "loss": (value, 0),
        "clip_frac": (outside.sum(), MASK.sum()),
        "entropy": (entropies(NOW).sum(), MASK.sum()),
        "logprob_diff": (np.abs(np.log(RATIO) * MASK).sum(), MASK.sum()),
        "nonzero_advantage": (3, 5),  # the last row's response is empty
    }
    if penalty is not None:
        r = np.exp(penalty - chosen(NOW))
        expected["kl"] = (((r - np.log(r) - 1) * MASK).sum(), MASK.sum())
    assert set(metrics) == set(expected) and 0 < outside.sum() < MASK.sum()
    for name, pair in expected.items():
        assert metrics[name] == pytest.approx(pair, rel=1e-5), name


def test_on_policy_grpo_gradient_is_that_of_the_weighted_log_likelihood():
    _, _, gradient = grpo(for_grpo()._replace(rollout_log_probs=chosen(NOW).astype(np.float32)))

    def objective(p):
        gains = -ADVANTAGES[:, None] * chosen(distributions(p, PROMPTS))
        rows = [row[:n].tolist() for row, n in zip(gains, LENGTHS, strict=True)]
        return reference.aggregate(rows, GRPO.aggregation)

    assert_gradient_is_that_of(objective, gradient)


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [(1.5, 1.0, False), (1.5, -1.0, True), (0.5, 1.0, True), (0.5, -1.0, False), (1.0, 1.0, True)],
)
def test_clipping_stops_the_gradient_on_one_side_only(ratio, advantage, moves):
    batch = for_grpo()._replace(
        advantages=np.full(MASK.shape, advantage, np.float32),
        rollout_log_probs=(chosen(NOW) - np.log(ratio)).astype(np.float32),
    )
    assert any(leaf.any() for leaf in leaves(grpo(batch)[2])) == moves


def test_equal_rewards_give_no_gradient():
    batch = for_grpo()._replace(advantages=np.zeros(MASK.shape, np.float32))
    value, metrics, gradient = grpo(batch)
    assert value == 0 and metrics["nonzero_advantage"] == (0, 5)
    assert not any(leaf.any() for leaf in leaves(gradient))


def test_k3_is_least_at_the_reference_and_pulls_towards_it():
    log_prob, reference_log_prob = jnp.array([-1.0, -1.0, -1.0]), jnp.array([-0.5, -1.0, -3.0])
    value, gradient = jax.vmap(jax.value_and_grad(k3))(log_prob, reference_log_prob)
    r = np.exp(np.asarray(reference_log_prob, np.float64) - np.asarray(log_prob))
    np.testing.assert_allclose(value, r - 1 - np.log(r), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(gradient, 1 - r, rtol=1e-5, atol=1e-7)


def test_scores_of_responses_are_those_of_the_model():
    scores = score_responses(PARAMS, BATCH.student, logits_chunk_size=4, **SHARED)
    np.testing.assert_allclose(scores.log_prob_BT * MASK, chosen(NOW), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores.entropy_BT * MASK, entropies(NOW), rtol=1e-5, atol=1e-5)


# ── Cross-entropy ────────────────────────────────────────────────────────────────────────────────

EXAMPLES, WEIGHTED = random_ids((5, 8, 3), seed=7), (2, 5, 1)
"""Ids of examples, and how many at the end of each are learned."""


def packed():
    """The examples in two rows of 12, the first two together."""
    columns = {
        name: np.zeros((2, 12), np.int32) for name in ("tokens", "targets", "segment_ids", "positions")
    }
    weights = np.zeros((2, 12), np.float32)
    for (row, start, segment), ids, weighted in zip(
        [(0, 0, 1), (0, 4, 2), (1, 0, 1)], EXAMPLES, WEIGHTED, strict=True
    ):
        end = start + len(ids) - 1
        at = (row, slice(start, end))
        columns["tokens"][at], columns["targets"][at] = ids[:-1], ids[1:]
        columns["segment_ids"][at], columns["positions"][at] = segment, np.arange(len(ids) - 1)
        weights[row, end - weighted : end] = 1
    return PackedBatch(token_weights=weights / sum(WEIGHTED), **columns)


def cross_entropy_reference(p):
    losses = []
    for ids, weighted in zip(EXAMPLES, WEIGHTED, strict=True):
        p_TV = reference.softmax(reference.logits(p, MODEL, ids[:-1]))
        losses += list(-np.log(p_TV[np.arange(len(ids) - 1), ids[1:]])[-weighted:])
    return float(np.mean(losses))


def test_cross_entropy_of_packed_rows_is_that_of_single_examples():
    value, metrics, gradient = cross_entropy(packed())
    assert value == pytest.approx(cross_entropy_reference(FLAT), rel=1e-5)
    assert metrics["loss"] == (value, 0) and metrics["entropy"][1] == 8
    assert_gradient_is_that_of(cross_entropy_reference, gradient)


# ── All losses ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "of", [sdpo, *(pytest.param(of, marks=pytest.mark.long) for of in (grpo, cross_entropy))]
)
def test_chunks_change_nothing(of):
    batch = {sdpo: for_sdpo, grpo: for_grpo, cross_entropy: packed}[of]()
    whole, _, expected = of(batch, chunk=64)
    value, _, gradient = of(batch)
    assert value == pytest.approx(whole, rel=1e-6, abs=1e-6)
    for ours, theirs in zip(leaves(gradient), leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("of", [sdpo, grpo, cross_entropy])
def test_a_batch_without_anything_to_learn_from_has_no_gradient(of):
    batch = {sdpo: for_sdpo, grpo: for_grpo, cross_entropy: packed}[of]()
    batch = batch._replace(token_weights=np.zeros_like(batch.token_weights))
    if of is not cross_entropy:
        silent = np.zeros(MASK.shape, np.float32)
        batch = batch._replace(student=batch.student._replace(response_mask=silent))
    value, metrics, gradient = of(batch)
    assert value == 0 and np.isfinite([*metrics.values()]).all()
    assert not any(leaf.any() for leaf in leaves(gradient))


# ── Weights and advantages ───────────────────────────────────────────────────────────────────────


def test_student_and_teacher_share_their_response_columns():
    np.testing.assert_array_equal(response_ids(BATCH.student), response_ids(BATCH.teacher))
    np.testing.assert_array_equal(BATCH.student.response_mask, BATCH.teacher.response_mask)
    one = layout([[1]], np.array([[5, 2, 9]]), np.array([2]), 4)
    np.testing.assert_array_equal(response_ids(one), [[5, 2, 0]])


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
    weights = token_weights(LOSS_MASK, mode)
    total = weighted_sum(LOSSES, weights)
    assert weights.dtype == np.float32 and float(total) == pytest.approx(value, rel=1e-6)
    parts = sum(weighted_sum(LOSSES[i : i + 1], weights[i : i + 1]) for i in range(3))
    assert float(parts) == pytest.approx(float(total), rel=1e-6)
    assert not token_weights(np.zeros((3, 3), np.float32), mode).any()


def test_a_loss_without_weight_has_no_gradient_even_where_it_is_not_finite():
    gradient = jax.grad(weighted_sum)(jnp.asarray(LOSSES), LOSS_MASK)
    np.testing.assert_array_equal(gradient, LOSS_MASK)


def test_masked_sum_ignores_what_is_masked():
    total, count = masked_sum(jnp.asarray(LOSSES), jnp.asarray(LOSS_MASK))
    assert (float(total), float(count)) == (16.0, 4.0)
