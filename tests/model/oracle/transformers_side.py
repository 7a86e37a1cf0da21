"""What transformers computes. Nothing else imports it or torch: they are oracles, no part of the library."""

import contextlib
import copy
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import transformers

from tests.model.oracle.cases import RESPONSE, Case, batch, prompt

torch.set_num_threads(1)  # the models are so small that threads only wait for each other


def config(case: Case) -> transformers.PreTrainedConfig:
    """Its config of a case."""
    return transformers.AutoConfig.for_model(case.model_type, **copy.deepcopy(case.fields))  # it changes them


def model(case: Case, dtype: torch.dtype = torch.float32) -> transformers.PreTrainedModel:
    """The case's model with the case's weights, in eager attention."""
    made = transformers.AutoModelForCausalLM.from_config(config(case), attn_implementation="eager")
    tensors = made.state_dict()
    if made.config.tie_word_embeddings:
        tensors.pop("lm_head.weight")
    weights = case.weights({name: tuple(value.shape) for name, value in tensors.items()})
    made.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()}, strict=False)
    made.tie_weights()
    return made.to(dtype).eval()


def logits(of: transformers.PreTrainedModel, tokens: np.ndarray) -> np.ndarray:
    """Logits [T, V] of one sequence on its own."""
    with torch.no_grad():
        return of(torch.from_numpy(tokens)[None]).logits[0].float().numpy()


def greedy(of: transformers.PreTrainedModel, case: Case) -> np.ndarray:
    """The tokens that its `generate` appends to the prompt."""
    tokens = torch.from_numpy(prompt(case))[None]
    out = of.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=RESPONSE,
        do_sample=False,
        pad_token_id=0,
    )
    return out[0, tokens.shape[1] :].numpy()


def gradients(of: transformers.PreTrainedModel, case: Case) -> dict[str, np.ndarray]:
    """Gradient of the mean cross-entropy of the next token, of every parameter."""
    tokens = torch.from_numpy(batch(case))
    predicted = of(tokens).logits[:, :-1]
    of.zero_grad()
    torch.nn.functional.cross_entropy(predicted.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return {name: value.grad.numpy() for name, value in of.named_parameters()}


def load(folder: Path) -> tuple[transformers.PreTrainedModel, list[str]]:
    """The model in a folder, and everything that transformers had to say about it."""
    with _warnings() as said:
        made, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype="auto", output_loading_info=True
        )
    said += [f"{kind}: {sorted(map(str, found))}" for kind, found in info.items() if found]
    return made.eval(), said


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collects what transformers logs as a warning or worse."""
    said: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler, logger = Collector(logging.WARNING), logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


def filled_config(folder: Path) -> transformers.PreTrainedConfig:
    """A `config.json` and everything that it leaves open."""
    return transformers.AutoConfig.from_pretrained(folder)


def parameter_count(folder: Path) -> int:
    """Of the model that a `config.json` describes, without allocating it."""
    with torch.device("meta"):
        made = transformers.AutoModelForCausalLM.from_config(filled_config(folder))
    return sum(value.numel() for value in made.parameters())
