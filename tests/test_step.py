"""One update: gradients of micro-batches, AdamW in float64, reports, and the teacher's weights."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from sdistill.batch import micro_batches
from sdistill.config import ContextConfig, OptimizerConfig, SDPOLossConfig, TeacherConfig
from sdistill.distributed.rules import TRAINING, place
from sdistill.losses import LossReport, PackedBatch, cross_entropy_loss, sdpo_loss
from sdistill.model.decoder import is_matrix
from sdistill.step import (
    UpdateReport,
    accumulate_gradients,
    compute_gradient,
    init_state,
    init_teacher,
    jit_gradient,
    jit_update,
    learning_rate_schedule,
    make_optimizer,
    on_device,
    state_shardings,
    summarize,
    teacher_shapes,
    to_floats,
    update_teacher,
)
from tests import tiny
from tests.batches import FULL, MODEL, random_ids, sdpo_batch
from tests.tiny import assert_same_bits, leaves

MESH = tiny.one_device()
jit = functools.partial(jax.jit, compiler_options=tiny.QUICKLY)
PARAMS, TEACHER = tiny.parameters(MODEL, seed=0), tiny.parameters(MODEL, seed=1)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, weight_decay=0.1)
LOSS = {"config": SDPOLossConfig(FULL), "temperature": 0.8, "logits_chunk_size": 64}

# ── Optimizer ────────────────────────────────────────────────────────────────────────────────────


def rates(steps, **settings):
    schedule = learning_rate_schedule(OptimizerConfig(**settings))
    return [float(schedule(step)) for step in steps]


def test_constant_follows_warmup():
    found = rates([0, 1, 5, 9, 10, 11, 1000], learning_rate=2e-3, warmup_steps=10)
    np.testing.assert_allclose(found, np.array([0, 0.2, 1, 1.8, 2, 2, 2]) * 1e-3, rtol=1e-6)


def test_no_warmup_starts_at_the_peak():
    assert rates([0, 1], learning_rate=0.5, warmup_steps=0) == [0.5, 0.5]
    found = rates([0], learning_rate=0.5, warmup_steps=0, schedule="cosine", decay_steps=8)
    assert found == [0.5]


def test_cosine_ends_at_a_hundredth():
    steps = [0, 5, 10, 30, 60, 85, 110, 111, 500]
    found = rates(steps, learning_rate=2.0, warmup_steps=10, schedule="cosine", decay_steps=110)

    def expected(step):
        if step < 10:
            return 2.0 * step / 10
        done = min((step - 10) / 100, 1)
        return 0.02 + (2.0 - 0.02) * (1 + math.cos(math.pi * done)) / 2

    np.testing.assert_allclose(found, [expected(step) for step in steps], rtol=1e-5)


# Stacked norms and biases have two axes and are no matrices all the same.
AXES = {
    "matrix": ("vocab", "embed"),
    "scale": (None,),
    "stacked": ("layers", None),
    "tensor": ("layers", "embed", None),
}


def variables(values):
    """Arrays as the parameters of a model."""
    return nnx.State({k: nnx.Param(jnp.asarray(v, jnp.float32), axes=AXES[k]) for k, v in values.items()})


def adamw(params, gradients, config):
    means, squares = ({k: np.zeros_like(v) for k, v in params.items()} for _ in range(2))
    schedule = learning_rate_schedule(config)
    for step, gradient in enumerate(gradients):
        norm = math.sqrt(sum(np.sum(g**2) for g in gradient.values()))
        scale = min(1.0, config.clip_norm / norm) if norm else 1.0
        for name in params:
            g = gradient[name] * scale
            means[name] = config.b1 * means[name] + (1 - config.b1) * g
            squares[name] = config.b2 * squares[name] + (1 - config.b2) * g**2
            mean = means[name] / (1 - config.b1 ** (step + 1))
            square = squares[name] / (1 - config.b2 ** (step + 1))
            update = mean / (np.sqrt(square) + 1e-8)
            if name in ("matrix", "tensor"):
                update = update + config.weight_decay * params[name]
            params[name] = params[name] - float(schedule(step)) * update
    return params


@pytest.mark.parametrize(
    "config",
    [
        OptimizerConfig(1e-2, warmup_steps=2, weight_decay=0.1, clip_norm=1.0),
        OptimizerConfig(1e-2, warmup_steps=0, clip_norm=1e9),
        OptimizerConfig(0.1, 1, "cosine", 6, b1=0.5, b2=0.9, weight_decay=0.3, clip_norm=0.2),
    ],
)
def test_updates_match_float64_adamw(config):
    rng = np.random.default_rng(0)
    shapes = {"matrix": (3, 4), "scale": (4,), "stacked": (2, 4), "tensor": (2, 3, 2)}
    start = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    gradients = [
        {name: scale * rng.standard_normal(shape) for name, shape in shapes.items()}
        for scale in (0.01, 3.0, 0.1, 10.0, 0.001)
    ]
    optimizer = make_optimizer(config)
    params = variables(start)
    moments, update = optimizer.init(params), jit(optimizer.update)
    for gradient in gradients:
        updates, moments = update(variables(gradient), moments, params)
        params = optax.apply_updates(params, updates)
    expected = adamw(dict(start), gradients, config)
    for name in shapes:
        np.testing.assert_allclose(params[name][...], expected[name], rtol=1e-5, atol=1e-6)


def test_only_matrices_decay():
    config = OptimizerConfig(0.5, warmup_steps=0, weight_decay=0.1)
    params = variables({name: np.full((2,) * len(axes), 4.0) for name, axes in AXES.items()})
    optimizer = make_optimizer(config)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jit(optimizer.update)(zeros, optimizer.init(params), params)
    for name in AXES:
        decay = -0.5 * 0.1 * 4.0 if name in ("matrix", "tensor") else 0.0
        np.testing.assert_allclose(updates[name][...], decay, rtol=1e-6)


def test_equal_settings_share_one_optimizer():
    assert make_optimizer(OptimizerConfig(1e-3)) is make_optimizer(OptimizerConfig(1e-3))
    assert make_optimizer(OptimizerConfig(1e-3)) is not make_optimizer(OptimizerConfig(2e-3))


# ── Gradients and updates ────────────────────────────────────────────────────────────────────────

LENGTHS = (16, 1, 3, 9)
"""So different that a mean of the parts' own means would be another objective."""


def rollouts(aggregation="seq_mean_token_mean"):
    lengths = (LENGTHS, (3, 2, 2, 5), (9, 3, 3, 6))  # of responses, prompts and contexts
    return sdpo_batch(*map(random_ids, lengths, (10, 11, 12)), aggregation=aggregation)


def state_of(params=PARAMS):
    return init_state(place(jax.tree.map(jnp.array, params), MESH, TRAINING), MODEL, OPTIMIZER, MESH)


def assert_close(ours, theirs):
    for a, b in zip(leaves(ours), leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * np.abs(b).max())


sdpo_gradient = jit(
    functools.partial(compute_gradient, loss=functools.partial(sdpo_loss, **LOSS), model=MODEL)
)


@pytest.mark.parametrize("aggregation", ["seq_mean_token_mean", "token_mean", "seq_mean_token_sum"])
def test_the_gradient_of_micro_batches_is_that_of_the_whole_batch(aggregation):
    whole = rollouts(aggregation)
    expected, report = sdpo_gradient(PARAMS, TEACHER, whole)
    micro = list(micro_batches(whole, 2))
    assert [part.student.tokens.shape for _, part in micro] == [(2, 24), (2, 6)]
    gradient, reports = accumulate_gradients(sdpo_gradient, MESH, micro, PARAMS, TEACHER)
    assert_close(gradient, expected)
    ours, theirs = to_floats([part.metrics for _, part in reports]), to_floats([report.metrics])
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    assert [rows.tolist() for rows, _ in reports] == [[0, 3], [1, 2]]


@pytest.mark.long
def test_the_gradient_of_packed_rows_is_that_of_the_whole_batch():
    ids = np.asarray(random_ids([12] * 2), np.int32)
    weights = np.random.default_rng(0).integers(0, 2, ids.shape).astype(np.float32)
    positions = np.broadcast_to(np.arange(12, dtype=np.int32), ids.shape)
    whole = PackedBatch(ids, np.roll(ids, -1, 1), weights / weights.sum(), np.ones_like(ids), positions)
    loss = functools.partial(cross_entropy_loss, logits_chunk_size=64)
    gradient_of = jit(functools.partial(compute_gradient, loss=loss, model=MODEL))
    gradient, _ = accumulate_gradients(gradient_of, MESH, micro_batches(whole, 1), PARAMS)
    assert_close(gradient, gradient_of(PARAMS, None, whole)[0])


def test_a_batch_without_rows_is_refused():
    with pytest.raises(ValueError, match="a batch without rows has no gradient"):
        accumulate_gradients(sdpo_gradient, MESH, [], PARAMS, TEACHER)


def test_a_step_is_one_update_of_adamw_and_the_next_compiles_nothing():
    gradient_of, update = jit_gradient(sdpo_loss, MODEL, MESH, **LOSS), jit_update(MODEL, MESH, OPTIMIZER)
    first, teacher = state_of(), place(TEACHER, MESH, TRAINING)
    batch = [(np.arange(4), rollouts())]

    def step(state):
        gradient, reports = accumulate_gradients(gradient_of, MESH, batch, state.params, teacher)
        copied = leaves(gradient)
        state, metrics = update(state, gradient)
        return state, copied, {**reports[0][1].metrics, **metrics}

    state, gradient, metrics = step(first)
    norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in gradient))
    assert int(state.step) == 1
    assert float(metrics["gradient_norm"][0]) == pytest.approx(norm, rel=1e-5)
    matrices = [is_matrix(variable) for _, variable in nnx.to_flat_state(PARAMS)]
    for matrix, before, after, g in zip(
        matrices, leaves(PARAMS), leaves(state.params), gradient, strict=True
    ):
        g = g / max(norm, 1.0)  # clip_norm=1
        decay = 0.1 * before if matrix else 0.0
        expected = before - 1e-2 * (g / (np.abs(g) + 1e-8) + decay)  # Adam's first step, bias corrected
        sure = np.abs(g) > 1e-5  # where rounding cannot turn the sign
        np.testing.assert_allclose(after[sure], expected[sure], rtol=1e-4, atol=1e-5)

    # The state is laid out as it was, its buffers are given away, and equal settings share the programs.
    layouts = [x.sharding for x in jax.tree.leaves(state)]
    assert layouts == jax.tree.leaves(state_shardings(MODEL, OPTIMIZER, MESH))
    assert all(x.is_deleted() for x in jax.tree.leaves(first))
    assert jit_gradient(sdpo_loss, MODEL, MESH, **LOSS) is gradient_of
    with tiny.compilations() as seen:
        assert int(step(state)[0].step) == 2
    assert not seen


def test_an_update_that_is_not_finite_is_not_made():
    update, state = jit_update(MODEL, MESH, OPTIMIZER), state_of()
    gradient = jax.tree.map(jnp.ones_like, state.params)
    state, _ = update(state, gradient)
    for bad in (jnp.nan, jnp.inf):
        before = jax.tree.map(np.array, state)
        gradient["norm_D"].set_value(gradient["norm_D"].get_value().at[3].set(bad))
        state, metrics = update(state, gradient)
        assert_same_bits(state, before)
        assert int(state.step) == 1 and not np.isfinite(metrics["gradient_norm"][0])


# ── Reports ──────────────────────────────────────────────────────────────────────────────────────


def report_of(rows, student=(), teacher=None, **metrics):
    """Of a micro-batch: these rows are not finite, or (with `teacher=None`) there is no teacher."""
    rows = np.asarray(rows)
    bad = {"student": student} | ({} if teacher is None else {"teacher": teacher})
    finite = {whose: ~np.isin(rows, x) for whose, x in bad.items()}
    return rows, LossReport({k: (np.float32(s), np.float32(n)) for k, (s, n) in metrics.items()}, finite)


def update_report(*micro, norm=1.0):
    return UpdateReport(list(micro), {"gradient_norm": (np.float32(norm), np.float32(1))})


def test_metrics_of_a_step_are_means_over_tokens_and_updates():
    """`logprob_diff` is that of the first update: later ones start from weights that have not sampled."""
    first = update_report(
        report_of([0, 2], loss=(0.5, 0), entropy=(6, 4), logprob_diff=(1, 4)),
        report_of([1], loss=(0.25, 0), entropy=(1, 6), logprob_diff=(1, 6)),
    )
    second = update_report(report_of([0, 1, 2], loss=(0.25, 0), entropy=(3, 10), logprob_diff=(9, 1)), norm=3)
    expected = {"loss": 0.5, "entropy": 0.5, "logprob_diff": 0.2, "gradient_norm": 2.0}
    assert summarize([first, second], "abcdef") == pytest.approx(expected)


def test_what_is_not_finite_is_named_with_its_update_and_rows():
    good = update_report(report_of([1, 0], teacher=(), loss=(1, 0)))
    bad = report_of([1, 0], student=[1], teacher=[0, 1], loss=(np.nan, 0))
    with pytest.raises(FloatingPointError) as error:
        summarize([good, update_report(bad, norm=np.inf)], "abcd")
    assert str(error.value) == (
        "loss=nan, gradient_norm=inf in update 2 of 2: the student's hidden states are not finite in d; "
        "the teacher's hidden states are not finite in c, d"
    )
    with pytest.raises(FloatingPointError) as error:
        summarize([update_report(report_of(range(12), range(1, 12), loss=(np.inf, 0)))], "abcdefghijkl")
    assert str(error.value) == (
        "loss=inf: the student's hidden states are not finite in b, c, d, e, f, g, h, i and 3 more"
    )
    with pytest.raises(FloatingPointError, match="^gradient_norm=nan: all hidden states are finite$"):
        summarize([update_report(report_of([0]), norm=np.nan)], "a")


# ── The teacher's weights ────────────────────────────────────────────────────────────────────────


def teacher_config(weights, **settings):
    return TeacherConfig(ContextConfig("solution"), 64, weights, **settings)


def test_teachers_follow_as_configured():
    student = jax.tree.map(lambda x: x + 1, PARAMS)
    ema = teacher_config("ema", ema_rate=0.25)
    moved = update_teacher(ema, init_teacher(ema, PARAMS), student)
    for before, target, after in zip(leaves(PARAMS), leaves(student), leaves(moved), strict=True):
        np.testing.assert_allclose(after, 0.75 * before + 0.25 * target, rtol=1e-6, atol=1e-7)
    for config in (teacher_config("fixed"), teacher_config("trust_region", mix=0.1)):
        assert_same_bits(update_teacher(config, init_teacher(config, PARAMS), student), PARAMS)
    live = teacher_config("live")
    assert init_teacher(live, PARAMS) is teacher_shapes(live, PARAMS) is None
    assert update_teacher(live, None, student) is on_device(live, None) is None


@pytest.mark.parametrize("memory", ["device", "pinned_host"])
def test_a_copy_has_the_configured_type_and_memory(memory):
    params = place(PARAMS, MESH, TRAINING)
    config = teacher_config("fixed", dtype="bfloat16", memory=memory)
    copy, shapes = init_teacher(config, params), teacher_shapes(config, params)
    for leaf, shape in zip(jax.tree.leaves(copy), jax.tree.leaves(shapes), strict=True):
        assert leaf.dtype == shape.dtype == "bfloat16" and leaf.sharding == shape.sharding
        assert leaf.sharding.memory_kind == memory
    on_chip = on_device(config, copy)
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(on_chip)} == {"device"}
    assert_same_bits(on_chip, jax.tree.map(lambda x: x.astype("bfloat16"), params))
    moving = teacher_config("ema", ema_rate=0.5, memory=memory)
    moved = update_teacher(moving, init_teacher(moving, params), jax.tree.map(lambda x: x + 2, params))
    for before, after in zip(leaves(params), jax.tree.leaves(moved), strict=True):
        assert after.sharding.memory_kind == memory
        np.testing.assert_allclose(np.asarray(after), before + 1, rtol=1e-6, atol=1e-6)


def test_the_first_teacher_outlives_the_student_it_was_copied_from():
    """An update takes the student's buffers."""
    student = place(jax.tree.map(jnp.array, PARAMS), MESH, TRAINING)
    teacher = init_teacher(teacher_config("fixed"), student)
    jax.tree.map(lambda x: x.delete(), student)
    assert_same_bits(teacher, PARAMS)
    assert nnx.to_flat_state(teacher)
