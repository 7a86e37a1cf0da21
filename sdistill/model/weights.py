"""Weights in and out of model folders, straight into and out of the sharded layout.

Two formats: Hugging Face's safetensors, which everybody else reads, and Orbax checkpoints, whose shards are
read and written by the process that owns them, also in buckets. Both come with Hugging Face's `config.json`.
"""

import contextlib
import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from huggingface_hub import split_state_dict_into_shards_factory
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sdistill.distributed.mesh import MeshConfig, make_mesh
from sdistill.distributed.processes import is_writer, on_every_host, wait_for_all
from sdistill.distributed.rules import TRAINING, parameter_shardings
from sdistill.model.config import ModelConfig
from sdistill.model.decoder import Decoder, bind
from sdistill.model.folders import (
    CONFIG_FILE,
    INDEX_FILE,
    ORBAX_PARAMS,
    WEIGHTS_FILE,
    find_model,
    finish_exchange,
    first_line,
    replace_model,
)
from sdistill.model.hugging_face import (
    from_hugging_face,
    tensor_name,
    their_block,
    their_shape,
    to_hugging_face,
    to_ours,
    to_theirs,
)
from sdistill.settings import ConfigError
from sdistill.storage import finish, write_atomically

_DTYPES = ("F32", "BF16", "F16")


def new_model(config: ModelConfig, seed: int) -> Decoder:
    """A decoder with freshly drawn float32 weights."""
    return Decoder(config, nnx.Rngs(params=seed))


@functools.cache
def parameter_shapes(config: ModelConfig) -> nnx.State:
    """The parameters of a model, as shapes."""
    return nnx.state(nnx.eval_shape(lambda: new_model(config, 0)), nnx.Param)


def load_model(source: str | Path, *, mesh: Mesh | None = None, dtype: str = "float32") -> Decoder:
    """The model of a folder of either format, or of a name that `find_model` knows.

    Arguments and errors are those of `load_pretrained` and `find_model`.
    """
    folder = find_model(source)
    load = load_orbax if is_orbax(folder) else load_pretrained
    return load(folder, mesh=mesh, dtype=dtype)


# ── Orbax ────────────────────────────────────────────────────────────────────────────────────────


def is_orbax(path: str | Path) -> bool:
    """Whether a folder holds a model as Orbax writes it."""
    return (Path(path) / ORBAX_PARAMS).is_dir()


def save_orbax(model: Decoder, path: str | Path) -> None:
    """Writes a model folder; a model that is there already is replaced, see `replace_model`."""
    with replace_model(Path(path).resolve()) as folder:
        with ocp.StandardCheckpointer() as checkpointer:  # waits until all is on disk
            checkpointer.save(folder / ORBAX_PARAMS, nnx.state(model, nnx.Param))
        _write_config(model, folder)


def load_orbax(path: str | Path, *, mesh: Mesh | None = None, dtype: str = "float32") -> Decoder:
    """Reads what `save_orbax` wrote; arguments as in `load_pretrained`.

    Raises:
      FileNotFoundError: if there is no `config.json`.
      ConfigError: if the parameters are damaged or not those of the config.
    """
    path = finish_exchange(Path(path).resolve())
    config = from_hugging_face(path / CONFIG_FILE)
    params = parameter_shapes(config)
    shardings = parameter_shardings(params, mesh or make_mesh(MeshConfig()), TRAINING)
    target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype, sharding=s), params, shardings)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            restored = checkpointer.restore(path / ORBAX_PARAMS, target)
    except Exception as error:  # a damaged or foreign file may raise anything
        raise ConfigError(
            f"{path / ORBAX_PARAMS} is damaged, or not the model of its config.json: {first_line(error)}"
        ) from error
    return bind(config, restored)


# ── Safetensors ──────────────────────────────────────────────────────────────────────────────────


class _Tensor(NamedTuple):
    """A tensor of Hugging Face's: our parameter, or one layer of it.

    Attributes:
      name: Theirs.
      path: Of our parameter.
      layer: Index into a stack of layers; None for a parameter that is no stack.
      shape: Ours, without the stack's axis.
    """

    name: str
    path: tuple[Any, ...]
    layer: int | None
    shape: tuple[int, ...]


def _tensors_of(config: ModelConfig, params: nnx.State) -> Iterator[_Tensor]:
    for path, variable in nnx.to_flat_state(params):
        if path[0] != "layers":
            yield _Tensor(tensor_name(config, path, 0), path, None, variable.shape)
        else:
            for layer in range(variable.shape[0]):
                yield _Tensor(tensor_name(config, path, layer), path, layer, variable.shape[1:])


class _Files:
    """The tensors of a model folder, whichever of its files they are in."""

    def __init__(self, folder: Path):
        """Reads names, shapes and types. FileNotFoundError and ConfigError name a missing or damaged file."""
        names, index = [WEIGHTS_FILE], folder / INDEX_FILE
        if index.is_file():
            try:
                names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(f"{index} is damaged: {error!r}") from error
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._paths: dict[str, Path] = {}
        for path in (folder / name for name in names):
            if not path.is_file():
                raise FileNotFoundError(f"no {path.name} in {folder}: not a model folder")
            with _open(path) as file:
                for name in file.keys():  # noqa: SIM118  (no mapping)
                    part = file.get_slice(name)
                    self.shapes[name], self.dtypes[name] = tuple(part.get_shape()), part.get_dtype()
                    self._paths[name] = path

    def read(self, name: str, block: tuple[slice, ...]) -> np.ndarray:
        """A block of a tensor, and nothing else of the file."""
        with _open(self._paths[name]) as file:
            return file.get_slice(name)[block]


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        # Not mapped into memory: mapped pages would count as ours until the system takes them back.
        with safe_open(path, framework="np", backend="pread") as file:
            yield file
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} is damaged: {error}") from error


def load_pretrained(path: str | Path, *, mesh: Mesh | None = None, dtype: str = "float32") -> Decoder:
    """Reads a model folder of Hugging Face's, or what `save_pretrained` wrote.

    Tensors go one by one from disk to the devices that hold a part of them; the host never has more than the
    largest tensor and one copy of it.

    Args:
      mesh: Where the parameters go, laid out for training; None for the first device.
      dtype: Type of the parameters, whatever it is in the files.

    Raises:
      FileNotFoundError: if a file is missing.
      ConfigError: if a tensor is missing, extra, of another shape or type, or a file is damaged; before
        anything is allocated on a device.
    """
    path = finish_exchange(path)
    config = from_hugging_face(path / CONFIG_FILE)
    files = _Files(path)
    params, mesh = parameter_shapes(config), mesh or make_mesh(MeshConfig())
    tensors = list(_tensors_of(config, params))
    _check(path, config, tensors, files)
    flat = dict(nnx.to_flat_state(params))
    shardings = dict(nnx.to_flat_state(parameter_shardings(params, mesh, TRAINING)))
    values: dict[tuple[Any, ...], jax.Array] = {}
    for tensor in tensors:
        sharding = shardings[tensor.path].get_value()
        if tensor.layer is None:
            value = _to_devices(files, tensor, sharding).astype(dtype)
        else:
            if tensor.layer == 0:
                values[tensor.path] = jnp.zeros(flat[tensor.path].shape, dtype, device=sharding)
            layer_sharding = NamedSharding(mesh, PartitionSpec(*sharding.spec[1:]))
            # The layer has no name here: it would be kept while the next one is read.
            value = _set_layer(
                values.pop(tensor.path), _to_devices(files, tensor, layer_sharding), tensor.layer
            )
        values[tensor.path] = jax.block_until_ready(value)
    loaded = [(path, variable.replace(values[path])) for path, variable in flat.items()]
    return bind(config, nnx.from_flat_state(loaded))


@functools.partial(jax.jit, donate_argnums=0)
def _set_layer(stack: jax.Array, layer: jax.Array, index: int) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, layer.astype(stack.dtype), index, 0)


def _to_devices(files: _Files, tensor: _Tensor, sharding: NamedSharding) -> jax.Array:
    """Our parameter of one layer; each device's block is read by the process it belongs to."""

    def read(block: tuple[slice, ...] | None) -> np.ndarray:
        assert block is not None  # it is for scalars
        shape = tuple(len(range(*cut.indices(size))) for cut, size in zip(block, tensor.shape, strict=True))
        theirs = files.read(tensor.name, their_block(tensor.path, block, tensor.shape))
        return to_ours(tensor.path, theirs, shape)

    # Waiting keeps at most one tensor on the host.
    return jax.block_until_ready(jax.make_array_from_callback(tensor.shape, sharding, read))


def _check(path: Path, config: ModelConfig, tensors: list[_Tensor], files: _Files) -> None:
    """Raises ConfigError for files that are not the weights of this config."""
    expected = {tensor.name: their_shape(tensor.path, tensor.shape) for tensor in tensors}
    if missing := expected.keys() - files.shapes.keys():
        raise ConfigError(f"{path} lacks tensors {_first_names(missing)}")
    extra = files.shapes.keys() - expected.keys()
    if config.tie_word_embeddings and "lm_head.weight" in extra:
        extra -= {"lm_head.weight"}  # some files repeat the tied head
        _check_same(path, files, "model.embed_tokens.weight", "lm_head.weight")
    if extra:
        raise ConfigError(f"{path} has tensors its config.json does not call for: {_first_names(extra)}")
    for name, shape in expected.items():
        if files.shapes[name] != shape:
            raise ConfigError(f"{path}: {name}: expected shape {shape}, found {files.shapes[name]}")
        if files.dtypes[name] not in _DTYPES:
            raise ConfigError(
                f"{path}: {name}: found type {files.dtypes[name]}, only {', '.join(_DTYPES)} can be read"
            )


def _check_same(path: Path, files: _Files, one: str, other: str) -> None:
    """Compares two tensors, some rows at a time."""
    same = files.shapes[one] == files.shapes[other]
    count = files.shapes[one][0]
    for start in range(0, count, 8192):
        rows = (slice(start, min(start + 8192, count)),)
        if not same or not np.array_equal(files.read(one, rows), files.read(other, rows)):
            raise ConfigError(f"{path}: tie_word_embeddings is true, but {other} is not {one}")


def _first_names(names: set[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{sorted(names)[:8]}{more}"


def save_pretrained(model: Decoder, path: str | Path, *, shard_bytes: int = 5 * 10**9) -> None:
    """Writes a model folder that transformers loads, too.

    A model that is there already is replaced, see `replace_model`. Of several processes, all of which must
    call this, the first one writes; tensors are gathered on every host one by one.

    Args:
      model: The model; its parameters are saved in the type they have.
      shard_bytes: Tensors are spread over files of at most this size (or of one tensor).
    """
    params = nnx.state(model, nnx.Param)
    flat = dict(nnx.to_flat_state(params))
    tensors = {tensor.name: tensor for tensor in _tensors_of(model.config, params)}
    files = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: math.prod(tensor.shape) * flat[tensor.path][...].dtype.itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )

    def on_host(name: str) -> np.ndarray:
        tensor = tensors[name]
        value = flat[tensor.path][...]
        part = on_every_host(value if tensor.layer is None else value[tensor.layer])
        return to_theirs(tensor.path, np.asarray(part))

    if is_writer():
        with replace_model(path) as folder:
            for file, names in files.filename_to_tensors.items():
                temporary = folder / f".{file}.tmp"
                save_file({name: on_host(name) for name in names}, temporary, metadata={"format": "pt"})
                finish(temporary, folder / file)
            if files.is_sharded:
                index = {"metadata": files.metadata, "weight_map": files.tensor_to_filename}
                write_atomically(folder / INDEX_FILE, (json.dumps(index, indent=2) + "\n").encode())
            _write_config(model, folder)
    else:
        for names in files.filename_to_tensors.values():
            for name in names:  # takes part in gathering each of them
                on_host(name)
    wait_for_all("the model is saved")


def _write_config(model: Decoder, folder: Path) -> None:
    """Writes the `config.json` of a model whose parameters are on disk in the type they have."""
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))}
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    write_atomically(folder / CONFIG_FILE, to_hugging_face(model.config, dtype).encode())
