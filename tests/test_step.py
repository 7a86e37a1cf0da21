"""The training steps: values and gradients against float64, masks, chunks, and what must stay untouched."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sdistill.optimizer import OptimizerConfig, make_optimizer
from sdistill.rows import layout
from sdistill.state import new_state
from sdistill.teacher import TeacherConfig, first_teacher, next_teacher

from sdistill.distributed.mesh import MeshConfig, make_mesh
from sdistill.losses import (
    DistillationConfig,
    GRPOConfig,
    OnPolicyBatch,
    group_advantages,
    grpo_loss,
    sdpo_loss,
    token_weights,
)
from sdistill.model.decoder import is_matrix
from sdistill.step import (
    PackedBatch,
    cross_entropy_gradient,
    cross_entropy_loss,
    examples_of,
    grpo_gradient,
    sdpo_gradient,
    update,
)
from tests import reference, tiny
from tests.tiny import assert_same_bits, leaves, parameters

CONFIG = dataclasses.replace(tiny.CONFIG, num_hidden_layers=1)
PARAMS, TEACHER = parameters(CONFIG, seed=0), parameters(CONFIG, seed=1)
jit = functools.partial(jax.jit, compiler_options=tiny.QUICKLY)
TEMPERATURE = 0.8
T = 10
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(0, 24, n).tolist() for n in (4, 2, 6, 5)]
CONTEXTS = [RNG.integers(0, 24, n).tolist() for n in (9, 3, 12, 7)]
LENGTHS = np.array([7, 1, 10, 4])
RESPONSES = np.where(np.arange(T) < LENGTHS[:, None], RNG.integers(0, 24, (4, T)), 0)
HAS_TEACHER = np.array([1, 1, 0, 1], np.float32)
MARKERS = RNG.integers(0, 2, (4, T)).astype(np.float32)
ADVANTAGES = np.array([0.75, -0.25, 0.0, -0.5], np.float32)

OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, weight_decay=0.1)
SDPO = DistillationConfig(support="full", top_k=None, tail=None)
GRPO = GRPOConfig()


def old_log_probs() -> np.ndarray:
    """What a sampler with other weights gave the tokens: some ratios beyond every clip, on both sides."""
    flat, values = reference.flatten(PARAMS), np.zeros((4, T), np.float32)
    shift = np.random.default_rng(5).normal(0, 0.8, (4, T))
    for row in range(4):
        response = RESPONSES[row, : LENGTHS[row]]
        s_TV = reference.softmax(reference.response_logits(flat, CONFIG, PROMPTS[row], response, TEMPERATURE))
        values[row, : len(response)] = np.log(s_TV[np.arange(len(response)), response])
    return (values + shift * (np.arange(T) < LENGTHS[:, None])).astype(np.float32)


BATCH = OnPolicyBatch(
    student=layout(PROMPTS, RESPONSES, LENGTHS, max_prompt=8),
    rollout_log_probs=old_log_probs(),
    markers=MARKERS,
    weights=np.zeros((4, T), np.float32),  # those of an objective are put in by the two functions below
    advantages=np.repeat(ADVANTAGES[:, None], T, axis=1),
    teacher=layout(CONTEXTS, RESPONSES, LENGTHS, max_prompt=12),
    has_teacher=HAS_TEACHER,
)


def for_sdpo(batch: OnPolicyBatch = BATCH, config: DistillationConfig = SDPO) -> OnPolicyBatch:
    mask = batch.student.response_mask * batch.has_teacher[:, None]
    return batch._replace(weights=token_weights(mask, config.aggregation))


def for_grpo(batch: OnPolicyBatch = BATCH, config: GRPOConfig = GRPO) -> OnPolicyBatch:
    return batch._replace(weights=token_weights(batch.student.response_mask, config.aggregation))


@functools.cache
def make_sdpo(config: DistillationConfig = SDPO, chunk: int = 4):
    return functools.partial(sdpo_loss, model=CONFIG, config=config, temperature=TEMPERATURE, chunk=chunk)


@functools.cache
def make_grpo(config: GRPOConfig = GRPO, chunk: int = 4):
    return functools.partial(grpo_loss, model=CONFIG, config=config, temperature=TEMPERATURE, chunk=chunk)


@functools.cache
def make_cross_entropy(chunk: int = 5):
    return functools.partial(cross_entropy_loss, model=CONFIG, chunk=chunk)


@functools.cache
def differentiated(loss):
    return jit(jax.value_and_grad(loss, has_aux=True))


def value_and_gradient(loss, *arguments):
    (value, report), gradient = differentiated(loss)(*arguments)
    return float(value), {k: (float(s), float(n)) for k, (s, n) in report.metrics.items()}, gradient


def assert_gradient_is_that_of(reference_loss, gradient) -> None:
    """Compares derivatives along random directions with float64 central differences."""
    flat, g = reference.flatten(PARAMS), reference.flatten(gradient)
    scale = np.sqrt(sum(np.sum(v**2) for v in g.values()))
    assert scale > 1e-3  # there is something to compare
    for seed in range(3):
        rng = np.random.default_rng(seed)
        direction = {name: rng.normal(size=v.shape) for name, v in flat.items()}
        if seed:  # lean towards the gradient, where most can go wrong
            direction = {k: v + g[k] / scale * 50 for k, v in direction.items()}
        h = 1e-5
        ahead, behind = (
            reference_loss({k: v + s * h * direction[k] for k, v in flat.items()}) for s in (1, -1)
        )
        along = sum(np.sum(g[k] * direction[k]) for k in g)
        assert along == pytest.approx((ahead - behind) / (2 * h), rel=2e-4, abs=2e-4 * scale)


def sdpo_reference(config: DistillationConfig, p, teacher):
    """The loss and the mean divergence, one token at a time. What is detached is taken at PARAMS."""
    frozen, losses, divergences = reference.flatten(PARAMS), [], []
    for row in range(4):
        losses.append([])
        if not HAS_TEACHER[row]:
            continue
        response = RESPONSES[row, : LENGTHS[row]]
        s_TV, now_TV = (
            reference.softmax(reference.response_logits(x, CONFIG, PROMPTS[row], response, TEMPERATURE))
            for x in (p, frozen)
        )
        t_TV = reference.softmax(
            reference.response_logits(teacher, CONFIG, CONTEXTS[row], response, TEMPERATURE)
        )
        for t, y in enumerate(response):
            s, now, teach = s_TV[t], now_TV[t], t_TV[t]
            if config.support == "sampled":
                value = np.log(now[y] / teach[y]) * np.log(s[y])
            else:
                chosen = np.argsort(-now)[: config.top_k]
                value = reference.divergence(
                    *reference.on_support(s, teach, chosen, config.tail), config.alpha
                )
            divergences.append(value)
            if config.importance_cap is not None:
                old = np.exp(np.float64(BATCH.rollout_log_probs[row, t]))
                value = value * min(now[y] / old, config.importance_cap)
            losses[-1].append(value)
    return reference.aggregate(losses, config.aggregation), np.mean(divergences)


SDPO_CONFIGS = [
    SDPO,
    DistillationConfig(alpha=0.3, top_k=5),
    DistillationConfig(alpha=0.0, top_k=5, importance_cap=None, aggregation="token_mean"),
    DistillationConfig(alpha=1.0, top_k=5, tail="renormalise", aggregation="seq_mean_token_sum"),
    DistillationConfig(alpha=1.0, support="full", top_k=None, tail=None, importance_cap=1.1),
    DistillationConfig(alpha=1.0, support="sampled", top_k=None, tail=None),
]


@pytest.mark.parametrize("config", SDPO_CONFIGS, ids=lambda c: f"{c.support}-{c.tail}-{c.alpha}")
def test_sdpo_is_the_float64_objective(config):
    value, metrics, gradient = value_and_gradient(make_sdpo(config), PARAMS, TEACHER, for_sdpo(config=config))
    teacher = reference.flatten(TEACHER)
    expected, divergence = sdpo_reference(config, reference.flatten(PARAMS), teacher)
    assert value == pytest.approx(expected, rel=1e-5)
    assert metrics["loss"] == (pytest.approx(expected, rel=1e-5), 0)  # adds up over parts
    total, count = metrics["divergence"]
    assert count == LENGTHS[HAS_TEACHER > 0].sum()
    assert total / count == pytest.approx(divergence, rel=1e-5)
    assert_gradient_is_that_of(lambda p: sdpo_reference(config, p, teacher)[0], gradient)


def test_sdpo_metrics_are_sums_and_counts_over_the_right_tokens():
    _, metrics, _ = value_and_gradient(make_sdpo(), PARAMS, TEACHER, for_sdpo())
    response = (np.arange(T) < LENGTHS[:, None]).astype(np.float64)
    taught = response * HAS_TEACHER[:, None]
    entropy, advantage, gap, capped = np.zeros((4, T)), np.zeros((4, T)), np.zeros((4, T)), np.zeros((4, T))
    teacher_entropy = np.zeros((4, T))
    for row in range(4):
        ids = RESPONSES[row, : LENGTHS[row]]
        s, t = (
            reference.softmax(
                reference.response_logits(reference.flatten(p), CONFIG, c[row], ids, TEMPERATURE)
            )
            for p, c in ((PARAMS, PROMPTS), (TEACHER, CONTEXTS))
        )
        at = (row, slice(len(ids)))
        log_s = np.log(s[np.arange(len(ids)), ids])
        entropy[at], teacher_entropy[at] = (-np.sum(x * np.log(x), axis=1) for x in (s, t))
        advantage[at] = np.log(t[np.arange(len(ids)), ids]) - log_s
        gap[at] = np.abs(log_s - BATCH.rollout_log_probs[at])
        capped[at] = np.exp(log_s - BATCH.rollout_log_probs[at]) > 2
    assert 0 < np.sum(capped * taught) < np.sum(taught)
    for name, values, mask in (
        ("entropy", entropy, response),
        ("sampler_gap", gap, response),
        ("teacher_entropy", teacher_entropy, taught),
        ("teacher_advantage", advantage, taught),
        ("capped", capped, taught),
    ):
        assert metrics[name] == pytest.approx((np.sum(values * mask), np.sum(mask)), rel=1e-4), name
    parts = [metrics["divergence_epistemic"], metrics["divergence_other"]]
    assert np.sum(parts, axis=0) == pytest.approx(metrics["divergence"], rel=1e-6)
    assert parts[0][1] == np.sum(taught * MARKERS)


def grpo_reference(config: GRPOConfig, p):
    losses, clipped = [], 0
    for row in range(4):
        response = RESPONSES[row, : LENGTHS[row]]
        s_TV = reference.softmax(reference.response_logits(p, CONFIG, PROMPTS[row], response, TEMPERATURE))
        losses.append([])
        for t, y in enumerate(response):
            ratio = s_TV[t, y] / np.exp(np.float64(BATCH.rollout_log_probs[row, t]))
            bounded = min(max(ratio, 1 - config.clip_low), 1 + config.clip_high)
            clipped += ratio != bounded
            losses[-1].append(-min(ratio * ADVANTAGES[row], bounded * ADVANTAGES[row]))
    return reference.aggregate(losses, config.aggregation), clipped


@pytest.mark.parametrize(
    "config",
    [GRPOConfig(), GRPOConfig(clip_low=0.5, clip_high=0.1, aggregation="token_mean")],
    ids=["default", "other-clip"],
)
def test_grpo_is_the_float64_objective(config):
    value, metrics, gradient = value_and_gradient(make_grpo(config), PARAMS, for_grpo(config=config))
    expected, clipped = grpo_reference(config, reference.flatten(PARAMS))
    assert value == pytest.approx(expected, rel=1e-5)
    assert 0 < clipped < LENGTHS.sum()
    assert metrics["clipped"] == (clipped, LENGTHS.sum())
    assert metrics["signal"] == (3, 4)
    assert_gradient_is_that_of(lambda p: grpo_reference(config, p)[0], gradient)


EXAMPLES = [RNG.integers(0, 24, n).tolist() for n in (5, 8, 3)]
WEIGHTED = [2, 5, 1]  # the last so many tokens of each example


def packed() -> PackedBatch:
    """The examples in two rows of 12, the first two together."""
    arrays = {name: np.zeros((2, 12), np.int32) for name in ("tokens", "targets", "segment_ids", "positions")}
    weights = np.zeros((2, 12), np.float32)
    for (row, start, segment), ids, weighted in zip(
        [(0, 0, 1), (0, 4, 2), (1, 0, 1)], EXAMPLES, WEIGHTED, strict=True
    ):
        at = (row, slice(start, start + len(ids) - 1))
        arrays["tokens"][at], arrays["targets"][at] = ids[:-1], ids[1:]
        arrays["segment_ids"][at], arrays["positions"][at] = segment, np.arange(len(ids) - 1)
        weights[row, start + len(ids) - 1 - weighted : start + len(ids) - 1] = 1
    return PackedBatch(weights=weights / sum(WEIGHTED), **arrays)


def cross_entropy_reference(p) -> float:
    losses = []
    for ids, weighted in zip(EXAMPLES, WEIGHTED, strict=True):
        p_TV = reference.softmax(reference.logits(p, CONFIG, ids[:-1]))
        losses += list(-np.log(p_TV[np.arange(len(ids) - 1), ids[1:]])[-weighted:])
    return float(np.mean(losses))


def test_cross_entropy_of_packed_rows_is_that_of_single_examples():
    value, metrics, gradient = value_and_gradient(make_cross_entropy(), PARAMS, packed())
    assert value == pytest.approx(cross_entropy_reference(reference.flatten(PARAMS)), rel=1e-5)
    assert metrics["loss"] == (value, 0) and metrics["entropy"][1] == 8
    assert_gradient_is_that_of(cross_entropy_reference, gradient)


def test_examples_are_counted_with_what_is_learned_of_them():
    assert examples_of(packed()) == [(4, 2), (7, 5), (2, 1)]


CASES = {  # loss of a size of chunk, the size that leaves a rest, further arguments
    "sdpo": (lambda chunk: make_sdpo(SDPO, chunk), 4, (TEACHER, for_sdpo())),
    "grpo": (lambda chunk: make_grpo(GRPO, chunk), 4, (for_grpo(),)),
    "cross_entropy": (make_cross_entropy, 5, (packed(),)),
}


@pytest.mark.parametrize("name", CASES)
def test_chunks_change_nothing(name):
    make, chunk, arguments = CASES[name]
    whole, _, expected = value_and_gradient(make(64), PARAMS, *arguments)
    value, _, gradient = value_and_gradient(make(chunk), PARAMS, *arguments)
    assert value == pytest.approx(whole, rel=1e-6, abs=1e-6)
    for ours, theirs in zip(leaves(gradient), leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_nothing_but_the_response_columns_of_its_own_row_reaches_the_loss():
    """Padding of prompts and responses, and all of a row without a teacher, may hold anything."""
    value, _, gradient = value_and_gradient(make_sdpo(), PARAMS, TEACHER, for_sdpo())

    def littered(rows):
        tokens = np.where(rows.segment_ids > 0, rows.tokens, 13)
        tokens[2] = 17
        return rows._replace(tokens=tokens)

    noise = BATCH.rollout_log_probs + 3 * (np.arange(T) >= LENGTHS[:, None])
    other = for_sdpo()._replace(
        student=littered(BATCH.student), teacher=littered(BATCH.teacher), rollout_log_probs=noise
    )
    other_value, _, other_gradient = value_and_gradient(make_sdpo(), PARAMS, TEACHER, other)
    assert value == other_value
    assert_same_bits(gradient, other_gradient)


def state_of(params=PARAMS):
    copy = jax.tree.map(jnp.array, params)
    return new_state(copy, make_optimizer(OPTIMIZER), make_mesh(MeshConfig()))


COMMON = {"model": CONFIG, "chunk": 64}
GRADIENTS = {
    "sdpo": jit(functools.partial(sdpo_gradient, config=SDPO, temperature=TEMPERATURE, **COMMON)),
    "grpo": jit(functools.partial(grpo_gradient, config=GRPO, temperature=TEMPERATURE, **COMMON)),
    "cross_entropy": jit(functools.partial(cross_entropy_gradient, **COMMON)),
}
apply = jit(functools.partial(update, optimizer=OPTIMIZER))


def step(name, state, *arguments):
    gradient, report = GRADIENTS[name](state.params, *arguments)
    state, more = apply(state, gradient)
    return state, report.metrics | more


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_step_is_one_update_of_adamw(name):
    make, _, arguments = CASES[name]
    state, metrics = step(name, state_of(), *arguments)
    _, _, gradient = value_and_gradient(make(64), PARAMS, *arguments)
    norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in leaves(gradient)))
    assert int(state.step) == 1
    assert float(metrics["gradient_norm"][0]) == pytest.approx(norm, rel=1e-5)
    matrices = [is_matrix(variable) for _, variable in nnx.to_flat_state(PARAMS)]
    for matrix, before, after, g in zip(
        matrices, leaves(PARAMS), leaves(state.params), leaves(gradient), strict=True
    ):
        g = g / max(norm, 1.0)  # clip_norm=1
        decay = 0.1 * before if matrix else 0.0
        expected = before - 1e-2 * (g / (np.abs(g) + 1e-8) + decay)  # Adam's first step, bias corrected
        sure = np.abs(g) > 1e-5  # where rounding cannot turn the sign
        np.testing.assert_allclose(after[sure], expected[sure], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_batch_without_anything_to_learn_from_has_no_gradient(name):
    if name == "cross_entropy":
        batch = packed()._replace(weights=np.zeros((2, 12), np.float32))
    else:
        silent = np.zeros((4, T), np.float32)
        student, teacher = (rows._replace(response_mask=silent) for rows in (BATCH.student, BATCH.teacher))
        batch = BATCH._replace(student=student, teacher=teacher)
        batch = for_sdpo(batch) if name == "sdpo" else for_grpo(batch)
    teacher = (TEACHER,) if name == "sdpo" else ()
    _, metrics = step(name, state_of(), *teacher, batch)
    assert all(np.isfinite(x) for pair in metrics.values() for x in pair)
    assert metrics["gradient_norm"][0] == 0
    assert metrics["loss"][0] == 0


def test_sdpo_without_any_teacher_has_no_gradient_but_still_measures_the_student():
    batch = for_sdpo(BATCH._replace(has_teacher=np.zeros(4, np.float32)))
    _, metrics = step("sdpo", state_of(), TEACHER, batch)
    assert all(np.isfinite(x) for pair in metrics.values() for x in pair)
    assert metrics["gradient_norm"][0] == 0
    assert metrics["divergence"] == (0, 0)
    assert metrics["entropy"][0] > 0 and metrics["entropy"][1] == LENGTHS.sum()


def test_grpo_with_equal_rewards_changes_nothing():
    for divide in (False, True):
        advantages = group_advantages(np.array([[1, 1], [0, 0]], np.float32), divide)
        assert not advantages.any()
    batch = for_grpo()._replace(advantages=np.repeat(advantages.reshape(4, 1), T, axis=1))
    _, metrics, gradient = value_and_gradient(make_grpo(), PARAMS, batch)
    assert metrics["signal"] == (0, 4)
    assert not any(leaf.any() for leaf in leaves(gradient))


def test_the_teacher_gets_no_gradient():
    gradient = jit(jax.grad(lambda t: make_sdpo()(PARAMS, t, for_sdpo())[0]))(TEACHER)
    assert not any(leaf.any() for leaf in leaves(gradient))


def test_a_live_teacher_is_the_student_without_gradient():
    """Its value is that of a copy of the student, and so is the gradient: none flows through its rows."""
    live, _, gradient = value_and_gradient(make_sdpo(), PARAMS, None, for_sdpo())
    copied, _, expected = value_and_gradient(make_sdpo(), PARAMS, PARAMS, for_sdpo())
    assert live == pytest.approx(copied, rel=1e-6) and live > 0.01
    for ours, theirs in zip(leaves(gradient), leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_live_teacher_with_the_students_own_context_has_nothing_to_teach(alpha):
    config = DistillationConfig(alpha=alpha, support="full", top_k=None, tail=None)
    batch = for_sdpo()._replace(teacher=layout(PROMPTS, RESPONSES, LENGTHS, max_prompt=12))
    value, metrics, gradient = value_and_gradient(make_sdpo(config), PARAMS, None, batch)
    assert abs(value) < 1e-6
    assert abs(metrics["teacher_advantage"][0]) < 1e-4
    assert float(optax.tree.norm(gradient)) < 1e-4


def test_teachers_move_as_they_are_told():
    student = jax.tree.map(lambda x: x + 1, PARAMS)
    ema = TeacherConfig("ema", 0.25)
    moved = next_teacher(ema, first_teacher(ema, PARAMS), student)
    for before, target, after in zip(leaves(PARAMS), leaves(student), leaves(moved), strict=True):
        np.testing.assert_allclose(after, 0.75 * before + 0.25 * target, rtol=1e-6, atol=1e-7)
    fixed = TeacherConfig("fixed")
    assert_same_bits(next_teacher(fixed, first_teacher(fixed, PARAMS), student), PARAMS)
    live = TeacherConfig("live")
    assert next_teacher(live, first_teacher(live, PARAMS), student) is None


def test_the_first_teacher_outlives_the_student_it_was_copied_from():
    """The step donates the student's buffers."""
    student = jax.tree.map(jnp.array, PARAMS)
    teacher = first_teacher(TeacherConfig("fixed"), student)
    jax.tree.map(lambda x: x.delete(), student)
    assert_same_bits(teacher, PARAMS)
    assert nnx.to_flat_state(teacher)
