"""Models as Orbax checkpoints: `config.json` as Hugging Face writes it, and the parameters in `params/`.

Orbax reads and writes every shard from the process that owns it, to any mesh, and to buckets: what a pod
starts from. Hugging Face's safetensors are what everybody else reads.
"""

import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh

from sdistill.config import ConfigError
from sdistill.models.decoder import Decoder
from sdistill.models.hugging_face import from_hugging_face, to_hugging_face
from sdistill.models.weights import CONFIG_FILE, new_model
from sdistill.parallel.mesh import MeshConfig, make_mesh
from sdistill.parallel.rules import TRAINING, parameter_shardings
from sdistill.storage import write_atomically

_PARAMS = "params"


def is_orbax(path: str | Path) -> bool:
    """Whether a folder holds a model as Orbax writes it."""
    return (Path(path) / _PARAMS).is_dir()


def save_orbax(model: Decoder, path: str | Path) -> None:
    """Writes a model folder; `config.json` comes last, so a folder that has it is complete."""
    path = Path(path).resolve()
    (path / CONFIG_FILE).unlink(missing_ok=True)
    shutil.rmtree(path / _PARAMS, ignore_errors=True)
    params = nnx.state(model, nnx.Param)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / _PARAMS, params)
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(params)}
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    write_atomically(path / CONFIG_FILE, to_hugging_face(model.config, dtype).encode())


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
    path = Path(path).resolve()
    model = nnx.eval_shape(lambda: new_model(from_hugging_face(path / CONFIG_FILE), seed=0))
    mesh = mesh or make_mesh(MeshConfig())
    params = nnx.state(model, nnx.Param)

    def wanted(shape: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape.shape, dtype, sharding=sharding)

    target = jax.tree.map(wanted, params, parameter_shardings(params, mesh, TRAINING))
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            restored = checkpointer.restore(path / _PARAMS, target)
    except Exception as error:  # whatever a damaged or foreign file makes of the reader
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"{path / _PARAMS} is damaged, or not the model of its config.json: {reason}"
        ) from error
    nnx.update(model, restored)
    return model
