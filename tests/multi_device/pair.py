"""Each of two processes: samples, computes gradients, and then has other packages. Writes what it found.

    python -m launch.join ... tests.multi_device.pair FOLDER PACKAGES

Process 1 looks for packages in PACKAGES first, at the end. One process alone calls `sample` and `gradients`.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from sdistill.config import OptimizerConfig, SDPOLossConfig
from sdistill.distributed.mesh import MeshConfig, make_mesh
from sdistill.distributed.processes import check_agreement, on_every_host
from sdistill.distributed.rules import TRAINING, place, place_batch
from sdistill.engine.engine import SlotEngine
from sdistill.engine.model import CachedDecoder
from sdistill.engine.sampling import Sampling
from sdistill.engine.types import Completions, EngineStats, Request
from sdistill.losses import sdpo_loss
from sdistill.settings import ConfigError
from sdistill.step import init_state, jit_gradient, jit_update
from tests import tiny
from tests.batches import FULL, MODEL, random_ids, sdpo_batch

CONFIG = dataclasses.replace(MODEL, tie_word_embeddings=False)
SHARES = {1: [13], 2: [4, 9]}
"""Requests of each process, by the number of processes."""
TEACHERS = {"half": [1, 1, 1, 1, 0, 0, 0, 0], "none": [0] * 8}
"""Rows with a teacher: rows are split over processes, so in `half` the second one has an empty mask."""


def sample(mesh: Mesh) -> tuple[Completions, dict[str, float]]:
    """The responses of this process, and the engine's figures; then a round in which one process has none."""
    engine = SlotEngine(
        CachedDecoder(CONFIG), mesh=mesh, stop_ids=[5], slots=8, max_prompt_length=8, max_response_length=20
    )
    requests = [
        Request([3, 9, n // 2], f"problem {n // 2}", n % 2, Sampling(1.0 + n / 10, top_p=0.95))
        for n in range(13)
    ]
    shares, index = SHARES[jax.process_count()], jax.process_index()
    first = sum(shares[:index])
    stats: list[EngineStats] = []
    params = place(tiny.parameters(CONFIG), mesh, TRAINING)
    own = requests[first : first + shares[index]]
    found = engine.generate(params, own, seed=0, step=0, on_round=stats.append)
    again = engine.generate(params, requests[:3] if index == 0 else [], seed=0, step=0)
    assert len(again.ids) == (3 if index == 0 else 0)
    assert (again.ids == found.ids[: len(again.ids)]).all()
    return found, stats[-1]._replace(seconds=0.0, reshard_seconds=0.0)._asdict()


def gradients(mesh: Mesh) -> dict[str, np.ndarray]:
    """Loss and gradients of SDPO for each of `TEACHERS`, as `half 0`, `half 1`, ..."""
    params, teacher = (place(tiny.parameters(CONFIG, seed), mesh, TRAINING) for seed in (0, 1))
    optimizer, loss = OptimizerConfig(learning_rate=1e-2, warmup_steps=0), SDPOLossConfig(FULL)
    state = init_state(params, CONFIG, optimizer, mesh)
    gradient_of = jit_gradient(sdpo_loss, CONFIG, mesh, config=loss, temperature=1.0, logits_chunk_size=4)
    update = jit_update(CONFIG, mesh, optimizer)
    prompts = random_ids((4, 2, 6, 5, 8, 3, 1, 7))
    contexts = [[*prompt, *more] for prompt, more in zip(prompts, random_ids([4] * 8, 1), strict=True)]
    responses = random_ids((5, 6, 1, 3, 6, 2, 4, 6), 2)
    found = {}
    with jax.set_mesh(mesh):
        for name, has_teacher in TEACHERS.items():
            batch = sdpo_batch(responses, prompts, contexts, columns=(6, 8, 12), has_teacher=has_teacher)
            placed = place_batch(batch, mesh)
            if jax.process_count() == 2 and name == "half":  # all of them are this process' own, or none is
                own = [shard.data for shard in placed.has_teacher.addressable_shards]
                assert np.unique(own).tolist() == [1 - jax.process_index()]
            gradient, report = gradient_of(state.params, teacher, placed)
            arrays = on_every_host([report.metrics["loss"][0], *jax.tree.leaves(gradient)])
            found |= {f"{name} {i}": np.asarray(x) for i, x in enumerate(arrays)}
            state, _ = update(state, gradient)
    return found


def main() -> None:
    folder, packages = Path(sys.argv[1]), sys.argv[2]
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    completions, stats = sample(mesh)
    np.savez(folder / f"completions{jax.process_index()}.npz", *completions)
    np.savez(folder / f"gradients{jax.process_index()}.npz", **gradients(mesh))
    if jax.process_index() == 1:
        sys.path.insert(0, packages)
    try:
        check_agreement("settings")
    except ConfigError as error:
        print(json.dumps({"stats": stats, "disagreement": str(error)}))


if __name__ == "__main__":
    main()
