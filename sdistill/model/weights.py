"""Hugging Face safetensors in and out, a tensor at a time, straight into and out of the sharded layout."""

import contextlib
import functools
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sdistill.distributed.mesh import MeshConfig, make_mesh
from sdistill.distributed.processes import is_writer, on_every_host, wait_for_all
from sdistill.distributed.rules import TRAINING, parameter_shardings
from sdistill.model.config import ModelConfig
from sdistill.model.decoder import Decoder
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

SIGNS_BASE = Path(__file__).parent / "assets" / "signs_base"
"""The shipped base model of the signs puzzle; `configs/signs/pretrain.py` makes it."""

CONFIG_FILE = "config.json"
"""Written last: a folder that has it has all of its weights."""

ORBAX_PARAMS = "params"
"""The folder in a model's folder that Orbax writes, in the place of safetensors."""

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_NEW, _MOVING = ".new", ".moving"
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@functools.cache
def parameter_shapes(config: ModelConfig) -> nnx.State:
    """The parameters of a model, as shapes."""
    return nnx.state(nnx.eval_shape(lambda: new_model(config, 0)), nnx.Param)


def new_model(config: ModelConfig, seed: int) -> Decoder:
    """A decoder with freshly drawn float32 weights."""
    return Decoder(config, nnx.Rngs(params=seed))


class _Tensors:
    """The tensors of a model folder, whichever of its files they are in."""

    def __init__(self, folder: Path):
        """Reads what is where; FileNotFoundError and ConfigError name the file that is missing or damaged."""
        index = folder / _INDEX
        if index.is_file():
            try:
                names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(f"{index} is damaged: {error!r}") from error
        else:
            names = [_WEIGHTS]
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._files: dict[str, Path] = {}
        for path in (folder / name for name in names):
            if not path.is_file():
                raise FileNotFoundError(f"no {path.name} in {folder}: not a model folder")
            with _open(path) as file:
                for name in file.keys():  # noqa: SIM118  (no mapping)
                    part = file.get_slice(name)
                    self.shapes[name], self.dtypes[name] = tuple(part.get_shape()), part.get_dtype()
                    self._files[name] = path

    def read(self, name: str, block: tuple[slice, ...]) -> np.ndarray:
        """A block of a tensor, and nothing else of the file."""
        with _open(self._files[name]) as file:
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

    One tensor after the other goes from disk to the devices that hold a part of it; the host never has
    more than the largest tensor and one copy of it.

    Args:
      path: The folder.
      mesh: Where the parameters go, laid out for training; None for the first device.
      dtype: Type of the parameters, whatever it is in the files.

    Raises:
      FileNotFoundError: if a file is missing.
      ConfigError: if a tensor is missing, extra, of another shape or type, or a file is damaged; before
        anything is allocated on a device.
    """
    path = settled(path)
    config = from_hugging_face(path / CONFIG_FILE)
    tensors = _Tensors(path)
    model = nnx.eval_shape(lambda: new_model(config, seed=0))
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    _check(path, config, flat, tensors)
    mesh = mesh or make_mesh(MeshConfig())
    shardings = dict(nnx.to_flat_state(parameter_shardings(nnx.state(model, nnx.Param), mesh, TRAINING)))
    values = []
    for parts, variable in flat:
        shape, sharding = variable.shape, shardings[parts].get_value()
        if parts[0] != "layers":
            name = tensor_name(config, parts, 0)
            value = jax.block_until_ready(_to_devices(tensors, name, parts, shape, sharding).astype(dtype))
        else:
            layer = NamedSharding(mesh, PartitionSpec(*sharding.spec[1:]))
            value = jnp.zeros(shape, dtype, device=sharding)
            for repeat in range(shape[0]):
                name = tensor_name(config, parts, repeat)
                # The layer has no name here: it would be kept while the next one is read.
                value = jax.block_until_ready(
                    _set_layer(value, _to_devices(tensors, name, parts, shape[1:], layer), repeat)
                )
        values.append((parts, variable.replace(value)))
    nnx.update(model, nnx.from_flat_state(values))
    return model


@functools.partial(jax.jit, donate_argnums=0)
def _set_layer(stack: jax.Array, layer: jax.Array, index: int) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, layer.astype(stack.dtype), index, 0)


def _to_devices(
    tensors: _Tensors, name: str, parts: tuple[Any, ...], shape: tuple[int, ...], sharding: NamedSharding
) -> jax.Array:
    """Our parameter of one layer; each device's block is read by the process it belongs to."""

    def read(block: tuple[slice, ...] | None) -> np.ndarray:
        assert block is not None  # it is for scalars
        wanted = tuple(len(range(*cut.indices(size))) for cut, size in zip(block, shape, strict=True))
        return to_ours(parts, tensors.read(name, their_block(parts, block, shape)), wanted)

    # Waiting keeps at most one tensor on the host.
    return jax.block_until_ready(jax.make_array_from_callback(shape, sharding, read))


def _check(path: Path, config: ModelConfig, flat: Iterable[Any], tensors: _Tensors) -> None:
    """Refuses files that are not the weights of this config."""
    expected: dict[str, tuple[int, ...]] = {}
    for parts, variable in flat:
        stacked = parts[0] == "layers"
        for repeat in range(variable.shape[0] if stacked else 1):
            shape = variable.shape[1:] if stacked else variable.shape
            expected[tensor_name(config, parts, repeat)] = their_shape(parts, shape)
    if missing := expected.keys() - tensors.shapes.keys():
        raise ConfigError(f"{path} lacks tensors {_some(missing)}")
    extra = tensors.shapes.keys() - expected.keys()
    if config.tie_word_embeddings and "lm_head.weight" in extra:
        extra -= {"lm_head.weight"}  # some files repeat the tied head
        _check_same(path, tensors, "model.embed_tokens.weight", "lm_head.weight")
    if extra:
        raise ConfigError(f"{path} has tensors its config.json does not call for: {_some(extra)}")
    for name, shape in expected.items():
        if tensors.shapes[name] != shape:
            raise ConfigError(f"{path}: {name}: expected shape {shape}, found {tensors.shapes[name]}")
        if tensors.dtypes[name] not in _DTYPES:
            raise ConfigError(
                f"{path}: {name}: found type {tensors.dtypes[name]}, only {', '.join(_DTYPES)} can be read"
            )


def _check_same(path: Path, tensors: _Tensors, one: str, other: str) -> None:
    """Compares two tensors, some rows at a time."""
    same = tensors.shapes[one] == tensors.shapes[other]
    count = tensors.shapes[one][0]
    for start in range(0, count, 8192):
        rows = (slice(start, min(start + 8192, count)),)
        if not same or not np.array_equal(tensors.read(one, rows), tensors.read(other, rows)):
            raise ConfigError(f"{path}: tie_word_embeddings is true, but {other} is not {one}")


def _some(names: Any) -> str:
    """The first few, and how many more."""
    names = sorted(names)
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{names[:8]}{more}"


def save_pretrained(model: Decoder, path: str | Path, *, shard_bytes: int = 5 * 10**9) -> None:
    """Writes a model folder that transformers loads, too.

    A model that is there already is replaced, see `replacing`. Of several processes, all of which must call
    this, the first one writes; every tensor is gathered on every host, one after the other.

    Args:
      model: The model; its parameters are saved in the type they have.
      path: The folder.
      shard_bytes: Tensors are spread over files of at most this size (or of one tensor).
    """
    sizes = [(name, parts, repeat, _bytes(value, repeat)) for name, parts, repeat, value in _named(model)]
    shards = _shards([size for *_, size in sizes], shard_bytes)
    count = max(shards) + 1
    files = (
        [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)] if count > 1 else [_WEIGHTS]
    )
    tensors = ((name, to_theirs(parts, part)) for name, parts, part in _on_host(model))
    if is_writer():
        with replacing(path) as folder:
            numbered = zip(shards, tensors, strict=True)
            for shard, group in itertools.groupby(numbered, key=lambda pair: pair[0]):
                temporary = folder / f".{files[shard]}.tmp"
                save_file(dict(tensor for _, tensor in group), temporary, metadata={"format": "pt"})
                finish(temporary, folder / files[shard])
            if count > 1:
                names = {name: files[shard] for (name, *_), shard in zip(sizes, shards, strict=True)}
                index = {"metadata": {"total_size": sum(size for *_, size in sizes)}, "weight_map": names}
                write_atomically(folder / _INDEX, (json.dumps(index, indent=2) + "\n").encode())
            write_config(model, folder)
    else:
        for _ in tensors:  # takes part in gathering each of them
            pass
    wait_for_all("the model is saved")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A folder to write a model to, `config.json` last, that then takes the place of the one in `path`.

    Whenever this is cut off, `path` holds the old model or the new one, whole: the old one until the new
    one is all on disk; from then on `settled` finishes the exchange. Other files of `path` stay.
    """
    path = settled(path)
    new = path / _NEW
    shutil.rmtree(new, ignore_errors=True)  # what an earlier save, cut off, had written
    new.mkdir(parents=True, exist_ok=True)
    yield new
    settled(path)


def settled(path: str | Path) -> Path:
    """The folder, after finishing an exchange of its model that was cut off (see `replacing`).

    While one is under way there is no `config.json`, so nobody else takes a mixture for a model.
    """
    path = Path(path)
    new, moving = path / _NEW, path / _MOVING
    if (new / CONFIG_FILE).is_file():  # the new model is whole
        for old in (path / CONFIG_FILE, path / _INDEX, *path.glob("model*.safetensors")):
            old.unlink(missing_ok=True)
        if (path / ORBAX_PARAMS).is_dir():
            shutil.rmtree(path / ORBAX_PARAMS)
        new.rename(moving)  # from here on, nothing in `path` is of the old model
    if moving.is_dir():
        for part in sorted(moving.iterdir(), key=lambda part: part.name == CONFIG_FILE):
            part.replace(path / part.name)
        moving.rmdir()
    return path


def write_config(model: Decoder, folder: Path) -> None:
    """Writes the `config.json` of a model whose parameters are on disk in the type they have."""
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))}
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    write_atomically(folder / CONFIG_FILE, to_hugging_face(model.config, dtype).encode())


def _named(model: Decoder) -> Iterator[tuple[str, tuple[Any, ...], int | None, jax.Array]]:
    """Every tensor's name, our parameter that holds it, and which of its layers (None: all of it)."""
    for parts, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        if parts[0] != "layers":
            yield tensor_name(model.config, parts, 0), parts, None, variable[...]
        else:
            for repeat in range(variable[...].shape[0]):
                yield tensor_name(model.config, parts, repeat), parts, repeat, variable[...]


def _on_host(model: Decoder) -> Iterator[tuple[str, tuple[Any, ...], np.ndarray]]:
    """Every tensor's name, our parameter that holds it, and its values in our layout."""
    for name, parts, repeat, value in _named(model):
        yield name, parts, np.asarray(on_every_host(value if repeat is None else value[repeat]))


def _bytes(value: jax.Array, repeat: int | None) -> int:
    return value.nbytes if repeat is None else value.nbytes // value.shape[0]


def _shards(sizes: list[int], limit: int) -> list[int]:
    """The number of the file that each tensor goes to, in order."""
    numbers, number, filled = [], 0, 0
    for size in sizes:
        if filled and filled + size > limit:
            number, filled = number + 1, 0
        numbers.append(number)
        filled += size
    return numbers
