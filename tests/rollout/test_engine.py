"""The engine: what it samples, that nothing else in the batch matters, and its bookkeeping."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdistill.analysis.richness import response_log_probs
from sdistill.config import ConfigError
from sdistill.models.attention import Places
from sdistill.models.decoder import bind
from sdistill.parallel.mesh import MeshConfig, make_mesh
from sdistill.rollout.engine import Engine, Request, Rollouts
from sdistill.rollout.sampling import Sampling
from sdistill.training.rows import layout
from tests import reference
from tests.tiny import CONFIG, compilations, parameters

EOS = 5
PARAMS = parameters()
PROMPTS = [[3, 9, 9, 1], [7], [11, 2, 4, 4, 8, 23, 1], [6, 6], [20, 14, 3]]
REQUESTS = [Request(prompt, f"problem {i}") for i, prompt in enumerate(PROMPTS)]


def make_engine(**changes) -> Engine:
    settings = dict(eos_id=EOS, slots=9, max_prompt=8, max_response=12) | changes
    return Engine(CONFIG, mesh=make_mesh(MeshConfig()), **settings)


def generate(engine=None, requests=REQUESTS, *, samples=3, seed=0, step=0, sampling=None) -> Rollouts:
    return (engine or make_engine()).generate(
        PARAMS, requests, samples=samples, seed=seed, step=step, sampling=sampling or Sampling()
    )


def rows_of(rollouts: Rollouts, chosen: list[int]) -> Rollouts:
    return Rollouts(*(np.concatenate([x[3 * i : 3 * i + 3] for i in chosen]) for x in rollouts))


def assert_same(ours: Rollouts, theirs: Rollouts) -> None:
    for name in ("ids", "lengths", "finished"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
    for name in ("log_probs", "full_log_probs"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=2e-5, err_msg=name)


@pytest.fixture(scope="module")
def sampled() -> Rollouts:
    return generate()


def test_log_probs_are_those_of_the_training_forward(sampled):
    prompts = [prompt for prompt in PROMPTS for _ in range(3)]
    rows = layout(prompts, sampled.ids, sampled.lengths, max_prompt=10)
    expected = response_log_probs(PARAMS, rows, model=CONFIG, chunk=5)
    np.testing.assert_allclose(sampled.log_probs, expected, atol=1e-4)
    np.testing.assert_allclose(sampled.full_log_probs, expected, atol=1e-4)


def test_log_probs_under_temperature_and_truncation_are_those_of_the_float64_reference():
    sampling = Sampling(temperature=0.7, top_k=6, top_p=0.8)
    rollouts = generate(sampling=sampling)
    flat, kept_sizes = reference.flatten(PARAMS), set()
    for row, (ids, length) in enumerate(zip(rollouts.ids, rollouts.lengths, strict=True)):
        response = ids[:length]
        p_TV = reference.softmax(reference.response_logits(flat, CONFIG, PROMPTS[row // 3], response, 0.7))
        for t, (p, token) in enumerate(zip(p_TV, response, strict=True)):
            kept = np.argsort(-p)[:6]  # top-k first, then top-p of what is left
            inside = np.cumsum(p[kept]) / p[kept].sum()
            kept = kept[: 1 + int(np.sum(inside < 0.8))]
            kept_sizes.add(len(kept))
            assert token in kept
            assert rollouts.log_probs[row, t] == pytest.approx(np.log(p[token] / p[kept].sum()), abs=1e-4)
            assert rollouts.full_log_probs[row, t] == pytest.approx(np.log(p[token]), abs=1e-4)
    assert len(kept_sizes) > 2  # both limits were at work


def test_tokens_come_as_often_as_their_probability_says():
    engine = make_engine(slots=512, max_prompt=8, max_response=1)
    probabilities = reference.softmax(reference.logits(reference.flatten(PARAMS), CONFIG, PROMPTS[0])[-1])
    requests = [Request(PROMPTS[0], "p", first) for first in range(0, 4096, 512)]
    ids = generate(engine, requests, samples=512).ids[:, 0]
    counts = np.bincount(ids, minlength=CONFIG.vocab_size)
    expected = 4096 * probabilities
    assert np.all(np.abs(counts - expected) < 4 * np.sqrt(expected * (1 - probabilities)) + 1)
    frequent = expected > 5
    chi_square = np.sum((counts - expected)[frequent] ** 2 / expected[frequent])
    assert chi_square < 2 * frequent.sum()


@pytest.mark.parametrize(
    "changes",
    [dict(slots=3), dict(slots=5), dict(slots=64), dict(max_prompt=19)],
    ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items()),
)
def test_sizes_of_the_engine_do_not_change_responses(sampled, changes):
    assert_same(generate(make_engine(**changes)), sampled)


@pytest.mark.parametrize("chosen", [[4, 3, 2, 1, 0], [2], [1, 4]])
def test_other_prompts_and_their_order_do_not_change_responses(sampled, chosen):
    assert_same(generate(requests=[REQUESTS[i] for i in chosen]), rows_of(sampled, chosen))


def test_every_part_of_the_random_stream_counts(sampled):
    for other in (
        generate(seed=1),
        generate(step=1),
        generate(requests=[r._replace(problem=r.problem + "'") for r in REQUESTS]),
        generate(requests=[r._replace(first_sample=3) for r in REQUESTS]),
    ):
        assert np.mean(np.all(other.ids == sampled.ids, axis=1)) < 0.2
    assert_same(generate(), sampled)


def test_samples_of_a_problem_differ(sampled):
    groups = sampled.ids.reshape(len(PROMPTS), 3, -1)
    assert sum(len(np.unique(group, axis=0)) for group in groups) > 12


def test_a_repeated_problem_goes_on_counting_its_samples(sampled):
    requests = [REQUESTS[0]._replace(first_sample=first) for first in (0, 1, 2)]
    assert_same(generate(requests=requests, samples=1), rows_of(sampled, [0]))


def test_greedy_takes_the_likeliest_token_of_an_uncached_forward():
    rollouts = generate(samples=1, sampling=Sampling(temperature=0))

    @jax.jit
    def next_token(tokens, length):
        model = bind(CONFIG, PARAMS)
        positions = jnp.arange(tokens.size)
        hidden = model(tokens[None], Places(positions[None], (positions < length).astype(int)[None]))
        return jnp.argmax(hidden[0, length - 1] @ model.head())

    for prompt, ids, length, finished in zip(
        PROMPTS, rollouts.ids, rollouts.lengths, rollouts.finished, strict=True
    ):
        tokens, expected = np.zeros(20, np.int32), []
        tokens[: len(prompt)] = prompt
        while len(expected) < 12 and EOS not in expected:
            at = len(prompt) + len(expected)
            tokens[at] = next_token(tokens, at)
            expected.append(int(tokens[at]))
        assert ids[:length].tolist() == expected
        assert finished == (EOS in expected)
    assert not rollouts.log_probs.any()  # greedy is certain of its choice
    assert (rollouts.full_log_probs[rollouts.ids > 0] < 0).all()  # the model is not


def test_the_end_is_booked(sampled):
    assert 0 < sampled.finished.sum() < len(sampled.finished)  # both ends occur
    for ids, length, finished, log_probs, full_log_probs in zip(*sampled, strict=True):
        assert 1 <= length <= 12
        assert finished == (EOS in ids)
        assert EOS not in ids[: length - 1]
        assert ids[length - 1] == EOS if finished else length == 12
        for after in (ids, log_probs, full_log_probs):
            assert not after[length:].any()
        assert (log_probs[:length] < 0).all() and (full_log_probs[:length] < 0).all()


def test_responses_are_cut_at_the_limit_and_not_before(sampled):
    """A response that ends with its last allowed token has ended by itself; with one fewer it is cut."""
    lengths = sorted(sampled.lengths[sampled.finished])
    length = int(lengths[len(lengths) // 2])
    assert 2 <= length < 12
    for limit in (length, length - 1):
        cut = generate(make_engine(max_response=limit))
        np.testing.assert_array_equal(cut.ids, sampled.ids[:, :limit])
        np.testing.assert_array_equal(cut.lengths, np.minimum(sampled.lengths, limit))
        np.testing.assert_array_equal(cut.finished, sampled.finished & (sampled.lengths <= limit))


def test_progress_counts_real_responses():
    done = []
    make_engine().generate(
        PARAMS, REQUESTS, samples=3, seed=0, step=0, sampling=Sampling(), progress=done.append
    )
    assert done == [9, 6]


def test_new_settings_prompts_and_seeds_compile_nothing():
    engine = make_engine(slots=4)
    with compilations() as seen:
        generate(engine, samples=2, sampling=Sampling(temperature=0.9, top_k=3, top_p=0.9))
        assert seen  # the listener works
        seen.clear()
        for sampling in (
            Sampling(temperature=0),
            Sampling(temperature=1.3),
            Sampling(top_k=5),
            Sampling(top_p=0.5),
        ):
            generate(engine, samples=2, sampling=sampling)
        generate(engine, REQUESTS[2:], samples=2, seed=7, step=9)
        generate(make_engine(slots=4), samples=2)
        assert seen == []


def test_unusable_requests_are_refused():
    engine = make_engine()
    with pytest.raises(ValueError, match=r"'empty' has 0 tokens.*1 to max_prompt=8"):
        generate(engine, [Request([], "empty")])
    with pytest.raises(ValueError, match=r"'long' has 9 tokens.*1 to max_prompt=8"):
        generate(engine, [Request([1] * 9, "long")])
    with pytest.raises(ValueError, match=r"samples=10 must be 1 to slots=9"):
        generate(engine, samples=10)
    with pytest.raises(ValueError, match=r"samples=0 must be 1 to slots=9"):
        generate(engine, samples=0)


def test_more_positions_than_the_model_has_are_refused():
    make_engine(max_prompt=40, max_response=24)
    with pytest.raises(ConfigError, match=r"max_prompt=40 \+ max_response=25.*max_position_embeddings=64"):
        make_engine(max_prompt=40, max_response=25)


def test_a_model_without_tied_embeddings_samples_with_its_own_head():
    config = dataclasses.replace(CONFIG, tie_word_embeddings=False, qk_norm=None, num_hidden_layers=1)
    params = parameters(config, seed=3)
    engine = Engine(config, mesh=make_mesh(MeshConfig()), eos_id=EOS, slots=5, max_prompt=8, max_response=4)
    rollouts = engine.generate(params, REQUESTS, samples=1, seed=0, step=0, sampling=Sampling())
    flat = reference.flatten(params)
    for prompt, ids, length, log_probs in zip(
        PROMPTS, rollouts.ids, rollouts.lengths, rollouts.log_probs, strict=True
    ):
        p_TV = reference.softmax(reference.response_logits(flat, config, prompt, ids[:length], 1.0))
        expected = np.log(p_TV[np.arange(length), ids[:length]])
        np.testing.assert_allclose(log_probs[:length], expected, atol=1e-4)
