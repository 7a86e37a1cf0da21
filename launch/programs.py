"""The programs of a run, from the shapes of what they take: nothing is ever allocated.

They are the functions that a run jits (`training.updates.compile_steps`, `training.objectives.score_rows`,
`rollout.schedule.compiled`), lowered for arrays that exist as shapes with a layout only.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from sdistill.optimizer import make_optimizer
from sdistill.rows import Rows
from sdistill.state import TrainState
from sdistill.teacher import kept_teacher
from sdistill.updates import compile_steps

from sdistill import flops
from sdistill.config import TrainConfig
from sdistill.distributed.rules import BATCH, TRAINING, parameter_shardings
from sdistill.engine.model import CachedDecoder
from sdistill.engine.programs import Admission, empty_slots
from sdistill.engine.sampling import Sampling, SamplingArrays
from sdistill.engine.schedule import Plan, compiled
from sdistill.losses import OnPolicyBatch, score_rows
from sdistill.model.config import ModelConfig
from sdistill.model.weights import new_model
from sdistill.step import PackedBatch

Shapes = Any
"""A tree of `jax.ShapeDtypeStruct`, which know how they are laid out."""


@dataclass(frozen=True)
class Program:
    """One program of a run.

    Attributes:
      function: As the run has jitted it.
      arguments: What it takes.
      resident: What else of the run is in memory while it runs.
      times: How often a step of the run needs it, if all rows are as long as they may be.
      keywords: Arguments by name, and settings that it is compiled for.
      flops: What it computes over all chips, by the model's shape (see `sdistill.flops`).
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


@dataclass(frozen=True)
class Shaped:
    """The arrays of a training run as shapes.

    Attributes:
      config: Of the run.
      model: The model's shape, and how it is computed.
      mesh: Where everything is.
      state: Parameters and optimizer state.
      teacher: The teacher's copy; None if none is kept.
    """

    config: TrainConfig
    model: ModelConfig
    mesh: Mesh
    state: TrainState
    teacher: Shapes | None

    @classmethod
    def of(cls, config: TrainConfig, model: ModelConfig, mesh: Mesh) -> "Shaped":
        """Of the run that a config describes."""
        params = shaped_params(model, config.parameters, mesh)
        layouts = jax.tree.map(lambda x: x.sharding, params)
        everywhere = NamedSharding(mesh, PartitionSpec())
        optimizer = make_optimizer(config.optimizer)
        moments = jax.eval_shape(optimizer.init, params)
        moment_layouts = optax.tree_map_params(
            optimizer, lambda _, layout: layout, moments, layouts, transform_non_params=lambda _: everywhere
        )
        step: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
        state = TrainState(
            step,
            params,
            jax.tree.map(_laid_out, moments, moment_layouts),
        )
        teacher = kept_teacher(config.guide.teacher, params) if config.guide else None
        return cls(config, model, mesh, state, teacher)

    def rows(self, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        """An array whose rows are split like a batch's."""
        return _rows_of(self.mesh, shape, dtype)


@dataclass(frozen=True)
class Sampled:
    """What a step of a run samples.

    Attributes:
      problems: Prompts that differ.
      samples: Responses to each.
      max_prompt: Tokens of a prompt, at most.
      max_response: Tokens after which a response is cut.
      slots: Responses decoded at a time.
    """

    problems: float
    samples: int
    max_prompt: int
    max_response: int
    slots: int


def shaped_params(model: ModelConfig, dtype: str, mesh: Mesh) -> Shapes:
    """Parameters as they are loaded: in the layout for training."""
    params = nnx.state(nnx.eval_shape(lambda: new_model(model, 0)), nnx.Param)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), params)
    return jax.tree.map(_laid_out, params, parameter_shardings(params, mesh, TRAINING))


def per_chip(shapes: Shapes) -> int:
    """Bytes that arrays have on each chip; one without a layout is there as a whole."""

    def size(x: jax.ShapeDtypeStruct) -> int:
        shape = x.sharding.shard_shape(x.shape) if x.sharding else x.shape
        return math.prod(shape) * x.dtype.itemsize

    return sum(size(x) for x in jax.tree.leaves(shapes))


def each_program(run: Shaped) -> Mapping[str, Program]:
    """All programs of a training run by name, in the order in which a step runs them.

    What is sampled are its rollouts. A run without them samples for its evaluations only, which count for
    no time of a step; the evaluations of a run with rollouts are engines like that for those, and left out.
    """
    config, sampled = run.config, None
    if config.rollouts is not None:
        asked: Any = config.rollouts
        sampled = Sampled(asked.prompts, asked.samples, asked.max_prompt, asked.max_response, config.slots)
    elif config.evaluation is not None:
        asked = config.evaluation
        sampled = Sampled(0, asked.samples, asked.max_prompt, asked.max_response, asked.slots)
    besides = run.state.opt_state, run.teacher
    sampling = sampling_programs(run.model, run.mesh, run.state.params, besides, sampled) if sampled else {}
    return sampling | (example_programs(run) if config.examples else rollout_programs(run))


def sampling_programs(
    model: ModelConfig, mesh: Mesh, params: Shapes, besides: Shapes, sampled: Sampled
) -> dict[str, Program]:
    """From the training to the sampling layout; and what the engine runs, with all slots full to the end.

    Args:
      model: The model's shape, and how it is computed.
      mesh: Where everything is.
      params: In the layout for training, which stay where they are meanwhile.
      besides: What else does.
      sampled: In a step.
    """
    decoder = CachedDecoder(model)
    programs: Any = compiled(decoder, mesh)
    prompt, slots = sampled.max_prompt, sampled.slots
    end = prompt + sampled.max_response
    plan = Plan.of(slots, prompt, sampled.max_response, _ways(mesh))
    own = jax.eval_shape(decoder.for_sampling, params)
    own = jax.tree.map(_laid_out, own, decoder.shardings(own, mesh))
    pool = _slots(mesh, decoder, slots, plan.lengths[-1])
    prefix_layout = NamedSharding(mesh, PartitionSpec(None, *decoder.cache_spec()[1:]))
    prefix = jax.eval_shape(lambda: decoder.empty_cache(plan.prefill_rows, prompt))
    prefix = jax.tree.map(lambda x: _laid_out(x, prefix_layout), prefix)
    prompts = _whole(plan.prefill_rows, prompt), _whole(plan.prefill_rows)
    stopped, forbidden = (jax.ShapeDtypeStruct((size,), bool) for size in (slots, model.vocab_size))
    drawing = stopped, _whole(), _whole(1), forbidden
    training = params, besides
    responses, begun = sampled.problems * sampled.samples, max(1, slots // 8)
    # Of the prompts' last layer only keys and values are computed.
    flops_of_prompt = (1 - 1 / model.num_hidden_layers) * flops.forward_flops(model, prompt, 0)
    # The last token of a prompt is read with each response, and the last one of a response never.
    flops_of_response = flops.forward_flops(model, end - 1, sampled.max_response)
    flops_of_response -= flops.forward_flops(model, prompt - 1, 0)
    visible = flops.attention_pairs(model, end - 1) - flops.attention_pairs(model, prompt - 1)
    visible_share = visible / (sampled.max_response * model.num_hidden_layers * plan.lengths[-1])
    layers, cache = per_chip(own["layers"]), per_chip(pool.cache)
    head = per_chip(own["embedding_VD" if model.tie_word_embeddings else "head_DV"])
    return {
        "reshard": Program(programs.reshard, (params,), besides, 1, traffic=per_chip((params, own))),
        "prefill": Program(
            programs.prefill,
            (own, *prompts),
            (training, pool),
            sampled.problems / plan.prefill_rows,
            {"length": prompt},
            plan.prefill_rows * flops_of_prompt,
            layers + per_chip(prefix),
        ),
        "admit": Program(
            programs.admit,
            (pool, prefix, _admission(begun), _whole(2)),
            (training, own),
            responses / begun,
            traffic=2 * cache * begun / slots * prompt / plan.lengths[-1],
        ),
        # Figures are means over the tokens of a response; the cache is that of its last ones.
        "decode": Program(
            programs.decode,
            (own, pool, *drawing),
            (training, prefix),
            responses / slots * sampled.max_response,
            flops=slots * flops_of_response / sampled.max_response,
            traffic=layers + head + visible_share * cache,
        ),
    }


def rollout_programs(run: Shaped) -> dict[str, Program]:
    """The gradient of a micro-batch of the longest rows; the update; a teacher's scores, if it gives any."""
    config, model, state = run.config, run.model, run.state
    assert config.rollouts is not None
    steps: Any = compile_steps(config, model, run.mesh, state)
    count, response = steps.micro_rows, config.rollouts.max_response
    student = config.rollouts.max_prompt + response
    guided = (config.rollouts.max_teacher_prompt or config.rollouts.max_prompt) + response
    rows, teaches = config.rollouts.prompts * config.rollouts.samples, config.sdpo is not None
    shown = (run.teacher,) if teaches else ()
    temperature = config.rollouts.sampling.temperature
    scoring = {"model": model, "temperature": temperature, "chunk": config.chunk}
    scored = count * flops.forward_flops(model, guided, response)
    weights = weights_of_pass(model, run.mesh)
    score = Program(
        score_rows,
        (state.params if run.teacher is None else run.teacher, _rows(run, count, guided)),
        state.opt_state if run.teacher is None else state,
        rows / count,
        scoring,
        scored,
        weights,
    )
    return ({"score": score} if config.guide and not teaches else {}) | {
        "gradient": Program(
            steps.gradient,
            (state.params, *shown, _batch(run, count)),
            state.opt_state if teaches else (state.opt_state, run.teacher),
            rows / count,
            {"so_far": state.params},
            count * flops.gradient_flops(model, student, response) + teaches * scored,
            gradient_traffic(run, count, student) + teaches * weights,
        ),
        "update": update_program(run, rows / steps.update_rows),
    }


def example_programs(run: Shaped) -> dict[str, Program]:
    """The gradient of a micro-batch of rows, each of them one example; and the update."""
    config, state = run.config, run.state
    assert config.examples is not None
    steps: Any = compile_steps(config, run.model, run.mesh, state)
    count, length = steps.micro_rows, config.examples.row_length
    column: Any = run.rows((count, length), jnp.int32)
    weights: Any = run.rows((count, length))
    batch = PackedBatch(column, column, weights, column, column)
    gradient = steps.gradient, (state.params, batch), state.opt_state, steps.update_rows / count
    work = count * flops.gradient_flops(run.model, length, length), gradient_traffic(run, count, length)
    return {
        "gradient": Program(*gradient, {"so_far": state.params}, *work),
        "update": update_program(run, 1),
    }


def update_program(run: Shaped, times: float) -> Program:
    """From gradient and state to the next state, each read or written once."""
    traffic = 2 * per_chip(run.state) + per_chip(run.state.params)
    update: Any = compile_steps(run.config, run.model, run.mesh, run.state).update
    return Program(update, (run.state, run.state.params), run.teacher, times, traffic=traffic)


def weights_of_pass(model: ModelConfig, mesh: Mesh) -> float:
    """Bytes of the matrices that a chip reads in one pass over the layers in training.

    They are gathered over `fsdp`, in the activations' type; the embedding is only looked up.
    """
    head = model.vocab_size * model.hidden_size
    layers = model.parameter_count() - (1 if model.tie_word_embeddings else 2) * head
    read = layers / mesh.shape["tensor"] + head / (mesh.shape["tensor"] * mesh.shape["context"])
    return model.dtype.itemsize * read


def gradient_traffic(run: Shaped, rows: int, length: int) -> float:
    """Bytes that a chip reads and writes for the gradient of a micro-batch.

    Weights once for each pass (forward, recomputation, backward); the accumulated gradient read and written;
    each layer's input written and read.
    """
    model, mesh = run.model, run.mesh
    passes = 2 + (model.compute.remat == "full")
    split = _ways(mesh) * mesh.shape["context"]
    inputs = rows * length * model.num_hidden_layers * model.hidden_size * model.dtype.itemsize / split
    return passes * weights_of_pass(model, mesh) + 2 * per_chip(run.state.params) + 2 * inputs


def _ways(mesh: Mesh) -> int:
    """How many ways rows are split."""
    return int(mesh.shape["data"] * mesh.shape["fsdp"])


def _rows_of(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, BATCH))


def _laid_out(x: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _rows(run: Shaped, count: int, length: int) -> Rows:
    assert run.config.rollouts is not None
    response = run.config.rollouts.max_response
    column: Any = run.rows((count, length), jnp.int32)
    mask: Any = run.rows((count, response))
    return Rows(column, column, column, mask)


def _batch(run: Shaped, count: int) -> OnPolicyBatch:
    """A micro-batch with rows as long as they may be."""
    rollouts, config = run.config.rollouts, run.config
    assert rollouts is not None
    response = rollouts.max_response
    per_token: Any = run.rows((count, response))
    batch = OnPolicyBatch(
        _rows(run, count, rollouts.max_prompt + response),
        rollout_log_probs=per_token,
        markers=per_token,
        weights=per_token,
    )
    if config.sdpo is not None:
        assert rollouts.max_teacher_prompt is not None
        teacher = _rows(run, count, rollouts.max_teacher_prompt + response)
        has_teacher: Any = run.rows((count,))
        return batch._replace(teacher=teacher, has_teacher=has_teacher)
    batch = batch._replace(advantages=per_token)
    if config.grpo is not None and config.grpo.kl_coefficient is not None:
        batch = batch._replace(reference_log_probs=per_token)
    return batch


def _slots(mesh: Mesh, decoder: CachedDecoder, count: int, length: int) -> Shapes:
    shapes = jax.eval_shape(lambda: empty_slots(decoder, count, length))
    cache_layout = NamedSharding(mesh, decoder.cache_spec())
    cache = jax.tree.map(lambda x: _laid_out(x, cache_layout), shapes.cache)
    rest = jax.tree.map(lambda x: _rows_of(mesh, x.shape, x.dtype), shapes._replace(cache=None))
    return rest._replace(cache=cache)


def _admission(count: int) -> Admission:
    """So many responses that begin."""
    settings = SamplingArrays.of([Sampling()] * count)
    settings = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), settings)
    whole: Any = _whole(count)
    names: Any = jax.ShapeDtypeStruct((count,), jnp.uint32)
    return Admission(whole, whole, whole, whole, names, whole, whole, settings)


def _whole(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def on_tpu(model: ModelConfig) -> ModelConfig:
    """The model as a TPU computes it: what `auto` stands for there."""
    backend = "splash" if model.compute.attention == "auto" else model.compute.attention
    return replace(model, compute=replace(model.compute, attention=backend))
