"""What is kept of each token: its gradient against plain ones, its place in the batch, its class."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sdistill.micro import mini_batches, on_policy_micro_batches
from sdistill.rows import response_hidden, response_ids
from sdistill.updates import UpdateReport, add_up

from sdistill.analysis.epistemic import CLASSES
from sdistill.attribution import attribute, rounded, tokens_of
from sdistill.config import TrainConfig
from sdistill.divergence.chunked import token_divergence
from sdistill.engine.types import Completions
from sdistill.losses import (
    DistillationConfig,
    Finite,
    GRPOConfig,
    PerToken,
    Report,
    grpo_loss,
    sdpo_loss,
    token_weights,
)
from sdistill.model.decoder import bind
from sdistill.settings import ConfigError, parse
from sdistill.step import grpo_gradient, sdpo_gradient
from tests import tiny
from tests.test_micro import CONFIG, batch

MESH = tiny.one_device()
SHARED = {"model": CONFIG, "temperature": 0.8, "chunk": 4}
LOSS = DistillationConfig(support="full", top_k=None, tail=None, importance_cap=1.5)
jit = functools.partial(jax.jit, compiler_options=tiny.QUICKLY)
PARAMS, TEACHER = tiny.parameters(CONFIG, 0), tiny.parameters(CONFIG, 1)
LENGTHS = [5, 16, 3, 9]


def whole():
    made = batch(LENGTHS, [3, 8, 5, 5], [9, 12, 3, 6])
    mask = np.asarray(made.student.response_mask)
    advantages = np.random.default_rng(3).normal(size=mask.shape).astype(np.float32) * mask
    has_teacher = np.array([1, 1, 0, 1], np.float32)
    return made._replace(
        advantages=advantages,
        has_teacher=has_teacher,
        weights=token_weights(mask * has_teacher[:, None], "seq_mean_token_mean"),
    )


@functools.cache
def compiled(objective, attribution):
    if objective == "sdpo":
        return jit(functools.partial(sdpo_gradient, config=LOSS, attribution=attribution, **SHARED))
    return jit(functools.partial(grpo_gradient, config=GRPOConfig(), attribution=attribution, **SHARED))


def of(objective, attribution=True):
    teacher = (TEACHER,) if objective == "sdpo" else ()
    return compiled(objective, attribution)(PARAMS, *teacher, whole())


def plain(objective):
    """Loss of each token from its own hidden state, on logits, without chunks; and hidden states."""
    made, student, teacher = whole(), bind(CONFIG, PARAMS), bind(CONFIG, TEACHER)
    hidden_BTD, ids_BT = response_hidden(student, made.student), response_ids(made.student)
    theirs_BTV = response_hidden(teacher, made.teacher) @ teacher.head()

    def terms(hidden_BTD):
        logits_BTV = hidden_BTD @ student.head()
        log_s_BTV = jax.nn.log_softmax(logits_BTV / 0.8)
        log_s_BT = jnp.take_along_axis(log_s_BTV, ids_BT[..., None], -1)[..., 0]
        ratio_BT = jnp.exp(log_s_BT - made.rollout_log_probs)
        entropy_BT = -jnp.sum(jnp.exp(log_s_BTV) * log_s_BTV, -1)
        if objective == "grpo":
            clipped_BT = jnp.clip(ratio_BT, 0.8, 1.28)
            loss_BT = -jnp.minimum(ratio_BT * made.advantages, clipped_BT * made.advantages)
            return jnp.sum(loss_BT * made.weights), (entropy_BT, None)
        divergence_BT = token_divergence(logits_BTV, theirs_BTV, alpha=0.5, support="full", temperature=0.8)
        capped_BT = jnp.minimum(jax.lax.stop_gradient(ratio_BT), 1.5)
        return jnp.sum(divergence_BT * capped_BT * made.weights), (entropy_BT, divergence_BT)

    gradient_BTD, (entropy_BT, divergence_BT) = jax.grad(terms, has_aux=True)(hidden_BTD)
    return PerToken(entropy_BT, divergence_BT, jnp.linalg.norm(gradient_BTD, axis=-1))


@pytest.mark.parametrize("objective", ["sdpo", "grpo"])
def test_signal_is_the_gradient_in_the_hidden_state_of_a_token(objective):
    gradient, report = of(objective)
    expected = jit(plain, static_argnums=0)(objective)
    mask = np.asarray(whole().student.response_mask)
    for name in PerToken._fields:
        ours, theirs = getattr(report.tokens, name), getattr(expected, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            np.testing.assert_allclose(ours * mask, theirs * mask, rtol=1e-4, atol=1e-7, err_msg=name)
    assert not np.any(np.asarray(report.tokens.signal_BT)[2]) and np.any(report.tokens.signal_BT[0])
    # And asking for it changes nothing of what is learned.
    plain_gradient, plain_report = of(objective, attribution=False)
    assert plain_report.tokens is None
    for ours, theirs in zip(tiny.leaves(gradient), tiny.leaves(plain_gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("objective", ["sdpo", "grpo"])
def test_off_it_is_the_program_of_the_loss_s_gradient_and_nothing_more(objective):
    teacher = (TEACHER,) if objective == "sdpo" else ()
    loss_of, config = (sdpo_loss, LOSS) if objective == "sdpo" else (grpo_loss, GRPOConfig())

    def gradient(params, *rest):
        return jax.grad(functools.partial(loss_of, config=config, **SHARED), has_aux=True)(params, *rest)

    def text(function):
        program = jax.jit(function).lower(PARAMS, *teacher, whole()).as_text()
        return program.partition("\n")[2]  # the first line has the function's name

    gradient_of = {"sdpo": sdpo_gradient, "grpo": grpo_gradient}[objective]
    off, on = (
        text(functools.partial(gradient_of, config=config, attribution=a, **SHARED)) for a in (False, True)
    )
    assert off == text(gradient) != on


@pytest.mark.slow
def test_tokens_are_put_back_where_they_were():
    """Two updates, each in parts of one row, of which only so many columns are computed as it needs."""
    gradient_of, made, updates = compiled("sdpo", True), whole(), []
    for part in mini_batches(made, 2):
        _, reports = add_up(gradient_of, MESH, on_policy_micro_batches(part, 1), PARAMS, TEACHER)
        updates.append(UpdateReport(reports, {}))
    assert {report.tokens.signal_BT.shape[1] for u in updates for _, report in u.parts} == {12, 16}
    found = tokens_of(updates, (4, 16))
    expected = of("sdpo")[1].tokens._asdict()
    mask = np.asarray(made.student.response_mask)
    assert found.keys() == {"entropy", "divergence", "signal"}
    for name, values in found.items():
        theirs = np.asarray(expected[f"{name}_BT"]) * mask
        np.testing.assert_allclose(values * mask, theirs, rtol=1e-4, atol=1e-7, err_msg=name)


def test_rounded_numbers_are_short_and_near():
    values = np.random.default_rng(0).normal(size=500) * 10.0 ** np.random.default_rng(1).integers(
        -12, 6, 500
    )
    for value, short in zip(values, rounded(values).tolist(), strict=True):
        assert short == pytest.approx(value, rel=5.1e-4 if abs(value) < 1000 else 1e-3)
        assert len(f"{short!r}".lstrip("-0.").split("e")[0].replace(".", "").rstrip("0")) <= 7
        assert float(f"{short:.4g}") == short or abs(value) >= 1000
    assert rounded(np.array([0.0, -0.12345, 1e-30])).tolist() == [0.0, -0.1234, 0.0]


def test_generations_and_record_of_a_step(tokenizer):
    texts = ["wait 8 -3 </think> + -", "so maybe 1 yes"]
    rows = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
    lengths = np.array([len(row) for row in rows])
    ids = np.zeros((2, 9), np.int32)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = tokens
    empty = np.zeros((2, 9), np.float32)
    rollouts = Completions(ids, lengths, np.ones(2, int), empty, empty)
    rng = np.random.default_rng(0)
    entropy, divergence, signal = rng.uniform(0.1, 2, (3, 2, 9)).astype(np.float32)
    report = Report({}, Finite(np.ones(2, bool)), PerToken(entropy, divergence, signal))
    updates = [UpdateReport([(np.arange(2), report)], {})]
    generations = [tiny.response("a"), tiny.response("b")]
    found, record = attribute(generations, rollouts, np.array([1.0, 0.0]), updates, tokenizer)
    for row, (generation, length) in enumerate(zip(found, lengths, strict=True)):
        by_token = generation.attribution
        assert generation.problem == "ab"[row] and "".join(by_token.tokens) == texts[row]
        assert by_token.entropy == pytest.approx(entropy[row, :length], rel=1e-3)
        assert by_token.signal == pytest.approx(signal[row, :length], rel=1e-3)
    assert found[0].attribution.divergence == pytest.approx(divergence[0, : lengths[0]], rel=1e-3)
    assert found[1].attribution.divergence is None
    marked = ["edd" + "odd" + "o", "oed" + "oo"]
    total = sum(signal[row, :length].sum() for row, length in enumerate(lengths))
    for letter, name in zip("edo", CLASSES, strict=True):
        places = [(row, t) for row in range(2) for t, c in enumerate(marked[row]) if c == letter]
        assert record[f"class_tokens_{name}"] == pytest.approx(len(places) / lengths.sum())
        assert record[f"class_signal_{name}"] == pytest.approx(sum(signal[p] for p in places) / total)
        taught = [divergence[p] for p in places if p[0] == 0]
        assert record[f"class_divergence_{name}"] == pytest.approx(np.mean(taught))
    silent = report._replace(tokens=PerToken(entropy, None, 0 * signal))
    updates = [UpdateReport([(np.arange(2), silent)], {})]
    found, record = attribute(generations, rollouts, None, updates, tokenizer)
    assert [g.attribution.divergence for g in found] == [None, None]
    assert not any("divergence" in name for name in record)
    assert [record[f"class_signal_{name}"] for name in CLASSES] == [0, 0, 0]


def test_examples_have_no_rollouts_to_attribute_to():
    rows = {"source": "signs_corpus", "rows": 8, "row_length": 8, "packed": False}
    values = {"objective": "sft", "seed": 0, "steps": 1, "optimizer": {"learning_rate": 1e-3}}
    assert not dataclasses.asdict(parse(TrainConfig, {**values, "examples": rows}))["attribution"]
    with pytest.raises(ConfigError, match="attribution has no effect with objective='sft'; remove it"):
        parse(TrainConfig, {**values, "examples": rows, "attribution": True})
