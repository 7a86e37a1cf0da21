"""Micro-batches: any cut of a batch gives the gradient of the whole, with little padding and few shapes."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sdistill.micro import on_policy_micro_batches, packed_micro_batches
from sdistill.rows import layout
from sdistill.teacher import Outputs, TeacherConfig, first_teacher, mixed, next_teacher, on_device
from sdistill.updates import add_up, to_floats

from sdistill.distributed.rules import TRAINING, place
from sdistill.losses import DistillationConfig, OnPolicyBatch, token_weights
from sdistill.step import PackedBatch, cross_entropy_gradient, sdpo_gradient
from tests import tiny
from tests.tiny import assert_same_bits, leaves, parameters

CONFIG = dataclasses.replace(tiny.CONFIG, num_hidden_layers=1)
LOSS = DistillationConfig(top_k=5)


def batch(lengths, prompts, contexts, aggregation="seq_mean_token_mean", room=(16, 8, 12), seed=0):
    """A batch of rows with these lengths of responses, prompts and teacher prompts."""
    rng = np.random.default_rng(seed)
    size, response = len(lengths), room[0]
    lengths = np.asarray(lengths)
    responses = np.where(np.arange(response) < lengths[:, None], rng.integers(1, 24, (size, response)), 0)
    student = layout([rng.integers(1, 24, n).tolist() for n in prompts], responses, lengths, room[1])
    mask = np.asarray(student.response_mask)
    return OnPolicyBatch(
        student=student,
        rollout_log_probs=(rng.normal(-3, 0.3, (size, response)) * mask).astype(np.float32),
        markers=(rng.integers(0, 2, (size, response)) * mask).astype(np.float32),
        weights=token_weights(mask, aggregation),
        teacher=layout([rng.integers(1, 24, n).tolist() for n in contexts], responses, lengths, room[2]),
        has_teacher=np.ones(size, np.float32),
    )


gradient_of = jax.jit(
    functools.partial(sdpo_gradient, model=CONFIG, config=LOSS, temperature=1.0, chunk=64),
    compiler_options=tiny.QUICKLY,
)
MESH = tiny.one_device()


@pytest.mark.parametrize("aggregation", ["seq_mean_token_mean", "token_mean", "seq_mean_token_sum"])
def test_the_gradient_is_that_of_the_whole_batch(aggregation):
    """Lengths so different that a mean of the parts' own means would be another objective."""
    whole = batch([1, 16, 3, 2, 9, 4, 1, 7], [3, 8, 2, 5, 1, 4, 6, 2], [9, 12, 3, 6, 5, 2, 8, 4], aggregation)
    params, teacher = parameters(CONFIG, 0), parameters(CONFIG, 1)
    expected, report = gradient_of(params, teacher, whole)
    gradient, parts = add_up(gradient_of, MESH, on_policy_micro_batches(whole, 2), params, teacher)
    assert len(parts) == 4
    for ours, theirs in zip(leaves(gradient), leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6 * np.abs(theirs).max())
    ours, theirs = to_floats([part.metrics for _, part in parts]), to_floats([report.metrics])
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)


def test_packed_rows_are_cut_as_they_come():
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 24, (4, 12)).astype(np.int32)
    weights = rng.integers(0, 2, (4, 12)).astype(np.float32)
    positions = np.broadcast_to(np.arange(12, dtype=np.int32), (4, 12))
    whole = PackedBatch(ids, np.roll(ids, -1, 1), weights / weights.sum(), np.ones_like(ids), positions)
    gradient_of = jax.jit(
        functools.partial(cross_entropy_gradient, model=CONFIG, chunk=64), compiler_options=tiny.QUICKLY
    )
    params = parameters(CONFIG)
    expected, _ = gradient_of(params, whole)
    gradient, _ = add_up(gradient_of, MESH, packed_micro_batches(whole, 1), params)
    for ours, theirs in zip(leaves(gradient), leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6 * np.abs(theirs).max())


ROWS = st.tuples(st.integers(0, 16), st.integers(1, 8), st.integers(1, 12))


@given(st.lists(ROWS, min_size=6, max_size=6), st.sampled_from([1, 2, 3, 6]))
def test_nothing_is_lost_and_padding_is_bounded(rows, size):
    """Every token of every row is in exactly one part, at the same distance from its prompt."""
    lengths, prompts, contexts = zip(*rows, strict=True)
    whole = batch(lengths, prompts, contexts)
    numbered = list(on_policy_micro_batches(whole, size))
    parts = [part for _, part in numbered]
    for numbers, part in numbered:  # a row's number is where it was
        at = whole.weights[numbers, : part.weights.shape[1]]
        np.testing.assert_array_equal(part.weights, at)
    assert sorted(np.concatenate([numbers for numbers, _ in numbered])) == list(range(6))

    def contents(batches):
        found = []
        for part in batches:
            for row in range(len(part.weights)):
                kept = [r.tokens[row][r.segment_ids[row] > 0].tolist() for r in (part.student, part.teacher)]
                count = int(part.student.response_mask[row].sum())
                values = [part.weights, part.rollout_log_probs, part.markers]
                found.append((*map(tuple, kept), *(tuple(v[row, :count].tolist()) for v in values)))
        return sorted(found)

    assert contents(parts) == contents([whole])
    shapes = {(p.student.tokens.shape[1], p.teacher.tokens.shape[1]) for p in parts}
    assert shapes <= {(24, 28), (18, 21), (12, 14), (6, 7)}
    for part in parts:
        columns = part.student.response_mask.shape[1]
        need = max(
            np.max(part.student.response_mask.sum(axis=1)) / 16,
            np.max((part.student.segment_ids.sum(1) - part.student.response_mask.sum(1)) / 8),
            np.max((part.teacher.segment_ids.sum(1) - part.teacher.response_mask.sum(1)) / 12),
        )
        assert columns == 4 or need > (columns - 4) / 16  # the next smaller shape would not have done


def test_a_trust_region_teacher_mixes_logits():
    rng = np.random.default_rng(0)
    h1, h2 = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 5))
    w1, w2 = rng.normal(size=(4, 7)), rng.normal(size=(5, 7))
    both = mixed(Outputs(h1, w1), Outputs(h2, w2), 0.3)
    np.testing.assert_allclose(both.hidden_BTE @ both.head_EV, 0.7 * (h1 @ w1) + 0.3 * (h2 @ w2), rtol=1e-5)


def test_a_trust_region_of_nothing_is_the_fixed_teacher_and_of_all_the_live_one():
    whole = batch([5, 7], [3, 8], [9, 12])
    params, teacher = parameters(CONFIG, 0), parameters(CONFIG, 1)

    def loss(mix, teacher):
        step = functools.partial(sdpo_gradient, model=CONFIG, config=LOSS, temperature=1.0, chunk=64)
        _, report = jax.jit(functools.partial(step, mix=mix), compiler_options=tiny.QUICKLY)(
            params, teacher, whole
        )
        return float(report.metrics["loss"][0])

    assert loss(0.0, teacher) == pytest.approx(loss(None, teacher), rel=1e-5)
    assert loss(1.0, teacher) == pytest.approx(loss(None, None), rel=1e-5)
    assert loss(0.5, teacher) != pytest.approx(loss(None, teacher), rel=1e-2)


@pytest.mark.parametrize("memory", ["device", "pinned_host"])
def test_a_copy_is_kept_where_and_as_it_is_told(memory):
    params = place(parameters(CONFIG), MESH, TRAINING)
    config = TeacherConfig("fixed", dtype="bfloat16", memory=memory)
    copy = first_teacher(config, params)
    for leaf in jax.tree.leaves(copy):
        assert leaf.dtype == "bfloat16" and leaf.sharding.memory_kind == memory
    shown = on_device(config, copy)
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(shown)} == {"device"}
    assert_same_bits(shown, jax.tree.map(lambda x: x.astype("bfloat16"), params))
    moving = TeacherConfig("ema", ema_rate=0.5, memory=memory)
    moved = next_teacher(moving, first_teacher(moving, params), jax.tree.map(lambda x: x + 2, params))
    for before, after in zip(leaves(params), jax.tree.leaves(moved), strict=True):
        assert after.sharding.memory_kind == memory
        np.testing.assert_allclose(np.asarray(after), before + 1, rtol=1e-6, atol=1e-6)
