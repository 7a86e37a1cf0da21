"""The mesh of a training run: the one that its config names, or one that suits model and devices."""

from dataclasses import replace

import jax.numpy as jnp
from jax.sharding import Mesh

from sdistill.auto_mesh import Load
from sdistill.config import TrainConfig
from sdistill.engine.schedule import PREFILL_TOKENS
from sdistill.engine_mesh import mesh_for
from sdistill.model.config import ModelConfig
from sdistill.model.folders import find_model
from sdistill.model.hugging_face import from_hugging_face
from sdistill.model.weights import CONFIG_FILE


def mesh_of(config: TrainConfig) -> Mesh:
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


def load_of(config: TrainConfig, model: ModelConfig) -> Load:
    """What the run asks of its devices."""
    own = jnp.dtype(config.parameters).itemsize
    state = 2 * own + jnp.dtype(config.optimizer.first_moment).itemsize
    if config.guide is not None and config.guide.teacher.weights != "live":
        state += jnp.dtype(config.guide.teacher.dtype).itemsize
    if config.rollouts is not None:
        sampled, slots = config.rollouts, config.slots
        student = sampled.max_prompt + sampled.max_response
        longest = (sampled.max_teacher_prompt or sampled.max_prompt) + sampled.max_response
        cached, prompt = slots * student, sampled.max_prompt
    else:
        assert config.examples is not None
        student = longest = config.examples.row_length
        slots = cached = prompt = 0
    if (evaluated := config.evaluation) is not None:
        length = evaluated.max_prompt + evaluated.max_response
        slots, cached = slots or evaluated.slots, max(cached, evaluated.slots * length)
        prompt = max(prompt, evaluated.max_prompt)
    return Load(
        replace(model, compute=config.compute),
        state=state,
        gradient=own,
        rows=config.update_rows,
        micro_rows=config.micro_rows or config.update_rows,
        student=student,
        longest=longest,
        chunk=config.chunk,
        slots=slots,
        cached=cached,
        prompts=max(1, PREFILL_TOKENS // prompt) if prompt else 0,
        prompt=prompt,
    )
