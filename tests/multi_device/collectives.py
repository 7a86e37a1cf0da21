"""Prints, for the engine's programs on eight devices, what they send between them: kind and elements."""

import json
import re

import jax
import numpy as np

from sdistill.distributed.mesh import MeshConfig, make_mesh
from sdistill.distributed.rules import BATCH, SAMPLING, TRAINING, parameter_shardings, place
from sdistill.engine.model import CachedDecoder
from sdistill.engine.programs import Slots, admit, decode, empty_slots
from tests import tiny

SENT = re.compile(r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(-start)?\(")


def sent(program) -> list[tuple[str, int]]:
    """Kind and number of elements of everything that a compiled program sends."""
    found = []
    for line in program.as_text().splitlines():
        if match := SENT.search(line):
            shapes = re.findall(r"\w+\[([\d,]*)\]", match.group(1))
            sizes = [int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes]
            found.append((match.group(2), max(sizes)))
    return found


def main() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    model = CachedDecoder(tiny.CONFIG)
    trained = place(tiny.parameters(), mesh, TRAINING)
    params = model.for_sampling(trained)
    params = jax.device_put(params, parameter_shardings(params, mesh, SAMPLING))
    rows = jax.NamedSharding(mesh, BATCH)
    shardings = Slots(jax.NamedSharding(mesh, model.cache_spec()), rows)
    slots = jax.jit(lambda: empty_slots(model, 16, 24), out_shardings=shardings)()
    step = jax.jit(lambda *inputs: decode(*inputs, model=model, steps=4), out_shardings=(shardings, None))
    zeros, new = np.zeros(4, np.int32), empty_slots(model, 4, 8)
    begin = jax.jit(lambda *inputs: admit(*inputs, model=model), out_shardings=shardings)
    allowed = np.zeros(tiny.CONFIG.vocab_size, bool)  # nothing is forbidden
    programs = {
        "decode": step.lower(
            params, slots, np.zeros(16, bool), np.int32(4), zeros[:2], np.array([5]), allowed
        ),
        "admit": begin.lower(slots, new.cache, new.rows, zeros, zeros),
    }
    print(json.dumps({name: sent(program.compile()) for name, program in programs.items()}))


if __name__ == "__main__":
    main()
