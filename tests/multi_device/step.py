"""Loss and gradients of SDPO, in one process or in two, with rows that have nothing to learn; writes them.

    python -m tests.multi_device.step FILE MESH [COORDINATOR PROCESSES PROCESS]

Rows are split over the processes: in the batch `half` those of the second process have an empty mask, in the
batch `none` all have.
"""

import json
import sys

import jax
import numpy as np

from sdistill.distributed.mesh import MeshConfig, make_mesh
from sdistill.distributed.processes import on_every_host
from sdistill.distributed.rules import TRAINING, place, place_batch
from sdistill.losses import SDPOBatch, sdpo_loss, token_weights
from sdistill.step import init_state, jit_gradient, jit_update
from tests import tiny
from tests.multi_device.compare import CONFIG, LOSS, OPTIMIZER, make_batch

TAUGHT = {"half": [1, 1, 1, 1, 0, 0, 0, 0], "none": [0] * 8}


def batch(taught: list[int]) -> SDPOBatch:
    made, has_teacher = make_batch(), np.asarray(taught, np.float32)
    mask = np.asarray(made.student.response_mask) * has_teacher[:, None]
    return made._replace(token_weights=token_weights(mask, LOSS.aggregation), has_teacher=has_teacher)


def main() -> None:
    file, mesh_sizes, *processes = sys.argv[1:]
    if processes:
        coordinator, count, index = processes
        jax.distributed.initialize(coordinator, int(count), int(index))
    mesh = make_mesh(MeshConfig(**json.loads(mesh_sizes)))
    params, teacher = (place(tiny.parameters(CONFIG, seed=seed), mesh, TRAINING) for seed in (0, 1))
    state = init_state(params, CONFIG, OPTIMIZER, mesh)
    gradient_of = jit_gradient(sdpo_loss, CONFIG, mesh, config=LOSS, temperature=1.0, logits_chunk_size=4)
    apply = jit_update(CONFIG, mesh, OPTIMIZER)
    found = {}
    with jax.set_mesh(mesh):
        for name, taught in TAUGHT.items():
            placed = place_batch(batch(taught), mesh)
            if processes and name == "half":  # all of them are this process' own, or none of them is
                own = [shard.data for shard in placed.has_teacher.addressable_shards]
                assert np.unique(own).tolist() == [1 - int(index)]
            gradient, report = gradient_of(state.params, teacher, placed)
            found[name] = [report.metrics["loss"][0], *jax.tree.leaves(gradient)]
            found[name] = on_every_host(found[name])
            state, _ = apply(state, gradient)
    arrays = {f"{name} {i}": np.asarray(x) for name, xs in found.items() for i, x in enumerate(xs)}
    np.savez(file, **arrays)


if __name__ == "__main__":
    main()
