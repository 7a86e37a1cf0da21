"""How far the responses of each arm of the probes still have the form that the puzzle's corpus taught.

    python -m tests.analysis.probe_forms runs/probes

Counted are whole attempts a response, and responses whose thinking holds numbers or signs outside of whole
attempts: sums that were left in the middle, or go on with other numbers than the problem's.
"""

import re
import sys
from pathlib import Path

from sdistill.storage import read_responses
from sdistill.tasks.problem import THINK_END
from sdistill.tasks.signs_puzzle import parse_question
from sdistill.types import Response


def form(generation: Response) -> tuple[int, bool]:
    """Whole attempts of a response; whether there are numbers or signs besides."""
    first, *others = parse_question(generation.problem)[0]
    steps = "".join(rf" [+-] {number} -?\d+" for number in others)
    thinking = generation.text.partition(THINK_END)[0]
    rest, attempts = re.subn(rf"(?<!\S){first} -?\d+{steps}(?!\S)", "", thinking)
    return attempts, re.search(r"[\d+]", rest) is not None


if __name__ == "__main__":
    print(f"{'arm':<28} {'responses':>9} {'attempts':>9} {'out of form':>12}")
    for path in sorted(Path(sys.argv[1]).glob("runs/probes/*-*/seed*/*.jsonl.gz")):
        forms = [form(generation) for generation in read_responses(path)]
        attempts, broken = (sum(values) / len(forms) for values in zip(*forms, strict=True))
        print(f"{path.parts[-3]:<28} {len(forms):>9} {attempts:>9.2f} {broken:>12.3f}")
