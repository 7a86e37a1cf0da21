"""Samples from a small decoder on the devices there are; writes the responses of this process to a file.

    python -m tests.multi_device.sample FILE MESH [COORDINATOR PROCESSES PROCESS]

Two processes have different numbers of the requests; in a second round one of them has none.
"""

import dataclasses
import json
import sys

import jax
import numpy as np

from sdistill.distributed.mesh import MeshConfig, make_mesh
from sdistill.distributed.rules import TRAINING, place
from sdistill.engine.engine import SlotEngine
from sdistill.engine.model import CachedDecoder
from sdistill.engine.sampling import Sampling
from sdistill.engine.types import EngineStats, Request
from tests import tiny

CONFIG = dataclasses.replace(tiny.CONFIG, num_hidden_layers=1, tie_word_embeddings=False)
SHARES = {1: [13], 2: [4, 9]}


def main() -> None:
    file, mesh_sizes, *processes = sys.argv[1:]
    if processes:
        coordinator, count, index = processes
        jax.distributed.initialize(coordinator, int(count), int(index))
    mesh = make_mesh(MeshConfig(**json.loads(mesh_sizes)))
    engine = SlotEngine(
        CachedDecoder(CONFIG), mesh=mesh, stop_ids=[5], slots=8, max_prompt=8, max_response=20
    )
    requests = [
        Request([3, 9, n // 2], f"problem {n // 2}", n % 2, Sampling(1.0 + n / 10, top_p=0.95))
        for n in range(13)
    ]
    shares = SHARES[jax.process_count()]
    start = sum(shares[: jax.process_index()])
    own = requests[start : start + shares[jax.process_index()]]
    stats: list[EngineStats] = []
    params = place(tiny.parameters(CONFIG), mesh, TRAINING)
    rollouts = engine.generate(params, own, seed=0, step=0, progress=stats.append)
    np.savez(file, *rollouts)
    again = engine.generate(params, requests[:3] if jax.process_index() == 0 else [], seed=0, step=0)
    assert len(again.ids) == (3 if jax.process_index() == 0 else 0)
    assert (again.ids == rollouts.ids[: len(again.ids)]).all()
    print(json.dumps(stats[-1]._replace(seconds=0.0, reshard_seconds=0.0)._asdict()))


if __name__ == "__main__":
    main()
