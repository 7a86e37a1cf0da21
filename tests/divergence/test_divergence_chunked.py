"""By chunks and tiles as by definition: the same value and gradient, and nothing of B·T·V elements."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdistill.batch import layout
from sdistill.config import GRPOLossConfig, SDPOLossConfig
from sdistill.divergence.chunked import chunked_token_divergence
from sdistill.divergence.definition import DivergenceConfig, token_divergence
from sdistill.losses import GRPOBatch, PackedBatch, SDPOBatch, cross_entropy_loss, grpo_loss, sdpo_loss
from sdistill.settings import ConfigError
from sdistill.step import compute_gradient
from tests import tiny
from tests.divergence.test_divergence import config, exact, log_softmax

B, T, D, V = 3, 7, 8, 50
TEMPERATURE = 0.7
QWEN = 151_936  # ids of Qwen3
RNG = np.random.default_rng(0)


def normal(*shape, scale=1.0, rng=RNG):
    return jnp.asarray(rng.normal(0, scale, shape), jnp.float32)


HIDDEN, HEAD = normal(B, T, D), normal(D, V)
TEACHER_HIDDEN, TEACHER_HEAD = normal(B, T, D + 2), normal(D + 2, V)
IDS = jnp.asarray(RNG.integers(0, V, (B, T)))
FIXED = TEACHER_HIDDEN, TEACHER_HEAD, IDS
OF_LOSS, OF_LOG_PROB = normal(B, T), normal(B, T)
FULL, BUCKET = {"support": "full"}, {"support": "topk", "top_k": 5, "tail": "bucket"}
SAMPLED = {"alpha": 1.0, "support": "sampled"}
SETTINGS = [
    {"alpha": alpha, **support}
    for alpha in (0.0, 0.3, 1.0)
    for support in (
        FULL,
        BUCKET,
        {"support": "topk", "top_k": 5, "tail": "renormalise"},
        {"support": "topk", "top_k": V, "tail": "bucket"},
    )
] + [SAMPLED]
SETTINGS += [{"alpha": 1.0, **support, "pointwise_clip": 0.05} for support in (FULL, BUCKET)]
TOPK = SETTINGS[1]
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def name_of(settings):
    return "-".join(map(str, settings.values()))


def by_definition(hidden, head, settings, fixed=FIXED):
    """An objective with a weight of its own on every loss and log-probability; and what it is made of."""
    teacher_hidden, teacher_head, ids = fixed
    logits, teacher_logits = (
        jnp.einsum("btd,dv->btv", x, w, preferred_element_type=jnp.float32)
        for x, w in ((hidden, head), (teacher_hidden.astype(hidden.dtype), teacher_head.astype(head.dtype)))
    )
    sampled = {"sampled_ids_BT": ids} if settings["support"] == "sampled" else {}
    losses = token_divergence(logits, teacher_logits, config(**settings), temperature=TEMPERATURE, **sampled)
    log_s, log_t = (jax.nn.log_softmax(x / TEMPERATURE) for x in (logits, teacher_logits))
    chosen = [jnp.take_along_axis(x, ids[..., None], axis=-1)[..., 0] for x in (log_s, log_t)]
    entropies = [-jnp.sum(jnp.exp(x) * x, axis=-1) for x in (log_s, log_t)]
    total = jnp.sum(losses * OF_LOSS + chosen[0] * OF_LOG_PROB)
    return total, (losses, (chosen[0], entropies[0]), (chosen[1], entropies[1]))


def by_chunks(hidden, head, settings, chunk_size, fixed=FIXED):
    teacher_hidden, teacher_head, ids = fixed
    teacher = teacher_hidden.astype(hidden.dtype), teacher_head.astype(head.dtype)
    found = chunked_token_divergence(
        hidden,
        head,
        *teacher,
        ids,
        config(**settings),
        temperature=TEMPERATURE,
        logits_chunk_size=chunk_size,
    )
    total = jnp.sum(found.loss_BT * OF_LOSS + found.student.log_prob_BT * OF_LOG_PROB)
    return total, found


def with_gradient(function, *arguments):
    """What a function of hidden states and head returned besides its value, and its gradients."""
    (_, found), gradients = jit(jax.value_and_grad(function, (0, 1), has_aux=True))(*arguments)
    return jax.tree.leaves(found), gradients


def assert_as_defined(settings, chunk_size, head=HEAD, fixed=FIXED, dtype=jnp.float32, tolerance=2e-6):
    inputs = HIDDEN.astype(dtype), head.astype(dtype)
    ours, our_gradients = with_gradient(
        lambda x, w, *fixed: by_chunks(x, w, settings, chunk_size, fixed), *inputs, *fixed
    )
    theirs, their_gradients = with_gradient(
        lambda x, w, *fixed: by_definition(x, w, settings, fixed), *inputs, *fixed
    )
    for mine, right in zip(ours, theirs, strict=True):
        assert mine.dtype == jnp.float32 and mine.shape == (B, T)
        np.testing.assert_allclose(mine, right, rtol=1e-5, atol=2e-6 * np.abs(right).max())
    for mine, right in zip(our_gradients, their_gradients, strict=True):
        assert mine.dtype == dtype and mine.shape == right.shape
        mine, right = (np.asarray(x, np.float64) for x in (mine, right))
        assert np.abs(mine - right).max() <= tolerance * np.abs(right).max()


@pytest.mark.parametrize("settings", SETTINGS, ids=name_of)
def test_value_gradient_and_scores_are_those_of_the_definition(settings):
    assert_as_defined(settings, chunk_size=2)


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 1000])
def test_any_size_of_chunk_gives_the_same(chunk_size):
    """One position of each row; a size that leaves a rest; everything; more than there is."""
    assert_as_defined(TOPK, chunk_size)


@pytest.mark.parametrize("settings", SETTINGS[:2], ids=name_of)
def test_bfloat16_hidden_states_are_compared_in_float32(settings):
    """The gradient itself is rounded to three digits."""
    assert_as_defined(settings, 2, dtype=jnp.bfloat16, tolerance=2e-2)


def wide(size):
    """A head, and a teacher and ids to go with it, of a vocabulary that the backward pass cuts into tiles."""
    rng = np.random.default_rng(size)
    ids = rng.integers(0, size, (B, T))
    ids[0] = size - 1 - np.arange(T)
    return normal(D, size, rng=rng), (TEACHER_HIDDEN, normal(D + 2, size, rng=rng), jnp.asarray(ids))


SIZES = [12_301, *(pytest.param(size, marks=pytest.mark.long) for size in (2 * 4096, 97 * 128, 40_961))]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("settings", [SETTINGS[4], SETTINGS[5], SAMPLED], ids=name_of)
def test_any_cut_of_the_vocabulary_gives_the_same(settings, size):
    """Primes, in three and eight tiles; two equal tiles; three of a multiple of 128, the last overlapping."""
    head, fixed = wide(size)
    assert_as_defined(settings, 1, head, fixed)


@pytest.mark.long
@pytest.mark.parametrize(
    "settings",
    [{"alpha": 0.5, **FULL}, {"alpha": 0.5, **BUCKET, "top_k": 100}, SAMPLED],
    ids=name_of,
)
def test_exact_at_a_real_vocabulary(settings):
    """Against float64: sums over so many ids lose digits if they are taken one by one."""
    rng = np.random.default_rng(0)
    hidden, teacher_hidden = (normal(1, 4, 16, rng=rng) for _ in range(2))
    head, teacher_head = (normal(16, QWEN, scale=0.6, rng=rng) for _ in range(2))
    ids = jnp.asarray(rng.integers(0, QWEN, (1, 4)))

    def total(hidden, head, *teacher):
        found = chunked_token_divergence(hidden, head, *teacher, ids, config(**settings), logits_chunk_size=2)
        return jnp.sum(found.loss_BT), found

    found, gradients = with_gradient(total, hidden, head, teacher_hidden, teacher_head)
    hidden, head, teacher_hidden, teacher_head = (
        np.asarray(x, np.float64) for x in (hidden, head, teacher_hidden, teacher_head)
    )
    logits, teacher_logits = hidden @ head, teacher_hidden @ teacher_head
    loss, of_logits, *_ = exact(logits, teacher_logits, ids=np.asarray(ids), **settings)
    expected = [loss]
    for log_p in map(log_softmax, (logits, teacher_logits)):
        chosen = np.take_along_axis(log_p, np.asarray(ids)[..., None], axis=-1)[..., 0]
        expected += [chosen, -np.sum(np.exp(log_p) * log_p, axis=-1)]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    of_hidden, of_head = of_logits @ head.T, np.einsum("btd,btv->dv", hidden, of_logits)
    for ours, theirs in zip(gradients, (of_hidden, of_head), strict=True):
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_ties_at_the_borders_of_tiles():
    """Every logit the same: the K ids are the first, or wherever the order of ids puts them."""
    head, fixed = wide(2 * 4096)
    settings = {**TOPK, "top_k": 4097}  # one id beyond the first tile
    assert_as_defined(settings, 1, jnp.zeros_like(head), fixed)


def test_bfloat16_is_cut_into_tiles_too():
    head, fixed = wide(12_301)
    assert_as_defined(SETTINGS[5], 1, head, fixed, jnp.bfloat16, tolerance=2e-2)


@pytest.mark.parametrize("which", ["student", "teacher"])
@pytest.mark.parametrize("settings", SETTINGS[:2], ids=name_of)
def test_hidden_states_that_are_not_finite_are_not_hidden(settings, which):
    """They reach the loss of their position and the gradients of all ids, of every tile."""
    head, (teacher_hidden, teacher_head, ids) = wide(12_301)
    hidden = HIDDEN.at[1, 2, 3].set(jnp.nan) if which == "student" else HIDDEN
    if which == "teacher":
        teacher_hidden = teacher_hidden.at[1, 2, 3].set(jnp.nan)
    (loss_BT, *_), (of_hidden, of_head) = with_gradient(
        lambda x, w, *fixed: by_chunks(x, w, settings, 1, fixed),
        hidden,
        head,
        teacher_hidden,
        teacher_head,
        ids,
    )
    here = np.zeros((B, T), bool)
    here[1, 2] = True
    np.testing.assert_array_equal(np.isnan(loss_BT), here)
    np.testing.assert_array_equal(np.isnan(of_hidden).all(axis=-1), here)
    np.testing.assert_array_equal(np.isnan(of_hidden).any(axis=-1), here)
    assert np.isnan(of_head).all()


def test_masked_positions_may_hold_anything():
    mask = jnp.arange(T) < jnp.asarray([7, 0, 3])[:, None]

    def total(hidden, head):
        found = chunked_token_divergence(
            hidden, head, TEACHER_HIDDEN, TEACHER_HEAD, IDS, config(**TOPK), logits_chunk_size=2
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
            hidden, head, teacher_hidden, teacher_head, IDS, config(**settings), logits_chunk_size=2
        )
        return jnp.sum(found.student.entropy_BT + found.teacher.entropy_BT + found.teacher.log_prob_BT)

    def loss(hidden, head, teacher_hidden, teacher_head):
        return jnp.sum(
            chunked_token_divergence(
                hidden, head, teacher_hidden, teacher_head, IDS, config(**settings), logits_chunk_size=2
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
            HIDDEN, embedding_VD.T, TEACHER_HIDDEN, TEACHER_HEAD, IDS, config(**TOPK), logits_chunk_size=2
        )
        return jnp.sum(found.loss_BT)

    def untied(head_DV):
        return loss(head_DV.T)

    np.testing.assert_allclose(jit(jax.grad(loss))(embedding_VD).T, jit(jax.grad(untied))(HEAD), rtol=1e-6)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"logits_chunk_size": 0}, ConfigError, "logits_chunk_size=0 must be positive"),
        ({"top_k": V + 1}, ValueError, f"top_k={V + 1} is above the {V} ids"),
    ],
)
def test_contradictions_are_refused(changed, error, message):
    settings = TOPK | changed
    size = settings.pop("logits_chunk_size", 2)
    with pytest.raises(error) as raised:
        chunked_token_divergence(
            HIDDEN, HEAD, TEACHER_HIDDEN, TEACHER_HEAD, IDS, config(**settings), logits_chunk_size=size
        )
    assert message in str(raised.value)


def test_different_vocabularies_are_refused():
    with pytest.raises(ValueError, match=f"the student has {V} ids and the teacher {V - 1}"):
        chunked_token_divergence(
            HIDDEN, HEAD, TEACHER_HIDDEN, TEACHER_HEAD[:, 1:], IDS, config(**TOPK), logits_chunk_size=2
        )


def elements(text):
    """The number of elements of every array in a compiled program."""
    shapes = re.findall(r"\b(?:f64|f32|bf16|f16|[su]\d+|pred)\[([\d,]+)\]", text)
    return {int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes}


@pytest.mark.parametrize("settings", [*SETTINGS[:3], SETTINGS[-1]], ids=name_of)
def test_no_array_holds_the_vocabulary_of_all_positions(settings):
    compiled = jax.jit(jax.value_and_grad(lambda x, w: by_chunks(x, w, settings, 2)[0], (0, 1)))
    found = elements(compiled.lower(HIDDEN, HEAD).compile().as_text())
    assert D * V in found and 6 * V in found  # the head and a chunk: the text is read rightly
    assert max(found) < B * T * V
    whole = jax.jit(lambda x, w: by_definition(x, w, settings)[0])
    assert B * T * V in elements(whole.lower(HIDDEN, HEAD).compile().as_text())


MODEL = dataclasses.replace(tiny.CONFIG, num_hidden_layers=1, vocab_size=997)
ROWS, PROMPT, RESPONSE = 5, 3, 11


def sdpo_batch():
    prompts = [[3, 4, 5]] * ROWS
    rows = layout(prompts, np.ones((ROWS, RESPONSE), np.int32), np.full(ROWS, RESPONSE), PROMPT)
    zeros = np.zeros((ROWS, RESPONSE), np.float32)
    return SDPOBatch(
        student=rows,
        teacher=rows,
        has_teacher=np.ones(ROWS, np.float32),
        token_weights=zeros + 1,
        rollout_log_probs=zeros,
        epistemic_mask=zeros,
    )


def grpo_batch():
    batch = sdpo_batch()
    return GRPOBatch(batch.student, batch.epistemic_mask, batch.token_weights, batch.rollout_log_probs)


def packed_batch():
    ids = np.ones((ROWS, RESPONSE), np.int32)
    return PackedBatch(ids, ids, ids.astype(np.float32), ids, ids)


@pytest.mark.parametrize("name", ["sdpo", "full", "grpo", "cross_entropy"])
def test_no_array_of_a_training_step_holds_the_vocabulary_of_all_positions(name):
    params, teacher = (tiny.parameters(MODEL, seed) for seed in (0, 1))
    top_k = SDPOLossConfig(DivergenceConfig(top_k=7))
    full = SDPOLossConfig(DivergenceConfig(support="full", top_k=None, tail=None))
    sampled = {"temperature": 1.0, "logits_chunk_size": 1}
    loss, teacher_params, batch = {
        "sdpo": (functools.partial(sdpo_loss, config=top_k, **sampled), teacher, sdpo_batch()),
        "full": (functools.partial(sdpo_loss, config=full, **sampled), teacher, sdpo_batch()),
        "grpo": (functools.partial(grpo_loss, config=GRPOLossConfig(), **sampled), None, grpo_batch()),
        "cross_entropy": (functools.partial(cross_entropy_loss, logits_chunk_size=1), None, packed_batch()),
    }[name]
    gradient = jax.jit(functools.partial(compute_gradient, loss=loss, model=MODEL))
    found = elements(gradient.lower(params, teacher_params, batch).compile().as_text())
    assert ROWS * MODEL.vocab_size in found  # a chunk: one position of every row
    assert max(found) < ROWS * RESPONSE * MODEL.vocab_size


def temporary_bytes(positions):
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
            DivergenceConfig(),
            logits_chunk_size=32,
        )
        return jnp.mean(found.loss_BT), found

    compiled = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))
    return compiled.lower(hidden, head, hidden, head, ids).compile().memory_analysis().temp_size_in_bytes


def test_memory_is_that_of_a_chunk():
    """Of which the gradient of the head in float32 is 0.62 GB; a second array like it would not fit."""
    once, twice = temporary_bytes(8192), temporary_bytes(16384)
    assert once <= 1e9
    assert twice - once <= 8192 * 1024 * 2  # the student's hidden states
