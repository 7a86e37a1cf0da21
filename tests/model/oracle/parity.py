"""How far the decoder is from transformers: every model of `cases` against every way of computing it.

    python -m tests.model.oracle.parity [--markdown]

An error is max |ours − theirs| / max |theirs|, over all logits, or over one parameter's gradient (and then
the worst parameter). Both sides compute in float32 unless it says otherwise.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from tests.model.oracle import ours
from tests.model.oracle.cases import CASES, LAYOUT, Case, sequences

TOLERANCES = {
    "whole": 2e-5,
    "padded left": 2e-5,
    "padded right": 2e-5,
    "packed": 2e-5,
    "greedy": 0,
    "gradient": 1e-4,
    "bfloat16": 2e-2,
}
"""What is compared → largest error. `greedy` is a number of tokens; `bfloat16` is ours, against float32."""

_NOTES = "transformers in bfloat16"


def error(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """The largest difference, as a fraction of the largest of their numbers."""
    largest = max(np.abs(b).max() for b in theirs)
    return float(max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True)) / largest)


def logit_errors(found: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> dict[str, float]:
    """The error of each kind of layout."""
    kinds = [kind for kind, *_ in LAYOUT]
    return {
        kind: error(*([x for x, k in zip(xs, kinds, strict=True) if k == kind] for xs in (found, theirs)))
        for kind in dict.fromkeys(kinds)
    }


def gradient_error(found: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> float:
    """The error of the worst parameter."""
    assert found.keys() == theirs.keys()
    return max(error([found[name]], [theirs[name]]) for name in theirs)


def errors(case: Case) -> dict[str, float]:
    """Every error of a case, and how far transformers' bfloat16 is from its own float32."""
    import torch

    from tests.model.oracle import transformers_side as theirs  # here only: importing it takes seconds

    model = theirs.model(case)
    expected = [theirs.logits(model, tokens) for tokens in sequences(case)]
    rounded = theirs.model(case, torch.bfloat16)
    tokens = theirs.greedy(model, case)
    return {
        **logit_errors(ours.logits(case), expected),
        "greedy": float(np.sum(ours.greedy(case) != tokens)),
        "gradient": gradient_error(ours.gradients(case), theirs.gradients(model, case)),
        "bfloat16": error(ours.logits(case, "bfloat16", "bfloat16"), expected),
        _NOTES: error([theirs.logits(rounded, tokens) for tokens in sequences(case)], expected),
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--markdown", action="store_true", help="as it stands in the documentation")
    markdown = parser.parse_args().markdown
    header = ["model", *TOLERANCES, _NOTES]
    rows = [["tolerance", *(f"{limit:.0e}" if limit else "0" for limit in TOLERANCES.values()), "–"]]
    for case in CASES.values():
        found = errors(case)
        cells = [f"{found[name]:.0f}" if name == "greedy" else f"{found[name]:.1e}" for name in header[1:]]
        rows.append([case.name, *cells])
        print(case.name, file=sys.stderr)
    if markdown:
        for cells in (header, ["---"] * len(header), *rows):
            print(f"| {' | '.join(cells)} |")
        return
    table = Table(*header)
    for cells in rows:
        table.add_row(*cells)
    Console().print(table)


if __name__ == "__main__":
    main()
