"""Prints the meshes chosen for a tiny run over eight devices, how they split it, and those it refuses."""

import dataclasses
import json

import jax
from flax import nnx

from configs.paper import section5_sdpo
from sdistill.config import SDPOConfig
from sdistill.distributed.mesh import MeshConfig
from sdistill.distributed.rules import TRAINING, place
from sdistill.mesh_choice import chosen_mesh, training_mesh, training_workload
from sdistill.model.weights import new_model
from sdistill.settings import ConfigError, parse

RUN = parse(SDPOConfig, section5_sdpo.get_config("qwen3_8b:tiny").to_dict())


def main() -> None:
    rollouts = dataclasses.replace(RUN.rollouts, slots=16)
    run = dataclasses.replace(RUN, mesh=None, micro_batch_size=8, rollouts=rollouts)
    assert run.model is not None
    work = training_workload(run, run.model)
    single, _ = work.peak(MeshConfig())
    meshes = {"enough": training_mesh(run), "tight": chosen_mesh(work, jax.devices(), single / 3)}
    report: dict[str, list] = {}
    for name, mesh in meshes.items():
        params = place(nnx.state(new_model(run.model, 0), nnx.Param), mesh, TRAINING)
        largest = max(jax.tree.leaves(params), key=lambda x: x.size)
        report[name] = [dict(mesh.shape), largest.size / largest.addressable_shards[0].data.size]
    for refused in (MeshConfig(tensor=4), MeshConfig(data=2, context=4)):
        try:
            training_mesh(dataclasses.replace(run, mesh=refused))
        except ConfigError as error:
            report.setdefault("refused", []).append(str(error))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
