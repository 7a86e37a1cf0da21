"""The decoder against a float64 reference, whatever is packed, padded or cached around a sequence."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sdistill.config import ConfigError
from sdistill.models.decoder import bind, causal_mask, empty_cache
from tests import reference, tiny

CONFIGS = {
    "grouped": tiny.CONFIG,
    "multi-head": dataclasses.replace(tiny.CONFIG, num_key_value_heads=4, rope_theta=50.0),
    "plain": dataclasses.replace(
        tiny.CONFIG, num_key_value_heads=1, qk_norm=False, tie_word_embeddings=False, rms_norm_eps=0.1
    ),
}
RNG = np.random.default_rng(0)
SEQUENCES = [RNG.integers(0, 24, n).tolist() for n in (5, 7, 1, 12, 4)]
PLACES = [(0, 0, 1), (0, 5, 2), (0, 12, 3), (1, 0, 1), (2, 8, 1)]  # row, first column, segment


@functools.partial(jax.jit, static_argnums=0, compiler_options=tiny.QUICKLY)
def logits(config, params, tokens, positions, segments):
    model = bind(config, params)
    return model(tokens, positions, causal_mask(segments))[0] @ model.head()


def packed(padding: int = 0) -> dict[str, np.ndarray]:
    """Three rows of 14 columns: three sequences together, one padded right, one padded left."""
    tokens = np.full((3, 14), padding)
    positions, segments = np.zeros((3, 14), int), np.zeros((3, 14), int)
    for sequence, (row, start, segment) in zip(SEQUENCES, PLACES, strict=True):
        at = (row, slice(start, start + len(sequence)))
        tokens[at], positions[at], segments[at] = sequence, np.arange(len(sequence)), segment
    return {"tokens": tokens, "positions": positions, "segments": segments}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_the_float64_reference(name):
    config, params = CONFIGS[name], tiny.parameters(CONFIGS[name])
    ours, flat = logits(config, params, **packed()), reference.flatten(params)
    for sequence, (row, start, _) in zip(SEQUENCES, PLACES, strict=True):
        expected = reference.logits(flat, config, sequence)
        assert np.ptp(expected) > 1
        np.testing.assert_allclose(ours[row, start : start + len(sequence)], expected, atol=1e-4)


def test_padding_and_other_sequences_of_the_row_have_no_influence():
    params = tiny.parameters()
    ours = logits(tiny.CONFIG, params, **packed())
    littered = packed(padding=13)
    littered["positions"] = np.where(littered["segments"] > 0, littered["positions"], 9)
    littered["tokens"][0, :5] = 17  # the first sequence of the first row
    theirs = logits(tiny.CONFIG, params, **littered)
    for sequence, (row, start, _) in list(zip(SEQUENCES, PLACES, strict=True))[1:]:
        at = (row, slice(start, start + len(sequence)))
        np.testing.assert_array_equal(ours[at], theirs[at])
    assert not np.array_equal(ours[0, :5], theirs[0, :5])


def test_later_tokens_have_no_influence():
    params, changed = tiny.parameters(), packed()
    changed["tokens"][1, 6:] = 17
    ours, theirs = logits(tiny.CONFIG, params, **packed()), logits(tiny.CONFIG, params, **changed)
    np.testing.assert_array_equal(ours[1, :6], theirs[1, :6])
    assert not np.any(np.all(ours[1, 6:12] == theirs[1, 6:12], axis=-1))


@pytest.mark.parametrize("prefilled", [1, 5, 11])
def test_prefill_and_steps_with_a_cache_are_the_full_forward(prefilled):
    """The cache is longer than the sequence, and what lies in its unused columns is masked."""
    params, tokens = tiny.parameters(), jnp.asarray([SEQUENCES[3], SEQUENCES[3][::-1]])
    positions = jnp.broadcast_to(jnp.arange(12), (2, 12))
    full = logits(tiny.CONFIG, params, tokens, positions, jnp.ones((2, 12), int))
    model = bind(tiny.CONFIG, params)

    @functools.partial(jax.jit, compiler_options=tiny.QUICKLY)
    def step(tokens, start, cache):
        at = start + jnp.arange(tokens.shape[1])
        mask = jnp.broadcast_to(jnp.arange(15) <= at[:, None], (2, tokens.shape[1], 15))
        hidden, cache = model(tokens, jnp.broadcast_to(at, tokens.shape), mask, cache, start)
        return hidden @ model.head(), cache

    cache = jax.tree.map(lambda x: x + 7.0, empty_cache(tiny.CONFIG, 2, 15, jnp.float32))
    parts = [tokens[:, :prefilled], *(tokens[:, t : t + 1] for t in range(prefilled, 12))]
    start, outputs = 0, []
    for part in parts:
        output, cache = step(part, start, cache)
        start += part.shape[1]
        outputs.append(output)
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), full, atol=2e-5)


def test_the_cache_of_a_forward_without_one_holds_its_keys_and_values():
    params, tokens = tiny.parameters(), jnp.asarray([SEQUENCES[3]])
    model, positions = bind(tiny.CONFIG, params), jnp.arange(12)[None]
    forward = jax.jit(
        lambda *cache: model(tokens, positions, causal_mask(jnp.ones((1, 12), int)), *cache)[1],
        compiler_options=tiny.QUICKLY,
    )
    cache = empty_cache(tiny.CONFIG, 1, 12, jnp.float32)
    made, filled = forward(), forward(cache)
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, cache)
    for ours, theirs in zip(tiny.leaves(made), tiny.leaves(filled), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
        assert np.abs(ours).max() > 0.1


@pytest.mark.parametrize("name", CONFIGS)
def test_the_parameter_count_is_the_real_one(name):
    total = sum(leaf.size for leaf in tiny.leaves(tiny.parameters(CONFIGS[name])))
    assert CONFIGS[name].parameter_count() == total


def test_every_parameter_names_the_axes_it_can_be_split_along():
    flat = dict(nnx.to_flat_state(tiny.parameters()))
    for path, variable in flat.items():
        assert len(variable.get_metadata()["axes"]) == variable[...].ndim, path
    assert flat["layers", 0, "attention", "q_DNH"].get_metadata()["axes"] == ("embed", "heads", None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads=3 must divide num_attention_heads=4"),
        ({"head_dim": 7}, "head_dim=7 must be even"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(tiny.CONFIG, **changes)
