"""What transformers computed, kept in small files, so that comparing with it needs no transformers.

    python -m tests.model.oracle.golden

writes the files again: config.json, names and shapes of tensors, and numbers.npz.
"""

import json
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from tests.model.oracle.cases import CASES, Case, sequences

FOLDER = Path(__file__).parents[1] / "golden"
PROJECTIONS = 4


def picked(length: int) -> np.ndarray:
    """Positions whose logits are kept, from the first to the last."""
    return np.unique(np.linspace(0, length - 1, 8).astype(int))


def projected(name: str, gradient: np.ndarray) -> np.ndarray:
    """The norm of a tensor's gradient and what it is along a few random directions of length √size."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    flat = gradient.astype(np.float64).ravel()
    return np.array([np.linalg.norm(flat), *(rng.standard_normal((PROJECTIONS, flat.size)) @ flat)])


def shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that transformers saves."""
    return {k: tuple(v) for k, v in json.loads((FOLDER / case.folder / "tensors.json").read_text()).items()}


def numbers(case: Case) -> dict[str, np.ndarray]:
    """The arrays of a case."""
    with np.load(FOLDER / case.folder / "numbers.npz") as file:
        return dict(file)


def computed(case: Case, tensors: Iterable[str]) -> dict[str, np.ndarray]:
    """The arrays of a case, as transformers computes them, gradients in the order of these tensors."""
    from tests.model.oracle import transformers_side as theirs  # here only: all else works without

    model = theirs.model(case)
    gradients = theirs.gradients(model, case)
    logits = [theirs.logits(model, tokens)[picked(len(tokens))] for tokens in sequences(case)]
    return {
        **{f"logits {i}": kept for i, kept in enumerate(logits)},
        "greedy": theirs.greedy(model, case).astype(np.uint8),
        "gradients": np.array([projected(name, gradients[name]) for name in tensors]),
    }


def write_model(case: Case, folder: Path) -> None:
    """The model folder that transformers would write."""
    (folder / "config.json").write_text((FOLDER / case.folder / "config.json").read_text())
    save_file(case.weights(shapes(case)), folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Computes every case with transformers and writes its files."""
    from tests.model.oracle import transformers_side as theirs

    for case in CASES.values():
        folder = FOLDER / case.folder
        folder.mkdir(parents=True, exist_ok=True)
        model = theirs.model(case)
        with tempfile.TemporaryDirectory() as saved:
            model.save_pretrained(saved)
            (folder / "config.json").write_text((Path(saved) / "config.json").read_text().strip() + "\n")
            with safe_open(f"{saved}/model.safetensors", framework="np") as file:
                tensors = {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}
        lines = ",\n".join(f'  "{name}": {shape}' for name, shape in tensors.items())
        (folder / "tensors.json").write_text(f"{{\n{lines}\n}}\n")
        np.savez_compressed(folder / "numbers.npz", **computed(case, tensors))
        print(case.name)


if __name__ == "__main__":
    main()
