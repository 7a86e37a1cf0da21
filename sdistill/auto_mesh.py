"""Which mesh a run gets if its config names none: the plainest one that fits."""

import functools
import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh

from sdistill.distributed.mesh import AXES, MeshConfig, make_mesh
from sdistill.distributed.rules import SAMPLING, TRAINING, parameter_shardings
from sdistill.model.config import ModelConfig
from sdistill.model.weights import new_model
from sdistill.settings import ConfigError, require

logger = logging.getLogger(__name__)

GIB = 2**30
SHARE = 0.92
"""Of the memory of a device that an estimate may take: it is good to a tenth (docs/scale.md)."""

LAYER = 7
"""Arrays of all widths of a layer (stream, feed-forward, heads) that exist at once; a fit: docs/scale.md."""

LOGITS = 4
"""Arrays of a chunk's logits that exist at the same time, in float32."""

CACHE_COPIES = 1
"""Layers of the cache that exist once more while a token is decoded."""


@dataclass(frozen=True)
class Load:
    """What a run asks of each device, in numbers.

    Attributes:
      model: Its shape.
      state: Bytes that are kept of a parameter: itself, moments, and the teacher's copy.
      slots: Responses decoded at a time; 0 for a run that samples nothing.
      cached: Tokens of all of them together, at most.
      prompts: How many are prefilled at a time, at least one for each part of the rows.
      prompt: Tokens of each, at most; any slot may need any of them, so that rows do not split these.
      rows: Of an update; 0 for a run that only samples.
      micro_rows: Rows whose gradient is computed at a time.
      gradient: Bytes of a parameter's gradient.
      student: Tokens of a row that is differentiated, at most.
      longest: Tokens of any row in training, at most.
      chunk: Positions of a row whose logits exist at the same time.
    """

    model: ModelConfig
    state: float
    slots: int = 0
    cached: int = 0
    prompts: int = 0
    prompt: int = 0
    rows: int = 0
    micro_rows: int = 0
    gradient: float = 0
    student: int = 0
    longest: int = 0
    chunk: int = 0

    def bytes_on(self, mesh: MeshConfig) -> dict[str, dict[str, float]]:
        """Bytes of a device while a gradient is computed, and while tokens are decoded, by what they are for.

        An estimate. A run that only samples has no gradient; one that samples nothing has no decoding.
        """
        stages = {}
        if self.rows:
            stages["gradient"] = self._gradient_on(mesh)
        if self.slots:
            stages["decoding"] = self._decoding_on(mesh)
        return stages

    def _gradient_on(self, mesh: MeshConfig) -> dict[str, float]:
        """What is kept for the backward pass is each layer's input.

        Besides, there are either one layer's activations and parameters, or the heads of student and teacher
        with the logits of a chunk. Each part of a row attends to the keys and values of the whole.
        """
        model, size = self.model, self._size
        every = model.parameter_count()
        shards, ids = mesh.fsdp * mesh.context * mesh.tensor, mesh.tensor * mesh.context
        head = model.vocab_size * model.hidden_size
        layer = (every - (1 if model.tie_word_embeddings else 2) * head) / model.num_hidden_layers
        rows = self.micro_rows / (mesh.data * mesh.fsdp)
        kept = rows * self.student / mesh.context * model.num_hidden_layers * model.hidden_size * size
        keys = 2 * model.num_key_value_heads * model.head_dim
        split = model.intermediate_size + model.num_attention_heads * model.head_dim
        widths = (model.hidden_size + split / mesh.tensor) / mesh.context + keys / mesh.tensor
        one_layer = LAYER * rows * self.longest * widths * size + (2 * size + 4) * layer / mesh.tensor
        logits = LOGITS * rows * self.chunk * model.vocab_size / ids * 4
        return {
            "state": every * self.state / shards,
            "gradients": 2 * every * self.gradient / shards,
            "inputs of layers": kept,
            "a layer, or heads and logits": max(one_layer, 2 * head / ids * size + logits),
        }

    def _decoding_on(self, mesh: MeshConfig) -> dict[str, float]:
        """Parameters for sampling are whole but for what `tensor` and `context` split."""
        model, size = self.model, self._size
        every = model.parameter_count()
        ways, ids = mesh.data * mesh.fsdp, mesh.tensor * mesh.context
        heads = 2 * model.num_key_value_heads * model.head_dim * model.num_hidden_layers
        cache = self.cached / ways * heads * size / ids
        prefixes = -(-self.prompts // ways) * ways * self.prompt * heads * size / ids
        return {
            "state": every * self.state / (mesh.fsdp * ids),
            "parameters for sampling": every * size / ids,
            "cache": cache * (1 + CACHE_COPIES / model.num_hidden_layers) + prefixes,
        }

    @property
    def _size(self) -> int:
        """Bytes of an activation."""
        return 2 if self.model.compute.dtype == "bfloat16" else 4

    def total_on(self, mesh: MeshConfig) -> tuple[float, str]:
        """The larger of the two sums, and what it is made of."""
        stages = self.bytes_on(mesh)
        stage = max(stages, key=lambda name: sum(stages[name].values()))
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in stages[stage].items())
        return sum(stages[stage].values()), f"{stage}: {parts}"


def choose_mesh(load: Load, devices: int, memory: float) -> MeshConfig:
    """The plainest mesh over all devices that divides model and rows, and fits by the estimate.

    Plain is what is split least: rows only (`data`) before parameters (`fsdp`), these before the tokens of a
    row (`context`), and those before heads and widths (`tensor`).

    Args:
      load: What the run asks.
      devices: How many there are.
      memory: Bytes of each.

    Raises:
      ConfigError: if none fits; names the one that comes closest, its bytes and ways out.
    """
    shapes = shapes_of(load.model)
    refusal, closest = "", (math.inf, "", MeshConfig())
    for mesh in meshes(devices):
        try:
            check_divides(load, shapes, mesh)
        except ConfigError as error:
            refusal = refusal or str(error)
            continue
        total, parts = load.total_on(mesh)
        if total <= SHARE * memory:
            return mesh
        closest = min(closest, (total, parts, mesh), key=lambda found: found[0])
    total, parts, mesh = closest
    if math.isinf(total):
        raise ConfigError(f"mesh=None: no mesh over {devices} devices divides model and rows: {refusal}")
    raise ConfigError(
        f"mesh=None: no mesh over {devices} devices fits; {shown(mesh)} comes closest with {total / GIB:.1f} "
        f"GiB of {SHARE * memory / GIB:.1f} a device ({parts}). Take more devices, fewer slots, smaller "
        "micro_rows or shorter rows, or name a mesh: this is an estimate"
    )


def chosen_mesh(load: Load, devices: Sequence[jax.Device], memory: float) -> Mesh:
    """The mesh that suits the run, over devices with so many bytes each; errors of `choose_mesh`."""
    mesh = choose_mesh(load, len(devices), memory)
    logger.info("mesh: %s", shown(mesh))
    return make_mesh(mesh, devices)


def meshes(devices: int) -> Iterator[MeshConfig]:
    """All meshes over so many devices, plainest first."""
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    for tensor, context, fsdp in itertools.product(divisors, repeat=3):
        if devices % (tensor * context * fsdp) == 0:
            yield MeshConfig(devices // (tensor * context * fsdp), fsdp, tensor, context)


def check_divides(load: Load, shapes: nnx.State, mesh: MeshConfig) -> None:
    """Refuses a mesh that cannot split the model, its batches or its slots.

    Raises:
      ConfigError: naming what is not divided.
    """
    ways = mesh.data * mesh.fsdp
    counts: Mapping[str, int] = {"micro_rows": load.micro_rows, "rows": load.rows, "slots": load.slots}
    for name, count in counts.items():
        require(count % ways == 0, f"{shown(mesh)} cannot split {name}={count} over data × fsdp = {ways}")
    abstract = AbstractMesh(tuple(getattr(mesh, axis) for axis in AXES), AXES)
    check_splits(shapes, abstract, samples=load.slots > 0)


@functools.cache
def shapes_of(model: ModelConfig) -> nnx.State:
    """The parameters of a model, as shapes."""
    return nnx.state(nnx.eval_shape(lambda: new_model(model, 0)), nnx.Param)


def check_splits(shapes: nnx.State, mesh: Mesh | AbstractMesh, *, samples: bool) -> None:
    """Refuses a mesh that cannot split these parameters, in training or, if the run samples, in sampling.

    Raises:
      ConfigError: naming the axes of the mesh and that of the model.
    """
    for rules in (TRAINING, SAMPLING)[: 1 + samples]:
        parameter_shardings(shapes, mesh, rules)


def shown(mesh: MeshConfig) -> str:
    """The sizes of its axes."""
    return " × ".join(f"{axis}={getattr(mesh, axis)}" for axis in AXES)
