"""A decoder small enough to compile in a second, and how to watch what compiles."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from sdistill.analysis.epistemic import count_substrings, count_words
from sdistill.distributed.mesh import MeshConfig, make_mesh
from sdistill.engine.types import Completions, Finish
from sdistill.model.config import ModelConfig
from sdistill.model.decoder import is_matrix
from sdistill.model.weights import new_model
from sdistill.types import Response

CONFIG = ModelConfig(
    vocab_size=24,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
)
WORDS = dataclasses.replace(CONFIG, vocab_size=168, num_hidden_layers=1, max_position_embeddings=1024)
"""For runs of the puzzle: the vocabulary of its tokenizer."""


# Compiles in less than half the time; what is compared has a tolerance of its own.
QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    **({"xla_cpu_use_fusion_emitters": False} if jax.__version__.startswith("0.10.") else {}),
}


def parameters(config: ModelConfig = CONFIG, seed: int = 0) -> nnx.State:
    """Random parameters, wide enough for distributions far from uniform, norms included."""
    rng = np.random.default_rng(seed)

    def draw(variable: nnx.Variable) -> nnx.Variable:
        shape = variable.shape
        values = rng.normal(0, 0.3, shape) if is_matrix(variable) else rng.uniform(0.5, 1.5, shape)
        return variable.replace(jax.numpy.asarray(values, variable.dtype))

    shapes = nnx.state(nnx.eval_shape(lambda: new_model(config, 0)), nnx.Param)
    return jax.tree.map(draw, shapes, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def response(problem: str = "a", text: str = "", correct: bool = False, **fields: Any) -> Response:
    """A response that ended by itself, of one token a word, unless `fields` say otherwise."""
    others = {
        "sample": 0,
        "prompt": "",
        "finish": "stop",
        "length": len(text.split()) + 1,
        "num_epistemic": count_words(text),
        "num_epistemic_substrings": count_substrings(text),
    }
    return Response(problem=problem, text=text, correct=correct, **others | fields)


def completions(ids: Sequence[Sequence[int]], length: int, finish: Finish = Finish.STOP) -> Completions:
    """These ids, drawn with certainty and padded to `length` columns."""
    found = Completions.empty(len(ids), length)
    for row, tokens in enumerate(ids):
        found.ids[row, : len(tokens)] = tokens
        found.lengths[row], found.finish[row] = len(tokens), finish
    return found


def one_device() -> jax.sharding.Mesh:
    return make_mesh(MeshConfig())


def leaves(tree: object) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_same_bits(ours: object, theirs: object) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(leaves(ours), leaves(theirs), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """A list that gains an entry for each program that is compiled in the block, or loaded from a cache."""
    seen: list[str] = []

    def listen(event: str, duration: float, **details: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(str(details.get("fun_name", "?")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
