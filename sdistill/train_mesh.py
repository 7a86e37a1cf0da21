"""The mesh of a training run: the one that its config names, or one that suits model and devices."""

from dataclasses import replace

import jax.numpy as jnp
from jax.sharding import Mesh

from sdistill.auto_mesh import Load
from sdistill.config import AnyTrainConfig, SFTConfig
from sdistill.engine.schedule import PREFILL_TOKENS
from sdistill.engine_mesh import mesh_for
from sdistill.model.config import ModelConfig
from sdistill.model.folders import find_model
from sdistill.model.hugging_face import from_hugging_face
from sdistill.model.weights import CONFIG_FILE


def mesh_of(config: AnyTrainConfig) -> Mesh:
    """The mesh over this job's devices.

    Raises:
      ConfigError: if the config's mesh has more devices than there are, or cannot split its model; or if the
        config leaves the choice, and no mesh fits.
      FileNotFoundError: if there is no such model.
    """

    def load() -> Load:
        model = config.model
        if model is None:
            model = from_hugging_face(find_model(str(config.init_from)) / CONFIG_FILE)
        return load_of(config, model)

    return mesh_for(config.mesh, load)


def load_of(config: AnyTrainConfig, model: ModelConfig) -> Load:
    """What the run needs of its devices."""
    own = jnp.dtype(config.param_dtype).itemsize
    state = 2 * own + jnp.dtype(config.optimizer.first_moment).itemsize
    slots = cached = prompt = 0
    if isinstance(config, SFTConfig):
        student = longest = config.examples.sequence_length
    else:
        rollouts, teacher = config.rollouts, config.teacher
        if teacher is not None and teacher.weights != "live":
            state += jnp.dtype(teacher.dtype).itemsize
        prompt = rollouts.max_prompt_length
        student = prompt + rollouts.max_response_length
        longest = (teacher.max_prompt_length if teacher else prompt) + rollouts.max_response_length
        slots = config.slots
        cached = slots * student
    if (evaluation := config.evaluation) is not None:
        length = evaluation.max_prompt_length + evaluation.max_response_length
        slots, cached = slots or evaluation.slots, max(cached, evaluation.slots * length)
        prompt = max(prompt, evaluation.max_prompt_length)
    return Load(
        replace(model, compute=config.compute),
        state=state,
        gradient=own,
        rows=config.update_size,
        micro_rows=config.micro_batch_size or config.update_size,
        student=student,
        longest=longest,
        chunk=config.logits_chunk_size,
        slots=slots,
        cached=cached,
        prompts=max(1, PREFILL_TOKENS // prompt) if prompt else 0,
        prompt=prompt,
    )
