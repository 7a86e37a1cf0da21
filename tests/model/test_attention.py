"""Attention: what a token sees, by brute force; and that every kernel computes the same."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from sdistill.model.attention import attend, choose_backend, visible
from sdistill.model.config import ComputeConfig
from sdistill.model.decoder import bind
from tests import tiny

TOKENS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=8)


@pytest.fixture
def interpreted(monkeypatch):
    """Runs the kernel for TPU on the CPU, by its own flag: the mode for all of Pallas knows no vmap."""
    monkeypatch.setattr(splash, "make_splash_mha", functools.partial(splash.make_splash_mha, interpret=True))


@given(TOKENS, st.none() | st.integers(1, 6))
def test_a_token_sees_its_own_segment_up_to_itself_and_no_further_than_the_window(tokens, window):
    found = visible(*np.array(tokens).T[:, None], window)
    for t, (position, segment) in enumerate(tokens):
        for s, (other, its_segment) in enumerate(tokens):
            expected = segment == its_segment and segment != 0 and other <= position
            if window is not None:
                expected = expected and position - other < window
            assert found[0, t, s] == expected


def test_what_is_computed_where():
    assert choose_backend("auto", jnp.dtype("float32")) == "plain"  # on a CPU
    assert choose_backend("auto", jnp.dtype("bfloat16")) == "plain"
    assert choose_backend("splash", jnp.dtype("float32")) == "splash"


def packed(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Two rows: three sequences and padding at the end; padding on both sides of one."""
    cuts = [0, length // 3, length // 3 + 1, length - 9]
    segment_ids, positions = np.zeros((2, length), np.int32), np.zeros((2, length), np.int32)
    for segment, (start, stop) in enumerate(zip(cuts, cuts[1:], strict=False), start=1):
        segment_ids[0, start:stop], positions[0, start:stop] = segment, np.arange(stop - start)
    segment_ids[1, 20:-5], positions[1, 20:-5] = 1, np.arange(length - 25)
    return positions, segment_ids


def values_and_gradients(backend, at, q, k, v, window):
    """What attention gives where there are tokens, and the gradients of a weighted sum of it."""
    weights = np.random.default_rng(1).normal(size=q.shape) * (at[1] > 0)[..., None, None]

    def total(q, k, v):
        out = attend(q, k, v, *at, window=window, backend=backend)
        return jnp.sum(out * weights), out

    gradients, out = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return [np.where((at[1] > 0)[..., None, None], out, 0), *gradients]


@pytest.mark.parametrize(
    ("length", "heads", "kv_heads", "head_dim", "window"),
    [(256, 4, 2, 64, None), (200, 4, 1, 128, 40), (130, 2, 2, 64, 7)],
)
def test_the_kernel_for_tpu_computes_what_plain_attention_does(
    interpreted, length, heads, kv_heads, head_dim, window
):
    rng = np.random.default_rng(0)
    q, k, v = (
        rng.normal(size=(2, length, n, head_dim)).astype(np.float32) for n in (heads, kv_heads, kv_heads)
    )
    at = packed(length)
    plain = values_and_gradients("plain", at, q, k, v, window)
    kernel = values_and_gradients("splash", at, q, k, v, window)
    for ours, theirs in zip(kernel, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())


def test_a_whole_decoder_with_the_kernel_is_the_same_decoder(interpreted):
    config = dataclasses.replace(
        tiny.CONFIG, head_dim=64, layer_types=("sliding_attention", "full_attention"), sliding_window=50
    )
    params, at = tiny.parameters(config), packed(140)
    tokens = np.random.default_rng(0).integers(0, 24, (2, 140))

    @functools.partial(jax.jit, static_argnums=0)
    def logits(config, params):
        model = bind(config, params)
        return jnp.where((at[1] > 0)[..., None], model(tokens, *at) @ model.head(), 0)

    plain = logits(config, params)
    kernel = logits(dataclasses.replace(config, compute=ComputeConfig(attention="splash")), params)
    np.testing.assert_allclose(kernel, plain, atol=2e-5 * np.abs(plain).max())
