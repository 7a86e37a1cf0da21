"""The engine: what it samples, that nothing else in the pool matters, and its bookkeeping.

With a model of fixed logits where the engine alone is tested, and with a small decoder where both are.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sdistill.batch import layout
from sdistill.engine.engine import SlotEngine
from sdistill.engine.model import CachedDecoder
from sdistill.engine.sampling import Sampling
from sdistill.engine.types import Completions, EngineStats, Finish, Request
from sdistill.losses import score_responses
from sdistill.model.decoder import bind
from sdistill.settings import ConfigError
from tests import reference
from tests.engine import mock
from tests.tiny import CONFIG, compilations, one_device, parameters

STOP_IDS = [5, 1]
TABLE = mock.table()
PROMPTS = [[3, 7, 7, 1], [7], [1, 2, 4, 4, 0, 2, 1], [6, 6], [2, 1, 3]]
REQUESTS = [Request(prompt, f"problem {i}", j) for i, prompt in enumerate(PROMPTS) for j in range(3)]
ONE_LAYER = dataclasses.replace(CONFIG, num_hidden_layers=1)


def table_engine(model=None, **changes) -> SlotEngine:
    settings = dict(stop_ids=STOP_IDS, slots=9, max_prompt_length=8, max_response_length=150) | changes
    return SlotEngine(model or mock.TableModel(), mesh=one_device(), **settings)


def decoder_engine(model=CONFIG, **changes) -> SlotEngine:
    settings = dict(stop_ids=[5], slots=9, max_prompt_length=8, max_response_length=12) | changes
    return SlotEngine(CachedDecoder(model), mesh=one_device(), **settings)


def generate(engine=None, requests=REQUESTS, *, params=TABLE, seed=0, step=0, **more) -> Completions:
    return (engine or table_engine()).generate(params, requests, seed=seed, step=step, **more)


def rows_of(completions: Completions, chosen) -> Completions:
    return Completions(*(x[np.asarray(chosen)] for x in completions))


def assert_same(ours: Completions, theirs: Completions, atol: float = 0.0) -> None:
    for name in ("ids", "lengths", "finish"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
    for name in ("log_probs", "full_log_probs"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=atol, err_msg=name)


def reference_log_probs(params, config, requests, completions: Completions) -> np.ndarray:
    """Of the same tokens, in float64."""
    flat, found = reference.flatten(params), np.zeros(completions.ids.shape)
    for row, request in enumerate(requests):
        ids = completions.ids[row, : completions.lengths[row]]
        p_TV = reference.softmax(reference.response_logits(flat, config, request.prompt, ids, 1.0))
        found[row, : len(ids)] = np.log(p_TV[np.arange(len(ids)), ids])
    return found


def training_log_probs(params, config, requests, completions: Completions) -> np.ndarray:
    """Of the same tokens, as a training step computes them."""
    prompts = [request.prompt for request in requests]
    sequences = layout(prompts, completions.ids, completions.lengths, max_prompt_length=10)
    scores = score_responses(params, sequences, model=config, temperature=1.0, logits_chunk_size=5)
    return np.asarray(scores.log_prob_BT * sequences.response_mask)


@pytest.fixture(scope="module")
def sampled() -> Completions:
    return generate()


@pytest.fixture(scope="module")
def decoded() -> Completions:
    return generate(decoder_engine(), params=parameters())


# What is sampled.


def test_tokens_come_as_often_as_the_models_logits_say():
    """First tokens, and second tokens after the commonest first, by chi-square; all settings side by side."""
    settings = [
        Sampling(),
        Sampling(temperature=0.6),
        Sampling(top_k=3),
        Sampling(top_p=0.7),
        Sampling(min_p=0.2),
        Sampling(temperature=1.4, top_k=6, top_p=0.9, min_p=0.05),
    ]
    count = 6000
    engine = table_engine(stop_ids=[], slots=1000, max_prompt_length=4, max_response_length=2)
    requests = [Request([3, 1], f"p{n}", i, s) for i in range(count) for n, s in enumerate(settings)]
    completions = generate(engine, requests)
    for n, sampling in enumerate(settings):
        ids = completions.ids[n :: len(settings)]
        common = np.bincount(ids[:, 0]).argmax()
        for row, tokens in (([3, 1], ids[:, 0]), ([3, 1, common], ids[ids[:, 0] == common, 1])):
            p = reference.softmax(mock.logits(TABLE, row) / sampling.temperature)
            order = np.argsort(-p)[: sampling.top_k]
            inside = np.cumsum(p[order]) / p[order].sum()
            kept = order[: 1 + int(np.sum(inside < sampling.top_p))]
            kept = kept[p[kept] >= sampling.min_p * p.max()]
            counts = np.bincount(tokens, minlength=mock.V)
            assert counts[kept].sum() == len(tokens), sampling
            p_value = stats.chisquare(counts[kept], len(tokens) * p[kept] / p[kept].sum()).pvalue
            assert p_value > 1e-3, sampling


def test_forbidden_tokens_are_never_drawn_and_forbidding_compiles_nothing(sampled):
    with compilations() as seen:
        without = generate(forbidden=[0, 3])
    assert seen == []
    assert {0, 3} <= set(sampled.ids[sampled.log_probs < 0])
    assert not {0, 3} & set(without.ids[without.log_probs < 0])
    assert_same(generate(forbidden=[]), sampled)


@pytest.mark.parametrize(
    ("forbidden", "message"), [([mock.V], "must be token ids"), (range(mock.V), "every token is")]
)
def test_forbidding_what_cannot_be_is_refused(forbidden, message):
    with pytest.raises(ValueError, match=message):
        generate(forbidden=forbidden)


def test_refilled_slots_give_what_decoding_one_at_a_time_gives(sampled):
    """Log-probabilities are those of the whole row, computed by hand: nothing is left of a slot's past."""
    for request, ids, length, log_probs in zip(
        REQUESTS, sampled.ids, sampled.lengths, sampled.log_probs, strict=True
    ):
        row = list(request.prompt)
        for token, log_prob in zip(ids[:length], log_probs, strict=False):
            p = reference.softmax(mock.logits(TABLE, row))
            assert log_prob == pytest.approx(np.log(p[token]), abs=1e-5)
            row.append(int(token))


@pytest.mark.parametrize(
    "changes", [dict(slots=1), dict(slots=64), dict(max_prompt_length=90, max_response_length=300)], ids=str
)
def test_sizes_of_the_pool_do_not_change_responses(sampled, changes):
    found = generate(table_engine(**changes))
    assert_same(Completions(*(x[:, :150] if x.ndim > 1 else x for x in found)), sampled, atol=1e-6)


@pytest.mark.parametrize("chosen", [[*range(14, -1, -1)], [7], [3, 4, 13]], ids=str)
def test_other_requests_and_their_order_do_not_change_responses(sampled, chosen):
    assert_same(generate(requests=[REQUESTS[i] for i in chosen]), rows_of(sampled, chosen), atol=1e-6)


def test_every_part_of_the_random_stream_counts(sampled):
    for other in (
        generate(seed=1),
        generate(step=1),
        generate(requests=[r._replace(problem=r.problem + "'") for r in REQUESTS]),
        generate(requests=[r._replace(sample=r.sample + 3) for r in REQUESTS]),
    ):
        assert np.mean(np.all(other.ids == sampled.ids, axis=1)) < 0.3
    assert_same(generate(), sampled)


def test_settings_belong_to_rows():
    """A row with its own settings is what it is alone, among rows with others."""
    settings = [Sampling(), Sampling(0.0), Sampling(0.5, top_k=2), Sampling(top_p=0.5), Sampling(min_p=0.4)]
    requests = [r._replace(sampling=s, limit=40) for r, s in zip(REQUESTS, settings * 3, strict=True)]
    together = generate(requests=requests)
    for i in range(5):
        assert_same(generate(requests=[requests[i]]), rows_of(together, [i]), atol=1e-6)
    greedy = together.log_probs[1::5]
    assert not greedy.any()  # greedy is certain of its choice


# Where responses end.


def test_any_stop_id_ends_a_response_and_nothing_follows(sampled):
    for ids, length, finish, log_probs, full_log_probs in zip(*sampled, strict=True):
        assert (finish == Finish.STOP) == bool({*STOP_IDS} & {*ids[:length]})
        assert not {*STOP_IDS} & {*ids[: length - 1]}
        for after in (ids, log_probs, full_log_probs):
            assert not after[length:].any()
        assert (log_probs[:length] < 0).all() and (full_log_probs[:length] < 0).all()
    assert {*STOP_IDS} <= {*sampled.ids[np.arange(15), sampled.lengths - 1]}  # each of them ended some


def test_responses_are_cut_at_their_limits_and_not_before(sampled):
    """A response that ends with its last allowed token has ended by itself; with one fewer it is cut."""
    for less in (0, 1):
        limits = np.maximum(sampled.lengths - less, 1)
        cut = generate(requests=[r._replace(limit=int(n)) for r, n in zip(REQUESTS, limits, strict=True)])
        np.testing.assert_array_equal(cut.lengths, limits)
        for ours, theirs, length in zip(cut.ids, sampled.ids, limits, strict=True):
            np.testing.assert_array_equal(ours[:length], theirs[:length])
        np.testing.assert_array_equal(cut.finished, sampled.finished & (sampled.lengths <= limits))
        assert set(cut.finish[~cut.finished]) <= {Finish.LENGTH}


def test_the_host_may_end_responses():
    """Where the ids pass a sum, found a round late; what was drawn since is gone, its slot used again."""

    def stop(ids, seen):
        return next((n for n in range(seen + 1, len(ids) + 1) if sum(ids[:n]) > 120), None)

    engine = table_engine(stop_ids=[])
    requests = [r._replace(limit=30 + i) for i, r in enumerate(REQUESTS)]
    free, stopped = generate(engine, requests), generate(engine, requests, stop=stop)
    ended = 0
    for i, request in enumerate(requests):
        ids = free.ids[i, : request.limit].tolist()
        length = stop(ids, 0)
        ended += length is not None
        assert stopped.finish[i] == (Finish.LENGTH if length is None else Finish.STOP)
        length = length or request.limit
        assert stopped.lengths[i] == length
        assert stopped.ids[i, :length].tolist() == ids[:length] and not stopped.ids[i, length:].any()
        np.testing.assert_allclose(stopped.log_probs[i, :length], free.log_probs[i, :length], atol=1e-6)
        assert not stopped.log_probs[i, length:].any()
    assert 3 < ended < 13


def test_logits_that_are_no_numbers_end_their_row_and_no_other(sampled):
    """The row after token 6 is broken; slots that held such rows are used again."""
    broken = TABLE.copy()
    broken[6] = np.nan
    seen: list[EngineStats] = []
    found = generate(table_engine(slots=3), params=broken, on_round=seen.append)
    hit = 0
    for i, request in enumerate(REQUESTS):
        row = [request.prompt[-1], *sampled.ids[i, : sampled.lengths[i]]]
        length = row[:-1].index(6) if 6 in row[:-1] else sampled.lengths[i]
        assert found.lengths[i] == length
        assert found.ids[i, :length].tolist() == row[1 : length + 1]
        assert (found.finish[i] == Finish.ERROR) == (length < sampled.lengths[i])
        hit += found.finish[i] == Finish.ERROR
    assert 3 < hit < 15  # both kinds occur; those of problem 3 fail at their first token
    assert seen[-1].errors == hit


# With a decoder.


def test_log_probs_are_those_of_the_training_forward(decoded):
    expected = training_log_probs(parameters(), CONFIG, REQUESTS, decoded)
    np.testing.assert_allclose(decoded.log_probs, expected, atol=1e-4)
    np.testing.assert_allclose(decoded.full_log_probs, expected, atol=1e-4)


def test_log_probs_under_truncation_are_those_of_the_float64_reference():
    sampling = Sampling(temperature=0.7, top_k=6, top_p=0.8)
    requests = [r._replace(sampling=sampling) for r in REQUESTS]
    found = generate(decoder_engine(), requests, params=parameters())
    flat, kept_sizes = reference.flatten(parameters()), set()
    for request, ids, length, log_probs, full_log_probs in zip(
        REQUESTS, found.ids, found.lengths, found.log_probs, found.full_log_probs, strict=True
    ):
        logits_TV = reference.response_logits(flat, CONFIG, request.prompt, ids[:length], 0.7)
        for t, (p, token) in enumerate(zip(reference.softmax(logits_TV), ids[:length], strict=True)):
            kept = np.argsort(-p)[:6]  # top-k first, then top-p of what is left
            inside = np.cumsum(p[kept]) / p[kept].sum()
            kept = kept[: 1 + int(np.sum(inside < 0.8))]
            kept_sizes.add(len(kept))
            assert token in kept
            assert log_probs[t] == pytest.approx(np.log(p[token] / p[kept].sum()), abs=1e-4)
            assert full_log_probs[t] == pytest.approx(np.log(p[token]), abs=1e-4)
    assert len(kept_sizes) > 2  # both limits were at work


def test_greedy_takes_the_likeliest_token_of_an_uncached_forward():
    params = parameters()
    requests = [r._replace(sampling=Sampling(temperature=0)) for r in REQUESTS[::3]]
    found = generate(decoder_engine(slots=2), requests, params=params)

    @jax.jit
    def next_token(tokens, length):
        model = bind(CONFIG, params)
        positions = jnp.arange(tokens.size)
        hidden = model(tokens[None], positions[None], (positions < length).astype(int)[None])
        return jnp.argmax(hidden[0, length - 1] @ model.head())

    for prompt, ids, length in zip(PROMPTS, found.ids, found.lengths, strict=True):
        tokens, expected = np.zeros(20, np.int32), []
        tokens[: len(prompt)] = prompt
        while len(expected) < 12 and 5 not in expected:
            at = len(prompt) + len(expected)
            tokens[at] = next_token(tokens, at)
            expected.append(int(tokens[at]))
        assert ids[:length].tolist() == expected


def test_the_same_responses_from_a_smaller_pool(decoded):
    assert_same(generate(decoder_engine(slots=2), params=parameters()), decoded, atol=2e-5)


def test_a_cache_that_grows_and_shrinks_gives_the_log_probs_of_the_reference():
    """Two slots: rows of up to 158 tokens pass the lengths 64, 128 and 158, up and down."""
    config = dataclasses.replace(ONE_LAYER, max_position_embeddings=512)
    params = parameters(config)
    limits = [150, 3, 90, 20, 150, 1, 60]
    requests = [Request([3, 1, i], f"p{i}", 0, limit=n) for i, n in enumerate(limits)]
    engine = decoder_engine(config, stop_ids=[], slots=2, max_response_length=150)
    assert len(engine.plan.lengths) > 2
    found = generate(engine, requests, params=params)
    np.testing.assert_array_equal(found.lengths, limits)
    expected = reference_log_probs(params, config, requests, found)
    np.testing.assert_allclose(found.log_probs, expected, atol=5e-5)


def test_log_probs_in_bfloat16_are_near_those_of_the_training_forward():
    compute = dataclasses.replace(CONFIG.compute, dtype="bfloat16")
    config = dataclasses.replace(ONE_LAYER, compute=compute)
    params = jax.tree.map(lambda x: 0.3 * x, parameters(config))
    found = generate(decoder_engine(config, slots=4), params=params)
    expected = training_log_probs(params, config, REQUESTS, found)
    np.testing.assert_allclose(found.log_probs, expected, atol=5e-2)


def test_a_model_without_tied_embeddings_samples_with_its_own_head():
    config = dataclasses.replace(ONE_LAYER, tie_word_embeddings=False, qk_norm=None)
    params, requests = parameters(config, seed=3), REQUESTS[::3]
    found = generate(decoder_engine(config, slots=4), requests, params=params)
    expected = reference_log_probs(params, config, requests, found)
    np.testing.assert_allclose(found.log_probs, expected, atol=1e-4)


# How it goes about it.


def test_slots_are_kept_busy_while_responses_wait():
    lengths = np.random.default_rng(0).lognormal(np.log(15), 0.8, 150).astype(int).clip(1, 56)
    requests = [Request([1, i % 8], f"p{i}", 0, limit=int(n)) for i, n in enumerate(lengths)]
    seen: list[EngineStats] = []
    generate(table_engine(stop_ids=[], slots=12, max_response_length=56), requests, on_round=seen.append)
    assert seen[-1].occupancy > 0.9
    assert seen[-1].tokens == lengths.sum()
    assert seen[-1].steps < 1.2 * lengths.sum() / 12 + 56  # the longest may come last


def test_progress_counts_what_has_ended(sampled):
    seen: list[EngineStats] = []
    generate(on_round=seen.append)
    completed = [s.completed for s in seen]
    assert completed == sorted(completed) and completed[-1] == seen[-1].total == 15
    assert seen[-1].tokens == sampled.lengths.sum() and seen[-1].errors == 0
    assert 0 < seen[-1].occupancy <= 1


def test_completions_are_handed_out_as_they_end(sampled):
    """Once each; the rest may be requested later, for instance after an interruption."""
    seen: dict[int, tuple[np.ndarray, Finish]] = {}

    class Interrupted(Exception):
        pass

    def keep(index, *completion):
        assert index not in seen
        seen[index] = completion
        if len(seen) == 7:
            raise Interrupted

    with pytest.raises(Interrupted):
        generate(on_completion=keep)
    left = [i for i in range(15) if i not in seen]
    generate(requests=[REQUESTS[i] for i in left], on_completion=lambda n, *r: seen.update({left[n]: r}))
    assert sorted(seen) == [*range(15)]
    for i, (ids, finish) in seen.items():
        assert (len(ids), finish) == (sampled.lengths[i], sampled.finish[i])
        np.testing.assert_array_equal(ids, sampled.ids[i, : len(ids)])


def test_each_prompt_is_prefilled_once():
    """Prompts of which each has many samples cost one row of one prefill each."""
    rows: list[int] = []

    class Counting(mock.TableModel):
        def prefill(self, params, tokens_QP, lengths_Q):
            jax.debug.callback(lambda n: rows.append(int((n > 0).sum())), lengths_Q)
            return super().prefill(params, tokens_QP, lengths_Q)

    prompts = [[1, i, 2] for i in range(7)]
    requests = [Request(prompt, str(prompt), i) for prompt in prompts for i in range(9)]
    generate(table_engine(Counting(), slots=4, max_response_length=20), requests)
    jax.effects_barrier()
    assert sum(rows) == 7


def test_after_warming_up_nothing_compiles():
    """Neither for other settings, prompts, lengths and seeds, nor for an equal engine or the last rows."""

    def engine(**changes):
        return table_engine(slots=8, max_prompt_length=65, max_response_length=100, **changes)

    plan = engine().plan
    assert (plan.row_counts, plan.lengths, plan.prompt_lengths) == ((8, 4), (128, 165), (64, 65))
    with compilations() as seen:
        engine().warm_up(TABLE)
        assert seen  # the listener works
        seen.clear()
        generate(engine(), [Request([1] * (1 + i), "p", i, limit=1 + i) for i in range(65)])
        for sampling in (Sampling(temperature=0), Sampling(1.3, 5, 0.5, 0.1), Sampling(top_p=0.5)):
            generate(engine(), [r._replace(sampling=sampling, limit=31) for r in REQUESTS], seed=3, step=9)
        generate(engine(), REQUESTS[4:6], stop=lambda ids, seen: None)
        generate(engine(stop_ids=[4, 3]), [Request([1] * 8, "p", i) for i in range(30)])
        # The pool shrinks while the cache is short, and while it is long.
        for prompt in ([1], [1] * 65):
            requests = [Request(prompt, "q", i, limit=70 if i < 6 else 100) for i in range(8)]
            generate(engine(), requests, forbidden=STOP_IDS)
        assert seen == []


# Bad input.


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request([], "a"), r"'a', sample 0 has 0 tokens; it must have 1 to max_prompt_length=8"),
        (Request([1] * 9, "b", 2), r"'b', sample 2 has 9 tokens; it must have 1 to max_prompt_length=8"),
        (Request([3, 8], "c"), r"token ids 3 to 8; they must be 0 to vocab_size=8 - 1"),
        (Request([-1], "d"), r"token ids -1 to -1"),
        (Request([1], "e", limit=0), r"limit=0 of 'e', sample 0 must be 1 to max_response_length=150"),
        (Request([1], "f", limit=151), r"limit=151 of 'f', sample 0 must be 1 to max_response_length=150"),
    ],
)
def test_unusable_requests_are_refused(request_, message):
    with pytest.raises(ValueError, match=message):
        generate(requests=[REQUESTS[0], request_])


def test_no_requests_are_refused():
    with pytest.raises(ValueError, match="no requests"):
        generate(requests=[])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(max_response_length=505),
            r"max_prompt_length=8 \+ max_response_length=505 exceeds.*max_position_embeddings=512",
        ),
        (dict(slots=0), "slots=0 must be positive"),
        (dict(stop_ids=[3, 8]), r"stop_ids=\[8\] must be token ids, 0 to vocab_size=8 - 1"),
    ],
)
def test_impossible_engines_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        table_engine(**changes)


def test_a_cache_that_does_not_fit_is_refused_with_the_numbers(monkeypatch):
    """2 layers × keys and values × 2 heads × 8 numbers × 4 bytes = 256 bytes a token; 9 × 20 tokens."""
    monkeypatch.setattr("sdistill.engine.engine.device_memory", lambda: 9 * 20 * 256)
    decoder_engine()
    monkeypatch.setattr("sdistill.engine.engine.device_memory", lambda: 9 * 20 * 256 - 1)
    with pytest.raises(
        ConfigError, match=r"slots=9 .* = 20\) tokens × 256 bytes .* at most slots=8 fit, or 19"
    ):
        decoder_engine()
