"""Models as Orbax checkpoints: `config.json` as Hugging Face writes it, and the parameters in `params/`.

Orbax reads and writes every shard from the process that owns it, to any mesh, and to buckets: what a pod
starts from. Hugging Face's safetensors are what everybody else reads.
"""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh

from sdistill.distributed.mesh import MeshConfig, make_mesh
from sdistill.distributed.rules import TRAINING, parameter_shardings
from sdistill.model.decoder import Decoder
from sdistill.model.hugging_face import from_hugging_face
from sdistill.model.weights import CONFIG_FILE, ORBAX_PARAMS, new_model, replacing, settled, write_config
from sdistill.settings import ConfigError


def is_orbax(path: str | Path) -> bool:
    """Whether a folder holds a model as Orbax writes it."""
    return (Path(path) / ORBAX_PARAMS).is_dir()


def save_orbax(model: Decoder, path: str | Path) -> None:
    """Writes a model folder; a model that is there already is replaced, see `replacing`."""
    with replacing(Path(path).resolve()) as folder:
        with ocp.StandardCheckpointer() as checkpointer:  # waits until all is on disk
            checkpointer.save(folder / ORBAX_PARAMS, nnx.state(model, nnx.Param))
        write_config(model, folder)


def load_orbax(path: str | Path, *, mesh: Mesh | None = None, dtype: str = "float32") -> Decoder:
    """Reads what `save_orbax` wrote.

    Args:
      path: The folder.
      mesh: Where the parameters go, laid out for training; None for the first device.
      dtype: Type of the parameters, whatever it is in the checkpoint.

    Raises:
      FileNotFoundError: if there is no `config.json`.
      ConfigError: if the parameters are damaged or not those of the config.
    """
    path = settled(Path(path).resolve())
    model = nnx.eval_shape(lambda: new_model(from_hugging_face(path / CONFIG_FILE), seed=0))
    mesh = mesh or make_mesh(MeshConfig())
    params = nnx.state(model, nnx.Param)

    def wanted(shape: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape.shape, dtype, sharding=sharding)

    target = jax.tree.map(wanted, params, parameter_shardings(params, mesh, TRAINING))
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            restored = checkpointer.restore(path / ORBAX_PARAMS, target)
    except Exception as error:  # whatever a damaged or foreign file makes of the reader
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"{path / ORBAX_PARAMS} is damaged, or not the model of its config.json: {reason}"
        ) from error
    nnx.update(model, restored)
    return model
