"""Runs the same step and the same sampling on one device and on eight; prints what came out as JSON.

In a process of its own, because the number of CPU devices is fixed when JAX starts.
"""

import dataclasses
import json
import sys

import jax
import numpy as np
import optax

from sdistill.batch import layout
from sdistill.config import OptimizerConfig, SDPOLossConfig
from sdistill.distributed.mesh import MeshConfig, make_mesh
from sdistill.distributed.rules import TRAINING, place, place_batch
from sdistill.divergence.definition import DivergenceConfig
from sdistill.engine.engine import SlotEngine
from sdistill.engine.model import CachedDecoder
from sdistill.engine.types import Request
from sdistill.losses import Metrics, SDPOBatch, sdpo_loss, token_weights
from sdistill.step import TrainState, init_state, jit_gradient, jit_update
from tests import tiny

CONFIG = dataclasses.replace(tiny.CONFIG, num_hidden_layers=1, tie_word_embeddings=False)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=0)
LOSS = SDPOLossConfig(DivergenceConfig(support="full", top_k=None, tail=None))


def make_batch() -> SDPOBatch:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 24, n).tolist() for n in (4, 2, 6, 5, 8, 3, 1, 7)]
    contexts = [[*prompt, *rng.integers(0, 24, 4).tolist()] for prompt in prompts]
    lengths = np.array([5, 6, 1, 3, 6, 2, 4, 6])
    responses = np.where(np.arange(6) < lengths[:, None], rng.integers(0, 24, (8, 6)), 0)
    student = layout(prompts, responses, lengths, max_prompt_length=8)
    has_teacher = np.array([1, 1, 0, 1, 1, 1, 0, 1], np.float32)
    return SDPOBatch(
        student=student,
        rollout_log_probs=rng.normal(-3, 0.3, (8, 6)).astype(np.float32),
        epistemic_mask=rng.integers(0, 2, (8, 6)).astype(np.float32),
        token_weights=token_weights(student.response_mask * has_teacher[:, None], LOSS.aggregation),
        teacher=layout(contexts, responses, lengths, max_prompt_length=12),
        has_teacher=has_teacher,
    )


def outcome(mesh_config: MeshConfig, file: str) -> dict[str, object]:
    mesh = make_mesh(mesh_config)
    params = place(tiny.parameters(CONFIG), mesh, TRAINING)
    engine = SlotEngine(
        CachedDecoder(CONFIG), mesh=mesh, stop_ids=[5], slots=16, max_prompt=8, max_response=6
    )
    requests = [Request([3, 9, n], f"problem {n}", sample) for n in range(6) for sample in range(2)]
    rollouts = engine.generate(params, requests, seed=0, step=0)

    teacher = place(tiny.parameters(CONFIG, seed=1), mesh, TRAINING)
    state = init_state(params, CONFIG, OPTIMIZER, mesh)
    gradient_of = jit_gradient(sdpo_loss, CONFIG, mesh, config=LOSS, temperature=1.0, logits_chunk_size=4)
    apply = jit_update(CONFIG, mesh, OPTIMIZER)

    def step(state: TrainState) -> tuple[TrainState, Metrics]:
        gradient, report = gradient_of(state.params, teacher, place_batch(make_batch(), mesh))
        state, more = apply(state, gradient)
        return state, report.metrics | more

    with tiny.compilations() as seen:
        state, metrics = step(state)
        first = len(seen)
        moments = tiny.leaves(optax.tree_utils.tree_get(state.opt_state, "mu"))
        np.savez(file, *rollouts, *tiny.leaves(state.params), *moments)
        leaf = state.params["layers"][0]["feed_forward"]["gate_DF"][...]
        shard, devices = leaf.sharding.shard_shape(leaf.shape), len(leaf.sharding.device_set)
        step(state)
        again = len(seen) - first
    return {
        "metrics": {name: [float(x) for x in pair] for name, pair in metrics.items()},
        "compilations": [first, again],
        "shard": shard,
        "devices": devices,
    }


if __name__ == "__main__":
    folder = sys.argv[1]
    assert jax.device_count() == 8
    single = outcome(MeshConfig(), f"{folder}/single.npz")
    multiple = outcome(MeshConfig(data=2, fsdp=2, tensor=2), f"{folder}/multiple.npz")
    print(json.dumps({"single": single, "multiple": multiple}))
