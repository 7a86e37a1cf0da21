"""What is kept of each token: its gradient against plain ones, its place in the batch, its class."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdistill.analysis.epistemic import CLASSES
from sdistill.attribution import attribute, rounded, token_arrays
from sdistill.batch import micro_batches, mini_batches
from sdistill.config import GRPOLossConfig, SDPOLossConfig
from sdistill.divergence.definition import token_divergence
from sdistill.engine.types import Completions
from sdistill.losses import LossReport, grpo_loss, response_hidden, response_ids, sdpo_loss
from sdistill.model.decoder import bind
from sdistill.step import UpdateReport, compute_gradient
from tests import tiny
from tests.batches import FULL, MODEL, grpo_batch, random_ids, sdpo_batch

jit = functools.partial(jax.jit, compiler_options=tiny.QUICKLY)
PARAMS, TEACHER = tiny.parameters(MODEL, 0), tiny.parameters(MODEL, 1)
SHARED = {"temperature": 0.8, "logits_chunk_size": 4}
SDPO = functools.partial(sdpo_loss, config=SDPOLossConfig(FULL, importance_cap=1.5), **SHARED)
GRPO = functools.partial(grpo_loss, config=GRPOLossConfig(), **SHARED)
LENGTHS = (5, 16, 3, 9)
BATCH = sdpo_batch(*map(random_ids, (LENGTHS, (3, 8, 5, 5), (9, 12, 3, 6))), has_teacher=(1, 1, 0, 1))
MASK = np.asarray(BATCH.student.response_mask)
RUNS = {
    "sdpo": (SDPO, (PARAMS, TEACHER, BATCH)),
    "grpo": (GRPO, (PARAMS, None, grpo_batch(BATCH, (1, -0.5, 0, 0.3)))),
}


@functools.cache
def gradient_of(objective, attribution=True):
    """The gradient, and the loss's report."""
    loss, arguments = RUNS[objective]
    compute = functools.partial(compute_gradient, loss=loss, model=MODEL, attribution=attribution)
    return jit(compute)(*arguments)


def plain(objective):
    """Figures of each token from its own hidden state, on logits, without chunks."""
    batch, student, teacher = RUNS[objective][1][-1], bind(MODEL, PARAMS), bind(MODEL, TEACHER)
    hidden_BTD, ids_BT = response_hidden(student, batch.student), response_ids(batch.student)
    theirs_BTV = response_hidden(teacher, BATCH.teacher) @ teacher.head()

    def objective_of(hidden_BTD):
        logits_BTV = hidden_BTD @ student.head()
        log_s_BTV = jax.nn.log_softmax(logits_BTV / 0.8)
        log_s_BT = jnp.take_along_axis(log_s_BTV, ids_BT[..., None], -1)[..., 0]
        ratio_BT = jnp.exp(log_s_BT - batch.rollout_log_probs)
        entropy_BT = -jnp.sum(jnp.exp(log_s_BTV) * log_s_BTV, -1)
        if objective == "grpo":
            clipped_BT = jnp.clip(ratio_BT, 0.8, 1.28)
            loss_BT = -jnp.minimum(ratio_BT * batch.advantages, clipped_BT * batch.advantages)
            return jnp.sum(loss_BT * batch.token_weights), {"entropy": entropy_BT}
        divergence_BT = token_divergence(logits_BTV, theirs_BTV, FULL, temperature=0.8)
        capped_BT = jnp.minimum(jax.lax.stop_gradient(ratio_BT), 1.5)
        return jnp.sum(divergence_BT * capped_BT * batch.token_weights), {
            "entropy": entropy_BT,
            "divergence": divergence_BT,
        }

    gradient_BTD, figures = jax.grad(objective_of, has_aux=True)(hidden_BTD)
    return figures | {"signal": jnp.linalg.norm(gradient_BTD, axis=-1)}


@pytest.mark.parametrize("objective", RUNS)
def test_signal_is_the_gradient_in_the_hidden_state_of_a_token(objective):
    _, report = gradient_of(objective)
    expected = jit(plain, static_argnums=0)(objective)
    assert report.tokens.keys() == expected.keys()
    for name, ours in report.tokens.items():
        np.testing.assert_allclose(ours * MASK, expected[name] * MASK, rtol=1e-4, atol=1e-7, err_msg=name)
    signal = np.asarray(report.tokens["signal"])
    assert not signal[2].any() and signal[0].any()


@pytest.mark.parametrize("objective", ["sdpo", pytest.param("grpo", marks=pytest.mark.long)])
def test_asking_for_it_changes_nothing_of_what_is_learned(objective):
    gradient, _ = gradient_of(objective)
    expected, report = gradient_of(objective, attribution=False)
    assert report.tokens is None
    for ours, theirs in zip(tiny.leaves(gradient), tiny.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("objective", RUNS)
def test_off_it_is_the_program_of_the_loss_s_gradient_and_nothing_more(objective):
    loss, arguments = RUNS[objective]

    def gradient(params, *rest):
        return jax.grad(functools.partial(loss, model=MODEL), has_aux=True)(params, *rest)

    def text(function):
        program = jax.jit(function).lower(*arguments).as_text()
        return program.partition("\n")[2]  # the first line has the function's name

    compute = functools.partial(compute_gradient, loss=loss, model=MODEL)
    off, on = (text(functools.partial(compute, attribution=attribution)) for attribution in (False, True))
    assert off == text(gradient) != on


def test_tokens_are_put_back_where_they_were():
    """Two updates, each in parts of one row, of which only as many columns are computed as it needs."""
    updates, widths = [], set()
    for mini_batch in mini_batches(BATCH, 2):
        micro = []
        for rows, part in micro_batches(mini_batch, 1):
            columns = (part.rollout_log_probs, part.epistemic_mask, part.token_weights)
            figures = dict(zip(("entropy", "divergence", "signal"), columns, strict=True))
            micro.append((rows, LossReport({}, {}, figures)))
            widths.add(part.token_weights.shape[1])
        updates.append(UpdateReport(micro, {}))
    assert widths == {12, 16}
    found = token_arrays(updates, MASK.shape)
    assert found.keys() == {"entropy", "divergence", "signal"}
    np.testing.assert_array_equal(found["entropy"], BATCH.rollout_log_probs)
    np.testing.assert_array_equal(found["divergence"], BATCH.epistemic_mask)
    np.testing.assert_array_equal(found["signal"], BATCH.token_weights)


def test_rounded_numbers_are_short_and_near():
    values = np.random.default_rng(0).normal(size=500) * 10.0 ** np.random.default_rng(1).integers(
        -12, 6, 500
    )
    for value, short in zip(values, rounded(values).tolist(), strict=True):
        assert short == pytest.approx(value, rel=5.1e-4 if abs(value) < 1000 else 1e-3)
        assert len(f"{short!r}".lstrip("-0.").split("e")[0].replace(".", "").rstrip("0")) <= 7
        assert float(f"{short:.4g}") == short or abs(value) >= 1000
    assert rounded(np.array([0.0, -0.12345, 1e-30])).tolist() == [0.0, -0.1234, 0.0]


def test_responses_and_metrics_of_a_step(tokenizer):
    texts = ["wait 8 -3 </think> + -", "so maybe 1 yes"]
    rows = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
    lengths = np.array([len(row) for row in rows])
    ids = np.zeros((2, 9), np.int32)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = tokens
    empty = np.zeros((2, 9), np.float32)
    completions = Completions(ids, lengths, np.ones(2, int), empty, empty)
    rng = np.random.default_rng(0)
    entropy, divergence, signal = rng.uniform(0.1, 2, (3, 2, 9)).astype(np.float32)
    report = LossReport({}, {}, {"entropy": entropy, "divergence": divergence, "signal": signal})
    updates = [UpdateReport([(np.arange(2), report)], {})]
    responses = [tiny.response("a"), tiny.response("b")]
    found, metrics = attribute(responses, completions, np.array([1.0, 0.0]), updates, tokenizer)
    for row, (response, length) in enumerate(zip(found, lengths, strict=True)):
        by_token = response.attribution
        assert response.problem == "ab"[row] and "".join(by_token.tokens) == texts[row]
        assert by_token.entropy == pytest.approx(entropy[row, :length], rel=1e-3)
        assert by_token.signal == pytest.approx(signal[row, :length], rel=1e-3)
    assert found[0].attribution.divergence == pytest.approx(divergence[0, : lengths[0]], rel=1e-3)
    assert found[1].attribution.divergence is None
    letters = ["edd" + "odd" + "o", "oed" + "oo"]
    total = sum(signal[row, :length].sum() for row, length in enumerate(lengths))
    for letter, name in zip("edo", CLASSES, strict=True):
        places = [(row, t) for row in range(2) for t, c in enumerate(letters[row]) if c == letter]
        assert metrics[f"class_tokens_{name}"] == pytest.approx(len(places) / lengths.sum())
        assert metrics[f"class_signal_{name}"] == pytest.approx(sum(signal[p] for p in places) / total)
        with_teacher = [divergence[p] for p in places if p[0] == 0]
        assert metrics[f"class_divergence_{name}"] == pytest.approx(np.mean(with_teacher))
    silent = report._replace(tokens={"entropy": entropy, "signal": 0 * signal})
    updates = [UpdateReport([(np.arange(2), silent)], {})]
    found, metrics = attribute(responses, completions, None, updates, tokenizer)
    assert [r.attribution.divergence for r in found] == [None, None]
    assert not any("divergence" in name for name in metrics)
    assert [metrics[f"class_signal_{name}"] for name in CLASSES] == [0, 0, 0]
