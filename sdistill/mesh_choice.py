"""The mesh of a run: the one that its config names, or the plainest one that fits."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from sdistill.config import AnyTrainConfig, GRPOConfig, SamplerConfig, SFTConfig
from sdistill.distributed.mesh import AXES, MeshConfig, device_memory, make_mesh
from sdistill.distributed.rules import SAMPLING, TRAINING, parameter_shardings
from sdistill.engine.engine import PREFILL_TOKENS
from sdistill.model.config import ComputeConfig, ModelConfig
from sdistill.model.folders import CONFIG_FILE, find_model
from sdistill.model.hugging_face import from_hugging_face
from sdistill.model.weights import parameter_shapes
from sdistill.settings import ConfigError, require

logger = logging.getLogger(__name__)

GIB = 2**30
USABLE = 0.92
"""Share of a device's memory that an estimate may take: it is good to a tenth (docs/scale.md)."""

LAYER_ARRAYS = 7
"""Arrays of all widths of a layer (stream, feed-forward, heads) that exist at once; a fit: docs/scale.md."""

LOGITS_ARRAYS = 4
"""Arrays of a chunk's logits that exist at the same time, in float32."""


@dataclass(frozen=True)
class Workload:
    """The sizes of a run that decide on its memory.

    Attributes:
      model: Its shape, and how it is computed.
      state_bytes: Bytes that are kept of a parameter: itself, moments, the teacher's and the KL term's copy.
      slots: Responses decoded at a time; 0 for a run that samples nothing.
      cached_tokens: Tokens of all of them together, at most.
      prefill_rows: Prompts prefilled at a time; at least one for each shard of the rows.
      prompt_length: Tokens of each, at most. Any slot may need any prompt, so rows do not split their cache.
      update_size: Rows of an update; 0 for a run that only samples.
      micro_batch_size: Rows whose gradient is computed at a time.
      gradient_bytes: Bytes of a parameter's gradient.
      student_length: Tokens of a row that is differentiated, at most.
      longest_row: Tokens of any row in training, at most.
      logits_chunk_size: Positions of a row whose logits exist at the same time.
    """

    model: ModelConfig
    state_bytes: float
    slots: int = 0
    cached_tokens: int = 0
    prefill_rows: int = 0
    prompt_length: int = 0
    update_size: int = 0
    micro_batch_size: int = 0
    gradient_bytes: float = 0
    student_length: int = 0
    longest_row: int = 0
    logits_chunk_size: int = 0

    def estimate(self, mesh: MeshConfig) -> dict[str, dict[str, float]]:
        """Estimated bytes of a device, by stage (`gradient`, `decoding`) and by what they hold."""
        gradient = {"gradient": self._gradient(mesh)} if self.update_size else {}
        return gradient | ({"decoding": self._decoding(mesh)} if self.slots else {})

    def peak(self, mesh: MeshConfig) -> tuple[float, str]:
        """Estimated bytes of the larger stage, and what they hold."""
        stages = self.estimate(mesh)
        total, stage = max((sum(parts.values()), stage) for stage, parts in stages.items())
        return total, f"{stage}: " + ", ".join(f"{name} {n / GIB:.1f}" for name, n in stages[stage].items())

    def _gradient(self, mesh: MeshConfig) -> dict[str, float]:
        """The backward pass keeps each layer's input.

        Besides, there are either one layer's activations and parameters, or the heads of student and teacher
        with the logits of a chunk. Each shard of a row attends to the keys and values of the whole row.
        """
        model, size = self.model, self.model.dtype.itemsize
        params = model.parameter_count()
        shards, id_shards = mesh.fsdp * mesh.context * mesh.tensor, mesh.tensor * mesh.context
        head = model.vocab_size * model.hidden_size
        layer = (params - (1 if model.tie_word_embeddings else 2) * head) / model.num_hidden_layers
        rows = self.micro_batch_size / (mesh.data * mesh.fsdp)
        inputs = rows * self.student_length / mesh.context * model.hidden_size * model.num_hidden_layers
        keys = 2 * model.num_key_value_heads * model.head_dim
        split = model.intermediate_size + model.num_attention_heads * model.head_dim
        widths = (model.hidden_size + split / mesh.tensor) / mesh.context + keys / mesh.tensor
        one_layer = LAYER_ARRAYS * rows * self.longest_row * widths * size
        one_layer += (2 * size + 4) * layer / mesh.tensor
        logits = LOGITS_ARRAYS * rows * self.logits_chunk_size * model.vocab_size / id_shards * 4
        return {
            "state": params * self.state_bytes / shards,
            "gradients": 2 * params * self.gradient_bytes / shards,
            "inputs of layers": inputs * size,
            "a layer, or heads and logits": max(one_layer, 2 * head / id_shards * size + logits),
        }

    def _decoding(self, mesh: MeshConfig) -> dict[str, float]:
        """Parameters for sampling are split by `tensor` and `context` only; one layer's cache is copied."""
        model, size = self.model, self.model.dtype.itemsize
        params = model.parameter_count()
        row_shards, head_shards = mesh.data * mesh.fsdp, mesh.tensor * mesh.context
        per_layer = 2 * model.num_key_value_heads * model.head_dim * size / head_shards
        per_token = model.num_hidden_layers * per_layer
        prefill_rows = -(-self.prefill_rows // row_shards) * row_shards
        cache = self.cached_tokens / row_shards * (per_token + per_layer)
        return {
            "state": params * self.state_bytes / (mesh.fsdp * head_shards),
            "parameters for sampling": params * size / head_shards,
            "cache": cache + prefill_rows * self.prompt_length * per_token,
        }


# ── Choosing ─────────────────────────────────────────────────────────────────────────────────────


def choose_mesh(work: Workload, devices: int, memory: float) -> MeshConfig:
    """The plainest mesh over all devices that divides model and rows, and fits by the estimate.

    Plain is what is split least: rows only (`data`) before parameters (`fsdp`), these before the tokens of a
    row (`context`), and those before heads and widths (`tensor`).

    Args:
      memory: Bytes of each.

    Raises:
      ConfigError: if none fits; names the one that comes closest, its bytes and ways out.
    """
    refusals, too_large = [], []
    for mesh in all_meshes(devices):
        try:
            _check_divides(work, mesh)
        except ConfigError as error:
            refusals.append(error)
            continue
        total, parts = work.peak(mesh)
        if total <= USABLE * memory:
            logger.info("mesh: %s", mesh)
            return mesh
        too_large.append((total, parts, mesh))
    if not too_large:
        raise ConfigError(f"mesh=None: no mesh over {devices} devices divides model and rows: {refusals[0]}")
    total, parts, mesh = min(too_large, key=itemgetter(0))
    raise ConfigError(
        f"mesh=None: no mesh over {devices} devices fits; {mesh} comes closest with {total / GIB:.1f} "
        f"GiB of {USABLE * memory / GIB:.1f} a device ({parts}). Take more devices, fewer slots, a smaller "
        "micro_batch_size or shorter rows, or name a mesh: this is an estimate"
    )


def all_meshes(devices: int) -> Iterator[MeshConfig]:
    """All meshes over this number of devices, plainest first."""
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    for tensor, context, fsdp in itertools.product(divisors, repeat=3):
        if devices % (tensor * context * fsdp) == 0:
            yield MeshConfig(devices // (tensor * context * fsdp), fsdp, tensor, context)


def _check_divides(work: Workload, mesh: MeshConfig) -> None:
    """Refuses a mesh that cannot split rows, slots or the model."""
    shards = mesh.data * mesh.fsdp
    for name in ("micro_batch_size", "update_size", "slots"):
        count = getattr(work, name)
        require(count % shards == 0, f"{mesh} cannot split {name}={count} over data × fsdp = {shards}")
    check_splits(work, AbstractMesh(tuple(getattr(mesh, axis) for axis in AXES), AXES))


def check_splits(work: Workload, mesh: Mesh | AbstractMesh) -> None:
    """Refuses a mesh that cannot split the model's parameters, in training or, if the run samples, sampling.

    Raises:
      ConfigError: naming the axes of the mesh and that of the model.
    """
    # All layers have the same shapes, so one of them is enough.
    layer = replace(work.model, num_hidden_layers=1, layer_types=None, sliding_window=None)
    for rules in (TRAINING, SAMPLING) if work.slots else (TRAINING,):
        parameter_shardings(parameter_shapes(layer), mesh, rules)


# ── Runs ─────────────────────────────────────────────────────────────────────────────────────────


def training_mesh(config: AnyTrainConfig) -> Mesh:
    """The mesh of a training run over this job's devices.

    Raises:
      ConfigError: if the config's mesh has more devices than there are, or cannot split its model; or if the
        config names none, and none fits.
      FileNotFoundError: if there is no such model.
    """
    model = config.model or from_hugging_face(find_model(str(config.init_from)) / CONFIG_FILE)
    return _named_or_chosen(config.mesh, training_workload(config, model))


def sampling_mesh(
    named: MeshConfig | None, source: str | Path, compute: ComputeConfig, config: SamplerConfig
) -> Mesh:
    """The mesh of a run that only samples, over this job's devices; errors are those of `training_mesh`.

    Args:
      named: Its sizes; None for one over all devices that fits.
      source: The model, as `find_model` takes it.
      compute: How it is computed, in the type of its weights.
    """
    model = replace(from_hugging_face(find_model(source) / CONFIG_FILE), compute=compute)
    return _named_or_chosen(named, sampling_workload(model, config))


def _named_or_chosen(named: MeshConfig | None, work: Workload) -> Mesh:
    if named is None:
        return make_mesh(choose_mesh(work, jax.device_count(), device_memory()))
    mesh = make_mesh(named)
    if mesh.size > 1:
        check_splits(work, mesh)  # before anything is loaded
    return mesh


def sampling_workload(model: ModelConfig, config: SamplerConfig) -> Workload:
    """Of a run that only samples: the weights as loaded, once more for sampling, and a cache."""
    return Workload(model, state_bytes=model.dtype.itemsize, **_sampling_sizes([config]))


def training_workload(config: AnyTrainConfig, model: ModelConfig) -> Workload:
    """Of a training run, with all rows as long as the config allows."""
    own = jnp.dtype(config.param_dtype).itemsize
    state = 2 * own + jnp.dtype(config.optimizer.first_moment).itemsize
    samplers: list[SamplerConfig] = [config.evaluation] if config.evaluation else []
    if isinstance(config, SFTConfig):
        student = longest = config.examples.sequence_length
    else:
        rollouts, teacher = config.rollouts, config.teacher
        samplers = [rollouts, *samplers]
        student = longest = rollouts.max_prompt_length + rollouts.max_response_length
        if teacher is not None:
            longest = teacher.max_prompt_length + rollouts.max_response_length
            state += jnp.dtype(teacher.dtype).itemsize if teacher.weights != "live" else 0
        if isinstance(config, GRPOConfig) and config.loss.kl_coefficient is not None:
            state += own  # the initial weights
    return Workload(
        replace(model, compute=config.compute),
        state_bytes=state,
        update_size=config.update_size,
        micro_batch_size=config.micro_batch_size or config.update_size,
        gradient_bytes=own,
        student_length=student,
        longest_row=longest,
        logits_chunk_size=config.logits_chunk_size,
        **_sampling_sizes(samplers),
    )


def _sampling_sizes(samplers: Sequence[SamplerConfig]) -> dict[str, int]:
    """What `Workload` holds of the samplers of a run: the slots of the first, and the largest of all else."""
    if not samplers:
        return {}
    prompt = max(sampler.max_prompt_length for sampler in samplers)
    return {
        "slots": samplers[0].slots,
        "cached_tokens": max(s.slots * (s.max_prompt_length + s.max_response_length) for s in samplers),
        "prefill_rows": max(1, PREFILL_TOKENS // prompt),
        "prompt_length": prompt,
    }
