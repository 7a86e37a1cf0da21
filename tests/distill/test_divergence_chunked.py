"""By chunks as by definition: the same value and gradient, and nothing of B·T·V elements."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdistill.config import ConfigError
from sdistill.distill.divergence import chunked_token_divergence, token_divergence
from sdistill.training.objectives import DistillationConfig, GRPOConfig, OnPolicyBatch
from sdistill.training.rows import layout
from sdistill.training.steps import PackedBatch, cross_entropy_gradient, grpo_gradient, sdpo_gradient
from tests import tiny

B, T, D, V = 3, 7, 8, 50
TEMPERATURE = 0.7
RNG = np.random.default_rng(0)


def normal(*shape, scale=1.0):
    return jnp.asarray(RNG.normal(0, scale, shape), jnp.float32)


HIDDEN, HEAD = normal(B, T, D), normal(D, V)
TEACHER_HIDDEN, TEACHER_HEAD = normal(B, T, D + 2), normal(D + 2, V)
IDS = jnp.asarray(RNG.integers(0, V, (B, T)))
OF_LOSS, OF_LOG_PROB = normal(B, T), normal(B, T)
FULL, BUCKET = {"support": "full"}, {"support": "topk", "top_k": 5, "tail": "bucket"}
SETTINGS = [
    {"alpha": alpha, **support}
    for alpha in (0.0, 0.3, 1.0)
    for support in (
        FULL,
        BUCKET,
        {"support": "topk", "top_k": 5, "tail": "renormalise"},
        {"support": "topk", "top_k": V, "tail": "bucket"},
    )
] + [{"alpha": 1.0, "support": "sampled"}]
SETTINGS += [{"alpha": 1.0, **support, "pointwise_clip": 0.05} for support in (FULL, BUCKET)]
TOPK = SETTINGS[1]
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def name_of(settings):
    return "-".join(map(str, settings.values()))


def by_definition(hidden, head, settings):
    """An objective with a weight of its own on every loss and log-probability; and what it is made of."""
    logits, teacher_logits = (
        jnp.einsum("btd,dv->btv", x, w, preferred_element_type=jnp.float32)
        for x, w in ((hidden, head), (TEACHER_HIDDEN.astype(hidden.dtype), TEACHER_HEAD.astype(head.dtype)))
    )
    ids = IDS if settings["support"] == "sampled" else None
    losses = token_divergence(logits, teacher_logits, temperature=TEMPERATURE, sampled_ids_BT=ids, **settings)
    log_s, log_t = (jax.nn.log_softmax(x / TEMPERATURE) for x in (logits, teacher_logits))
    chosen = [jnp.take_along_axis(x, IDS[..., None], axis=-1)[..., 0] for x in (log_s, log_t)]
    entropies = [-jnp.sum(jnp.exp(x) * x, axis=-1) for x in (log_s, log_t)]
    total = jnp.sum(losses * OF_LOSS + chosen[0] * OF_LOG_PROB)
    return total, (losses, (chosen[0], entropies[0]), (chosen[1], entropies[1]))


def by_chunks(hidden, head, settings, chunk_size):
    teacher = TEACHER_HIDDEN.astype(hidden.dtype), TEACHER_HEAD.astype(head.dtype)
    found = chunked_token_divergence(
        hidden, head, *teacher, IDS, temperature=TEMPERATURE, chunk_size=chunk_size, **settings
    )
    total = jnp.sum(found.loss_BT * OF_LOSS + found.student.log_prob_BT * OF_LOG_PROB)
    return total, found


def with_gradient(function, *arguments):
    """What a function of hidden states and head returned besides its value, and its gradients."""
    (_, found), gradients = jit(jax.value_and_grad(function, (0, 1), has_aux=True))(*arguments)
    return jax.tree.leaves(found), gradients


def compare(settings, chunk_size, dtype=jnp.float32, tolerance=2e-6):
    inputs = HIDDEN.astype(dtype), HEAD.astype(dtype)
    ours, our_gradients = with_gradient(lambda x, w: by_chunks(x, w, settings, chunk_size), *inputs)
    theirs, their_gradients = with_gradient(lambda x, w: by_definition(x, w, settings), *inputs)
    for mine, exact in zip(ours, theirs, strict=True):
        assert mine.dtype == jnp.float32 and mine.shape == (B, T)
        np.testing.assert_allclose(mine, exact, rtol=1e-5, atol=2e-6 * np.abs(exact).max())
    for mine, exact in zip(our_gradients, their_gradients, strict=True):
        assert mine.dtype == dtype and mine.shape == exact.shape
        mine, exact = (np.asarray(x, np.float64) for x in (mine, exact))
        assert np.abs(mine - exact).max() <= tolerance * np.abs(exact).max()


@pytest.mark.parametrize("settings", SETTINGS, ids=name_of)
def test_value_gradient_and_scores_are_those_of_the_definition(settings):
    compare(settings, chunk_size=6)


@pytest.mark.parametrize("chunk_size", [1, 2, 4, 5, 21, 1000])
def test_any_size_of_chunk_gives_the_same(chunk_size):
    """One position; less than a row of each; sizes that leave a rest; everything; more than there is."""
    compare(TOPK, chunk_size)


@pytest.mark.parametrize("settings", SETTINGS[:2], ids=name_of)
def test_bfloat16_hidden_states_are_compared_in_float32(settings):
    compare(settings, 6, jnp.bfloat16, tolerance=2e-2)  # the gradient itself is rounded to three digits


def test_masked_positions_may_hold_anything():
    mask = jnp.arange(T) < jnp.asarray([7, 0, 3])[:, None]

    def total(hidden, head):
        found = chunked_token_divergence(
            hidden, head, TEACHER_HIDDEN, TEACHER_HEAD, IDS, chunk_size=6, **TOPK
        )
        return jnp.sum(jnp.where(mask, found.loss_BT, 0.0))

    value_and_gradient = jit(jax.value_and_grad(total, (0, 1)))
    other = jnp.where(mask[..., None], HIDDEN, 1e3)
    value, gradients = value_and_gradient(HIDDEN, HEAD)
    np.testing.assert_array_equal(value, value_and_gradient(other, HEAD)[0])
    for ours, theirs in zip(gradients, value_and_gradient(other, HEAD)[1], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not np.any(gradients[0][~np.asarray(mask)]) and np.any(gradients[1])


@pytest.mark.parametrize("settings", [*SETTINGS[:2], SETTINGS[-1]], ids=name_of)
def test_the_teacher_and_the_entropies_have_no_gradient(settings):
    def detached(hidden, head, teacher_hidden, teacher_head):
        found = chunked_token_divergence(
            hidden, head, teacher_hidden, teacher_head, IDS, chunk_size=6, **settings
        )
        return jnp.sum(found.student.entropy_BT + found.teacher.entropy_BT + found.teacher.log_prob_BT)

    def loss(hidden, head, teacher_hidden, teacher_head):
        return jnp.sum(
            chunked_token_divergence(
                hidden, head, teacher_hidden, teacher_head, IDS, chunk_size=6, **settings
            ).loss_BT
        )

    arguments = HIDDEN, HEAD, TEACHER_HIDDEN, TEACHER_HEAD
    for gradient in jit(jax.grad(detached, (0, 1, 2, 3)))(*arguments):
        assert not np.any(gradient)
    for gradient in jit(jax.grad(loss, (2, 3)))(*arguments):
        assert not np.any(gradient)


def test_a_tied_head_gets_its_gradient():
    embedding_VD = HEAD.T

    def loss(embedding_VD):
        found = chunked_token_divergence(
            HIDDEN, embedding_VD.T, TEACHER_HIDDEN, TEACHER_HEAD, IDS, chunk_size=6, **TOPK
        )
        return jnp.sum(found.loss_BT)

    def untied(head_DV):
        return loss(head_DV.T)

    np.testing.assert_allclose(jit(jax.grad(loss))(embedding_VD).T, jit(jax.grad(untied))(HEAD), rtol=1e-6)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"chunk_size": 0}, ConfigError, "chunk_size=0 must be positive"),
        ({"alpha": 2.0}, ConfigError, "alpha=2.0 must be 0 to 1"),
        ({"top_k": V + 1}, ValueError, f"top_k={V + 1} is above the {V} ids"),
        ({"support": "full"}, ConfigError, "top_k=5 goes with support='topk'"),
    ],
)
def test_contradictions_are_refused(changed, error, message):
    settings = {"chunk_size": 6, **TOPK, **changed}
    with pytest.raises(error) as raised:
        chunked_token_divergence(HIDDEN, HEAD, TEACHER_HIDDEN, TEACHER_HEAD, IDS, **settings)
    assert message in str(raised.value)


def test_different_vocabularies_are_refused():
    with pytest.raises(ValueError, match=f"the student has {V} ids and the teacher {V - 1}"):
        chunked_token_divergence(HIDDEN, HEAD, TEACHER_HIDDEN, TEACHER_HEAD[:, 1:], IDS, chunk_size=6, **TOPK)


def elements(text):
    """The number of elements of every array in a compiled program."""
    shapes = re.findall(r"\b(?:f64|f32|bf16|f16|[su]\d+|pred)\[([\d,]+)\]", text)
    return {int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes}


@pytest.mark.parametrize("settings", [*SETTINGS[:3], SETTINGS[-1]], ids=name_of)
def test_no_array_holds_the_vocabulary_of_all_positions(settings):
    compiled = jax.jit(jax.value_and_grad(lambda x, w: by_chunks(x, w, settings, 6)[0], (0, 1)))
    found = elements(compiled.lower(HIDDEN, HEAD).compile().as_text())
    assert D * V in found and 6 * V in found  # the head and a chunk: the text is read rightly
    assert max(found) < B * T * V
    whole = jax.jit(lambda x, w: by_definition(x, w, settings)[0])
    assert B * T * V in elements(whole.lower(HIDDEN, HEAD).compile().as_text())


MODEL = dataclasses.replace(tiny.CONFIG, num_hidden_layers=1, vocab_size=997)
COMMON = {"model": MODEL, "chunk": 1}
ROWS, PROMPT, RESPONSE = 5, 3, 11


def on_policy_batch():
    prompts = [[3, 4, 5]] * ROWS
    rows = layout(prompts, np.ones((ROWS, RESPONSE), np.int32), np.full(ROWS, RESPONSE), PROMPT)
    zeros = np.zeros((ROWS, RESPONSE), np.float32)
    return OnPolicyBatch(
        student=rows,
        rollout_log_probs=zeros,
        markers=zeros,
        weights=zeros + 1,
        advantages=zeros,
        teacher=rows,
        has_teacher=np.ones(ROWS, np.float32),
    )


def packed_batch():
    ids = np.ones((ROWS, RESPONSE), np.int32)
    return PackedBatch(ids, ids, ids.astype(np.float32), ids, ids)


@pytest.mark.parametrize("name", ["sdpo", "full", "grpo", "cross_entropy"])
def test_no_array_of_a_training_step_holds_the_vocabulary_of_all_positions(name):
    params, teacher = (tiny.parameters(MODEL, seed) for seed in (0, 1))
    top_k = DistillationConfig(top_k=7)
    full = DistillationConfig(support="full", top_k=None, tail=None)
    step, *arguments = {
        "sdpo": (functools.partial(sdpo_gradient, config=top_k, temperature=1.0), teacher, on_policy_batch()),
        "full": (functools.partial(sdpo_gradient, config=full, temperature=1.0), teacher, on_policy_batch()),
        "grpo": (functools.partial(grpo_gradient, config=GRPOConfig(), temperature=1.0), on_policy_batch()),
        "cross_entropy": (cross_entropy_gradient, packed_batch()),
    }[name]
    text = jax.jit(functools.partial(step, **COMMON)).lower(params, *arguments).compile().as_text()
    found = elements(text)
    assert ROWS * MODEL.vocab_size in found  # a chunk: one position of every row
    assert max(found) < ROWS * RESPONSE * MODEL.vocab_size


QWEN = 151_936  # ids of Qwen3


def temporary_bytes(positions, chunk_size=256):
    shape, width = (8, positions // 8), 1024
    hidden, head, ids = (
        jax.ShapeDtypeStruct((*shape, width), jnp.bfloat16),
        jax.ShapeDtypeStruct((width, QWEN), jnp.bfloat16),
        jax.ShapeDtypeStruct(shape, jnp.int32),
    )

    def objective(hidden, head, teacher_hidden, teacher_head, ids):
        found = chunked_token_divergence(
            hidden,
            head,
            teacher_hidden,
            teacher_head,
            ids,
            alpha=0.5,
            support="topk",
            top_k=100,
            tail="bucket",
            chunk_size=chunk_size,
        )
        return jnp.mean(found.loss_BT), found

    compiled = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))
    return compiled.lower(hidden, head, hidden, head, ids).compile().memory_analysis().temp_size_in_bytes


def test_memory_is_that_of_a_chunk():
    """Of which the gradient of the head in float32, as a sum and as what is added to it, is 1.24 GB."""
    once, twice = temporary_bytes(8192), temporary_bytes(16384)
    assert once <= 1.5e9
    assert twice - once <= 2 * 8192 * 1024 * 2  # the hidden states of student and teacher
