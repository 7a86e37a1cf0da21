"""Prints the meshes chosen for a tiny run over eight devices, how they split it, and those it refuses."""

import dataclasses
import json

import jax
from flax import nnx

from configs.paper import section5_sdpo
from sdistill.auto_mesh import chosen_mesh
from sdistill.config import TrainConfig
from sdistill.distributed.mesh import MeshConfig
from sdistill.distributed.rules import TRAINING, place
from sdistill.model.weights import new_model
from sdistill.settings import ConfigError, parse
from sdistill.train_mesh import load_of, mesh_of

RUN = parse(TrainConfig, section5_sdpo.get_config("qwen3_8b:tiny").to_dict())


def main() -> None:
    run = dataclasses.replace(RUN, mesh=None, micro_rows=8, slots=16)
    assert run.model is not None
    load = load_of(run, run.model)
    single, _ = load.total_on(MeshConfig())
    meshes = {"enough": mesh_of(run), "tight": chosen_mesh(load, jax.devices(), single / 3)}
    report: dict[str, list] = {}
    for name, mesh in meshes.items():
        params = place(nnx.state(new_model(run.model, 0), nnx.Param), mesh, TRAINING)
        largest = max(jax.tree.leaves(params), key=lambda x: x.size)
        report[name] = [dict(mesh.shape), largest.size / largest.addressable_shards[0].data.size]
    for refused in (MeshConfig(tensor=4), MeshConfig(data=2, context=4)):
        try:
            mesh_of(dataclasses.replace(run, mesh=refused))
        except ConfigError as error:
            report.setdefault("refused", []).append(str(error))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
