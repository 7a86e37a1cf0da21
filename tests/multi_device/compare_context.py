"""Loss and gradients of SDPO with sequences split over devices, and on one device; writes both.

In a process of its own, because the number of CPU devices is fixed when JAX starts.
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from sdistill.batch import layout
from sdistill.config import SDPOLossConfig
from sdistill.distributed.mesh import MeshConfig, make_mesh
from sdistill.distributed.rules import TRAINING, place, place_batch
from sdistill.divergence.definition import DivergenceConfig
from sdistill.losses import SDPOBatch, sdpo_loss, token_weights
from sdistill.model.config import ComputeConfig
from sdistill.step import jit_gradient
from tests import tiny

# Windows that end within a device's columns, and a head whose ids are in several tiles.
CONFIG = dataclasses.replace(
    tiny.CONFIG,
    vocab_size=8192,
    layer_types=("sliding_attention", "full_attention"),
    sliding_window=9,
    tie_word_embeddings=False,
)
LOSS = SDPOLossConfig(DivergenceConfig(alpha=1.0, top_k=64))
ROWS, PROMPT, CONTEXT, RESPONSE = 4, 8, 13, 22  # neither rows' columns nor responses divide evenly


def batch() -> SDPOBatch:
    rng = np.random.default_rng(0)

    def words(count: int) -> list[int]:
        return rng.integers(0, CONFIG.vocab_size, count).tolist()

    prompts = [words(n) for n in (4, 2, 6, 8)]
    lengths = np.array([22, 17, 1, 9])
    responses = rng.integers(0, CONFIG.vocab_size, (ROWS, RESPONSE)) * (
        np.arange(RESPONSE) < lengths[:, None]
    )
    student = layout(prompts, responses, lengths, max_prompt_length=PROMPT)
    has_teacher = np.array([1, 1, 0, 1], np.float32)
    return SDPOBatch(
        student=student,
        rollout_log_probs=rng.normal(-9, 0.3, (ROWS, RESPONSE)).astype(np.float32),
        epistemic_mask=rng.integers(0, 2, (ROWS, RESPONSE)).astype(np.float32),
        token_weights=token_weights(student.response_mask * has_teacher[:, None], LOSS.aggregation),
        teacher=layout([words(5) + p for p in prompts], responses, lengths, max_prompt_length=CONTEXT),
        has_teacher=has_teacher,
    )


def outcome(mesh_config: MeshConfig, attention: str) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """Loss and gradients, by number; and how an activation's matrix is split."""
    mesh = make_mesh(mesh_config)
    model = dataclasses.replace(CONFIG, compute=ComputeConfig(attention=attention, remat="full"))
    params, teacher = (place(tiny.parameters(CONFIG, seed), mesh, TRAINING) for seed in (0, 1))
    gradient_of = jit_gradient(sdpo_loss, model, mesh, config=LOSS, temperature=1.0, logits_chunk_size=4)
    with jax.set_mesh(mesh):
        arguments = params, teacher, place_batch(batch(), mesh)
        gradient, report = gradient_of(*arguments)
        text = gradient_of.lower(*arguments).compile().as_text()
    leaf = gradient["layers"][0]["feed_forward"]["gate_DF"][...]
    arrays = [np.asarray(report.metrics["loss"][0]), *tiny.leaves(gradient)]
    facts = {"shard": leaf.sharding.shard_shape(leaf.shape), "gathers": "all-gather" in text}
    return {str(i): x for i, x in enumerate(arrays)}, facts


def main() -> None:
    assert jax.device_count() == 8
    splash.make_splash_mha = functools.partial(splash.make_splash_mha, interpret=True)  # on a CPU
    folder, facts = Path(sys.argv[1]), {}
    for name, mesh, attention in (
        ("one", MeshConfig(), "plain"),
        ("plain", MeshConfig(fsdp=2, context=4), "plain"),
        ("splash", MeshConfig(tensor=2, context=4), "splash"),
    ):
        arrays, facts[name] = outcome(mesh, attention)
        np.savez(folder / f"{name}.npz", **arrays)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
