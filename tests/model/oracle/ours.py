"""What the decoder computes for the cases. Cached: several tests look at the same numbers."""

import dataclasses
import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from sdistill.model.cache import empty_cache
from sdistill.model.config import ComputeConfig, ModelConfig
from sdistill.model.decoder import Decoder, bind, unroll
from sdistill.model.hugging_face import tensor_name, to_theirs
from sdistill.model.weights import load_pretrained
from tests.model.oracle import golden
from tests.model.oracle.cases import LAYOUT, LENGTH, PROMPT, RESPONSE, Case, batch, prompt, sequences


@functools.cache
def model(case: Case) -> Decoder:
    """The case's model, read from a folder such as transformers writes."""
    with tempfile.TemporaryDirectory() as folder:
        golden.write_model(case, Path(folder))
        return load_pretrained(folder)


def parameters(case: Case, dtype: str = "float32") -> nnx.State:
    return jax.tree.map(lambda x: x.astype(dtype), nnx.state(model(case), nnx.Param))


def rows(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The sequences of LAYOUT in their rows."""
    height = 1 + max(row for _, _, row, *_ in LAYOUT)
    tokens, positions, segment_ids = (np.zeros((height, LENGTH), np.int32) for _ in range(3))
    for sequence, (_, length, row, start, segment) in zip(sequences(case), LAYOUT, strict=True):
        at = (row, slice(start, start + length))
        tokens[at], positions[at], segment_ids[at] = sequence, np.arange(length), segment
    return tokens, positions, segment_ids


@functools.cache
def logits(case: Case, stored: str = "float32", computed: str = "float32") -> list[np.ndarray]:
    """Logits [T, V] of every sequence of LAYOUT, from the rows they share with others and with padding."""
    out = np.asarray(_logits(_computed(case, computed), parameters(case, stored), *rows(case)))
    return [out[row, start : start + length] for _, length, row, start, _ in LAYOUT]


def _computed(case: Case, dtype: str) -> ModelConfig:
    return dataclasses.replace(model(case).config, compute=ComputeConfig(dtype))


@functools.partial(jax.jit, static_argnums=0)
def _logits(config: ModelConfig, params: nnx.State, *inputs: jax.Array) -> jax.Array:
    decoder = bind(config, params)
    return (decoder(*inputs) @ decoder.head()).astype(jnp.float32)


@functools.cache
def greedy(case: Case) -> np.ndarray:
    """The likeliest tokens after the prompt, decoded one by one with a cache."""
    tokens = _greedy(model(case).config, unroll(parameters(case)), prompt(case))
    return np.asarray(tokens)[PROMPT - 1 :]


@functools.partial(jax.jit, static_argnums=0)
def _greedy(config: ModelConfig, params: nnx.State, prompt: jax.Array) -> jax.Array:
    decoder = bind(config, params)

    def step(carry: tuple, column: jax.Array) -> tuple:
        token, cache = carry
        token = jnp.where(column < PROMPT, prompt[column], token)
        hidden, cache = decoder.decode(token[None], cache, column[None])
        likeliest = jnp.argmax(hidden[0] @ decoder.head())
        return (likeliest, cache), likeliest

    columns = PROMPT + RESPONSE - 1
    start = (jnp.zeros((), jnp.int32), empty_cache(config, 1, columns))
    return jax.lax.scan(step, start, jnp.arange(columns))[1]


@functools.cache
def greedy_without_cache(case: Case) -> np.ndarray:
    """The likeliest token after the prompt and each beginning of the greedy response, in one forward."""
    tokens, positions, segment_ids = rows(case)  # the shape of before: no new compilation
    tokens[0, : PROMPT + RESPONSE] = [*prompt(case), *greedy(case)]
    out = _logits(_computed(case, "float32"), parameters(case), tokens, positions, segment_ids)
    return np.argmax(out[0, PROMPT - 1 : PROMPT + RESPONSE - 1], axis=-1)


@functools.cache
def gradients(case: Case) -> dict[str, np.ndarray]:
    """Gradient of the mean cross-entropy of the next token, by the name and in the shape of their tensors."""
    config, params = model(case).config, parameters(case)
    flat = {}
    for path, variable in nnx.to_flat_state(_gradients(config, params, batch(case))):
        value = np.asarray(variable[...])
        layers = enumerate(value) if path[0] == "layers" else [(0, value)]
        flat |= {tensor_name(config, path, repeat): to_theirs(path, part) for repeat, part in layers}
    return flat


@functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def _gradients(config: ModelConfig, params: nnx.State, tokens: jax.Array) -> nnx.State:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)

    def loss(params: nnx.State) -> jax.Array:
        decoder = bind(config, params)
        predicted = decoder(tokens, positions, jnp.ones_like(tokens))[:, :-1] @ decoder.head()
        return optax.softmax_cross_entropy_with_integer_labels(predicted, tokens[:, 1:]).mean()

    return jax.grad(loss)(params)
