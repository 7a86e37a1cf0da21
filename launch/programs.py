"""The compiled programs of a run as shapes: nothing is ever allocated.

They are the functions that a run jits (`train.compiled_gradient`, `step.jit_update`,
`losses.score_responses`, `engine.programs.programs_of`), lowered for arrays that exist only as shapes with a
sharding.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdistill import flops
from sdistill.config import AnyTrainConfig, SamplerConfig, SDPOConfig, SFTConfig
from sdistill.distributed.rules import BATCH, TRAINING, parameter_shardings
from sdistill.engine.engine import Plan
from sdistill.engine.model import CachedDecoder
from sdistill.engine.programs import empty_slots, programs_of
from sdistill.losses import GRPOBatch, PackedBatch, SDPOBatch, Sequences, score_responses
from sdistill.model.config import ModelConfig
from sdistill.model.weights import parameter_shapes
from sdistill.step import TrainState, jit_update, make_optimizer, state_shardings, teacher_shapes
from sdistill.train import compiled_gradient

Shapes = Any
"""A tree of `jax.ShapeDtypeStruct` with shardings."""


@dataclass(frozen=True)
class Program:
    """One program of a run.

    Attributes:
      function: As the run has jitted it.
      arguments: Its positional arguments.
      resident: What else of the run is in memory while it runs.
      times: How often a step of the run calls it, if all rows are as long as they may be.
      keywords: Its keyword arguments.
      flops: Of all chips, by the model's shape (see `sdistill.flops`).
      traffic: Bytes that each chip reads from and writes to HBM at least: weights once a pass over the
        layers, the visible part of the cache once a token, arguments and results once. Activations within a
        layer count nothing.
    """

    function: Any
    arguments: tuple[Shapes, ...]
    resident: Shapes
    times: float
    keywords: Mapping[str, Any] = field(default_factory=dict)
    flops: float = 0.0
    traffic: float = 0.0

    def lower(self) -> jax.stages.Lowered:
        """Traces it and lowers it for the chips of the mesh."""
        return self.function.lower(*self.arguments, **self.keywords)


# ── Shapes ───────────────────────────────────────────────────────────────────────────────────────


def per_chip(shapes: Shapes) -> int:
    """Bytes of arrays on each chip. An array without a sharding is whole on every chip."""

    def size(x: jax.ShapeDtypeStruct) -> int:
        shape = x.sharding.shard_shape(x.shape) if x.sharding else x.shape
        return math.prod(shape) * x.dtype.itemsize

    return sum(size(x) for x in jax.tree.leaves(shapes))


def shaped_params(model: ModelConfig, dtype: str, mesh: Mesh) -> Shapes:
    """Parameters as they are loaded: in the layout for training."""
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), parameter_shapes(model))
    return _with_sharding(params, parameter_shardings(params, mesh, TRAINING))


def shaped_state(config: AnyTrainConfig, model: ModelConfig, mesh: Mesh) -> TrainState:
    """Parameters and optimizer state of a training run."""
    params = shaped_params(model, config.param_dtype, mesh)
    moments = jax.eval_shape(make_optimizer(config.optimizer).init, params)
    state: Any = TrainState(_whole(), params, moments)  # type: ignore[arg-type]
    return _with_sharding(state, state_shardings(model, config.optimizer, mesh))


def _with_sharding(shapes: Shapes, shardings: Any) -> Shapes:
    """The shapes with a sharding each; one sharding may stand for all of them."""
    shardings = jax.tree.broadcast(shardings, shapes)
    return jax.tree.map(lambda x, sharding: x.update(sharding=sharding), shapes, shardings)


def _whole(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


# ── Sampling ─────────────────────────────────────────────────────────────────────────────────────


def sampling_programs(
    model: ModelConfig, mesh: Mesh, params: Shapes, besides: Shapes, config: SamplerConfig, num_prompts: float
) -> dict[str, Program]:
    """From the training to the sampling layout, and what the engine runs while all slots are full.

    Args:
      model: The model's shape, and how it is computed.
      mesh: Where everything is.
      params: In the layout for training. They stay in memory meanwhile.
      besides: What else stays in memory.
      config: Of the sampler.
      num_prompts: Prompts a step; 0 if the sampling is no part of a step.
    """
    decoder = CachedDecoder(model)
    programs: Any = programs_of(decoder, mesh)
    prompt, response, slots = config.max_prompt_length, config.max_response_length, config.slots
    end = prompt + response
    plan = Plan.of(slots, prompt, response, int(mesh.shape["data"] * mesh.shape["fsdp"]))

    # Arguments: parameters for sampling, slots and their cache, prompts and their cache.
    own = jax.eval_shape(decoder.for_sampling, params)
    own = _with_sharding(own, decoder.shardings(own, mesh))
    pool = jax.eval_shape(lambda: empty_slots(decoder, slots, plan.lengths[-1]))
    pool = pool._replace(
        cache=_with_sharding(pool.cache, NamedSharding(mesh, decoder.cache_spec())),
        rows=_with_sharding(pool.rows, NamedSharding(mesh, BATCH)),
    )
    prefix = jax.eval_shape(lambda: decoder.empty_cache(plan.prefill_rows, prompt))
    prefix = _with_sharding(prefix, NamedSharding(mesh, PartitionSpec(None, *decoder.cache_spec()[1:])))
    free, forbidden = (jax.ShapeDtypeStruct((size,), bool) for size in (slots, model.vocab_size))
    admitted = plan.admit_rows
    started = jax.tree.map(lambda x: jax.ShapeDtypeStruct((admitted,), x.dtype), pool.rows)

    # Work. Of the prompts' last layer only keys and values are computed. The last token of a prompt is read
    # with each response, and the last token of a response never.
    flops_of_prompt = (1 - 1 / model.num_hidden_layers) * flops.forward_flops(model, prompt, 0)
    flops_of_response = flops.forward_flops(model, end - 1, response)
    flops_of_response -= flops.forward_flops(model, prompt - 1, 0)
    visible = flops.attention_pairs(model, end - 1) - flops.attention_pairs(model, prompt - 1)
    visible /= response * model.num_hidden_layers * plan.lengths[-1]  # mean share
    layers, cache = per_chip(own["layers"]), per_chip(pool.cache)
    head = per_chip(own["embedding_VD" if model.tie_word_embeddings else "head_DV"])

    training, responses = (params, besides), num_prompts * config.num_samples
    return {
        "reshard": Program(programs.reshard, (params,), besides, 1, traffic=per_chip((params, own))),
        "prefill": Program(
            programs.prefill,
            (own, _whole(plan.prefill_rows, prompt), _whole(plan.prefill_rows)),
            (training, pool),
            times=num_prompts / plan.prefill_rows,
            keywords={"columns": prompt},
            flops=plan.prefill_rows * flops_of_prompt,
            traffic=layers + per_chip(prefix),
        ),
        "admit": Program(
            programs.admit,
            (pool, prefix, started, _whole(admitted), _whole(admitted)),
            (training, own),
            times=responses / admitted,
            traffic=2 * cache * admitted / slots * prompt / plan.lengths[-1],
        ),
        # Work is the mean over the tokens of a response; memory is that of the last tokens.
        "decode": Program(
            programs.decode,
            (own, pool, free, _whole(), _whole(2), _whole(1), forbidden),
            (training, prefix),
            times=responses / slots * response,
            flops=slots * flops_of_response / response,
            traffic=layers + head + visible * cache,
        ),
    }


# ── Training ─────────────────────────────────────────────────────────────────────────────────────


def training_programs(config: AnyTrainConfig, model: ModelConfig, mesh: Mesh) -> dict[str, Program]:
    """All programs of a training run, in the order in which a step runs them.

    Evaluations of GRPO and SDPO are left out: they are sampled like rollouts. Those of SFT are sampled
    outside of its steps.
    """
    state = shaped_state(config, model, mesh)
    teacher = teacher_shapes(config.teacher, state.params)
    size = config.micro_batch_size or config.update_size
    programs: dict[str, Program] = {}

    sampled = config.evaluation if isinstance(config, SFTConfig) else config.rollouts
    if sampled is not None:
        num_prompts = 0 if isinstance(config, SFTConfig) else config.rollouts.num_prompts
        besides = state.opt_state, teacher
        programs |= sampling_programs(model, mesh, state.params, besides, sampled, num_prompts)

    def array(*shape: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct((size, *shape), dtype, sharding=NamedSharding(mesh, BATCH))

    # The batch, the teacher's weights if the loss reads them, and the work of one micro-batch.
    batch: Any
    loss_teacher: Shapes | None = None
    resident = state.opt_state, teacher
    scored = scored_traffic = 0.0  # by the teacher
    if isinstance(config, SFTConfig):
        step_size, length = config.update_size, config.examples.sequence_length
        positions = length
        ints = array(length, dtype=jnp.int32)
        batch = PackedBatch(ints, ints, array(length), ints, ints)
    else:
        rollouts = config.rollouts
        step_size, positions = rollouts.num_prompts * rollouts.num_samples, rollouts.max_response_length
        length, each = rollouts.max_prompt_length + positions, array(positions)

        def sequences(length: int) -> Sequences:
            ints = array(length, dtype=jnp.int32)
            return Sequences(ints, ints, ints, each)

        if config.teacher is not None:
            teacher_length = config.teacher.max_prompt_length + positions
            scored = size * flops.forward_flops(model, teacher_length, positions)
            scored_traffic = _weights_traffic(model, mesh)
        if isinstance(config, SDPOConfig):
            batch = SDPOBatch(sequences(length), sequences(teacher_length), array(), each, each, each)
            loss_teacher, resident = teacher, (state.opt_state, None)
        else:
            has_reference = config.loss.kl_coefficient is not None
            batch = GRPOBatch(sequences(length), each, each, each, each if has_reference else None)
            if config.teacher is not None:
                programs["score"] = Program(
                    score_responses,
                    (teacher or state.params, sequences(teacher_length)),
                    state if teacher else state.opt_state,
                    times=step_size / size,
                    keywords={
                        "model": model,
                        "temperature": rollouts.sampling.temperature,
                        "logits_chunk_size": config.logits_chunk_size,
                    },
                    flops=scored,
                    traffic=scored_traffic,
                )
                scored = scored_traffic = 0.0
    programs["gradient"] = Program(
        compiled_gradient(config, model, mesh),
        (state.params, loss_teacher, batch),
        resident,
        times=step_size / size,
        keywords={"accumulated": state.params},
        flops=size * gradient_flops(model, length, positions) + scored,
        traffic=_gradient_traffic(model, mesh, state.params, size * length) + scored_traffic,
    )
    programs["update"] = Program(
        jit_update(model, mesh, config.optimizer),
        (state, state.params),
        teacher,
        times=step_size / config.update_size,
        traffic=2 * per_chip(state) + per_chip(state.params),  # the gradient is read, the state rewritten
    )
    return programs


# ── Work of a gradient ───────────────────────────────────────────────────────────────────────────

ATTENTION_BACKWARD = 3.5
"""Products of the attention kernels' backward pass for one of their forward pass.

They recompute the attention weights in each of their two backward passes:
forward 2 products (QK, PV); backward 3 for queries (QK, dY·V, dS·K), 4 for keys and values (QK, P·dY, dY·V,
dS·Q).
"""


def gradient_flops(model: ModelConfig, length: int, positions: int) -> float:
    """Gradient of one sequence as it is computed: forward, what is recomputed, and backward pass.

    Assumes the attention kernels, and that the logits, which are never kept, are computed twice.
    """
    remat = model.compute.remat == "full"
    matrices = (1 + flops.BACKWARD) * flops.matrix_flops(model, length)
    matrices += remat * recomputed_flops(model, length)
    attention = (1 + remat + ATTENTION_BACKWARD) * flops.attention_flops(model, length)
    return matrices + attention + (2 + flops.BACKWARD) * flops.head_flops(model, positions)


def recomputed_flops(model: ModelConfig, tokens: int) -> float:
    """Matrix products that the backward pass recomputes where only a layer's input is kept (`remat="full"`).

    Not the last product where its result is only added to the residual stream: no gradient needs that.
    """
    last = 2.0 * tokens * model.hidden_size * model.intermediate_size * model.num_hidden_layers
    return flops.matrix_flops(model, tokens) - (last if model.norm == "input" else 0.0)


def _weights_traffic(model: ModelConfig, mesh: Mesh) -> float:
    """Bytes of the matrices that a chip reads in one pass over the layers in training.

    They are gathered over `fsdp`, in the activations' type. The embedding is only looked up.
    """
    head = model.vocab_size * model.hidden_size
    layers = model.parameter_count() - (1 if model.tie_word_embeddings else 2) * head
    read = layers / mesh.shape["tensor"] + head / (mesh.shape["tensor"] * mesh.shape["context"])
    return model.dtype.itemsize * read


def _gradient_traffic(model: ModelConfig, mesh: Mesh, params: Shapes, tokens: int) -> float:
    """Bytes that a chip reads and writes for the gradient of a micro-batch.

    Weights once for each pass (forward, recomputation, backward); the accumulated gradient read and written;
    each layer's input written and read.
    """
    passes = 2 + (model.compute.remat == "full")
    shards = mesh.shape["data"] * mesh.shape["fsdp"] * mesh.shape["context"]
    inputs = tokens * model.num_hidden_layers * model.hidden_size * model.dtype.itemsize / shards
    return passes * _weights_traffic(model, mesh) + 2 * per_chip(params) + 2 * inputs
