"""The decoder against a float64 reference, whatever is packed, padded or cached around a sequence."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sdistill.model.cache import COLUMN_AXES, empty_cache
from sdistill.model.config import ComputeConfig, YarnConfig
from sdistill.model.decoder import bind, unroll
from sdistill.settings import ConfigError
from tests import reference, tiny

YARN = YarnConfig(factor=4.0, original_max_position_embeddings=16, beta_fast=2.0, beta_slow=0.5)
WINDOWS = {"layer_types": ("full_attention", "sliding_attention"), "sliding_window": 3}
CONFIGS = {
    name: dataclasses.replace(tiny.CONFIG, **changes)
    for name, changes in {
        "grouped": {},
        "multi-head": {"num_key_value_heads": 4, "rope_theta": 50.0},
        "untied": {"num_key_value_heads": 1, "tie_word_embeddings": False, "rms_norm_eps": 0.1},
        "no norm of queries and keys": {"qk_norm": None},
        "norm of the whole projection": {"qk_norm": "projection"},
        "biases": {"attention_bias": True, "qk_norm": None},
        "norms of outputs": {"norm": "output"},
        "windows": WINDOWS,
        "yarn": {"rope_scaling": YARN, "rope_theta": 100.0},
        "yarn with a factor for attention": {"rope_scaling": dataclasses.replace(YARN, attention_factor=1.5)},
        "yarn and windows": {"rope_scaling": YARN, **WINDOWS},
        "yarn not for windows": {"rope_scaling": dataclasses.replace(YARN, sliding_layers=False), **WINDOWS},
        "a pattern of two kinds, twice": {
            "num_hidden_layers": 4,
            "layer_types": ("sliding_attention", "full_attention") * 2,
            "sliding_window": 4,
        },
    }.items()
}
OLMO = dataclasses.replace(CONFIGS["yarn not for windows"], qk_norm="projection", norm="output")
RNG = np.random.default_rng(0)
SEQUENCES = [RNG.integers(0, 24, n).tolist() for n in (5, 7, 1, 12, 4)]
PLACES = [(0, 0, 1), (0, 5, 2), (0, 12, 3), (1, 0, 1), (2, 8, 1)]  # row, first column, segment


@functools.partial(jax.jit, static_argnums=0, compiler_options=tiny.QUICKLY)
def logits(config, params, tokens, positions, segment_ids):
    model = bind(config, params)
    return model(tokens, positions, segment_ids) @ model.head()


def packed(padding: int = 0) -> dict[str, np.ndarray]:
    """Three rows of 14 columns: three sequences together, one padded right, one padded left."""
    tokens = np.full((3, 14), padding)
    positions, segment_ids = np.zeros((3, 14), int), np.zeros((3, 14), int)
    for sequence, (row, start, segment) in zip(SEQUENCES, PLACES, strict=True):
        at = (row, slice(start, start + len(sequence)))
        tokens[at], positions[at], segment_ids[at] = sequence, np.arange(len(sequence)), segment
    return {"tokens": tokens, "positions": positions, "segment_ids": segment_ids}


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
    littered["positions"] = np.where(littered["segment_ids"] > 0, littered["positions"], 9)
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


def with_prefix(cache, prefix):
    """The cache with the columns of another one in the place of its first ones."""

    def put(x, new, axis):
        return jax.lax.dynamic_update_slice_in_dim(x, new.astype(x.dtype), 0, axis)

    return jax.tree.map(put, cache, prefix, (COLUMN_AXES,) * len(cache))


@functools.partial(jax.jit, static_argnums=0, compiler_options=tiny.QUICKLY)
def prefill(config, params, tokens, lengths):
    model = bind(config, params)
    hidden, cache = model.prefill(tokens, lengths)
    return hidden @ model.head(), cache


@functools.partial(jax.jit, static_argnums=0, compiler_options=tiny.QUICKLY)
def decode(config, params, tokens, cache, lengths):
    model = bind(config, params)
    hidden, cache = model.decode(tokens, cache, lengths)
    return hidden @ model.head(), cache


@pytest.mark.parametrize("config", [tiny.CONFIG, OLMO], ids=["whole", "windows"])
def test_prefill_and_steps_with_a_cache_are_the_full_forward(config):
    """Rows of different lengths, in a cache that is longer; what lies beyond their length is not seen."""
    params, tokens = tiny.parameters(config), jnp.asarray([SEQUENCES[3], SEQUENCES[3][::-1]])
    positions = jnp.broadcast_to(jnp.arange(12), (2, 12))
    full = logits(config, params, tokens, positions, jnp.ones((2, 12), int))
    params = unroll(params)
    for prefilled in (1, 5, 11):
        lengths = np.array([prefilled, max(prefilled - 3, 1)])
        output, prefix = prefill(config, params, tokens.at[:, prefilled:].set(17), lengths)
        cache = with_prefix(jax.tree.map(lambda x: x + 7, empty_cache(config, 2, 15)), prefix)
        for row, length in enumerate(lengths):
            np.testing.assert_allclose(output[row, :length], full[row, :length], atol=2e-5)
        while lengths.max() < 12:
            output, cache = decode(config, params, tokens[np.arange(2), lengths], cache, lengths)
            np.testing.assert_allclose(output, full[np.arange(2), lengths], atol=2e-5)
            lengths += 1


@pytest.mark.parametrize("config", [tiny.CONFIG, OLMO, CONFIGS["a pattern of two kinds, twice"]])
def test_unrolled_layers_are_the_same_model(config):
    params = tiny.parameters(config)
    unrolled = unroll(params)
    assert len(unrolled["layers"]) == config.num_hidden_layers
    assert reference.flatten(unrolled).keys() == reference.flatten(params).keys()
    for name, value in reference.flatten(params).items():
        np.testing.assert_array_equal(reference.flatten(unrolled)[name], value, err_msg=name)

    @functools.partial(jax.jit, compiler_options=tiny.QUICKLY)
    def hidden(params):
        return bind(config, params).prefill(jnp.asarray([SEQUENCES[3]]), jnp.asarray([12]))[0]

    np.testing.assert_allclose(hidden(unrolled), hidden(params), atol=1e-5)


@functools.cache
def gradients(config, stored="float32"):
    """Of a loss that every logit takes part in, with weight on some more than on others."""
    weights, inputs = np.random.default_rng(1).normal(size=(3, 14, 24)), packed()

    @functools.partial(jax.jit, compiler_options=tiny.QUICKLY)
    @jax.grad
    def gradient(params):
        out = logits.__wrapped__(config, params, **inputs).astype(jnp.float32)
        seen = inputs["segment_ids"][..., None] > 0
        return jnp.mean(jnp.where(seen, jax.nn.log_softmax(out), 0) * weights)

    return tiny.leaves(gradient(jax.tree.map(lambda x: x.astype(stored), tiny.parameters(config))))


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_what_is_computed_again_has_the_same_gradients(remat):
    config = dataclasses.replace(OLMO, compute=ComputeConfig(remat=remat))
    for ours, theirs in zip(gradients(config), gradients(OLMO), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
        assert np.abs(theirs).max() > 0


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_gradients_in_bfloat16_are_close_and_have_the_type_of_the_parameters(stored):
    config = dataclasses.replace(OLMO, compute=ComputeConfig("bfloat16"))
    for ours, theirs in zip(gradients(config, stored), gradients(OLMO), strict=True):
        assert ours.dtype == stored
        assert np.linalg.norm(ours.astype(np.float32) - theirs) < 0.1 * np.linalg.norm(theirs)


def test_hidden_states_and_head_have_the_type_of_the_activations():
    model = bind(dataclasses.replace(OLMO, compute=ComputeConfig("bfloat16")), tiny.parameters(OLMO))
    inputs = packed()
    hidden = jax.eval_shape(model, inputs["tokens"], inputs["positions"], inputs["segment_ids"])
    assert hidden.dtype == model.head().dtype == jnp.bfloat16


@pytest.mark.parametrize("name", CONFIGS)
def test_the_parameter_count_is_the_real_one(name):
    total = sum(leaf.size for leaf in tiny.leaves(tiny.parameters(CONFIGS[name])))
    assert CONFIGS[name].parameter_count() == total


@pytest.mark.parametrize(
    "config", [OLMO, CONFIGS["biases"], CONFIGS["untied"]], ids=["olmo", "biases", "untied"]
)
def test_every_parameter_names_the_axes_it_can_be_split_along(config):
    flat = dict(nnx.to_flat_state(tiny.parameters(config)))
    for path, variable in flat.items():
        assert len(variable.get_metadata()["axes"]) == variable[...].ndim, path
    assert flat["layers", 0, "attention", "q_DNH"].get_metadata()["axes"] == (
        "layers",
        "embed",
        "heads",
        None,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads=3 must divide num_attention_heads=4"),
        ({"head_dim": 7}, "head_dim=7 must be even"),
        ({"layer_types": ("full_attention",)}, "layer_types has 1 entries, num_hidden_layers=2"),
        ({"sliding_window": 4}, "sliding_window=4 goes with 'sliding_attention' in layer_types"),
        ({**WINDOWS, "sliding_window": None}, "sliding_window=None goes with 'sliding_attention'"),
        ({**WINDOWS, "sliding_window": 0}, "sliding_window=0 must be positive"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(tiny.CONFIG, **changes)


def test_impossible_computations_are_refused():
    with pytest.raises(ConfigError, match="attention='cudnn' computes in bfloat16"):
        ComputeConfig(attention="cudnn")
    with pytest.raises(ConfigError, match="factor=0.5 must be 1 or more"):
        dataclasses.replace(YARN, factor=0.5)
