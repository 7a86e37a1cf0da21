"""How much there is to read: files, lines, and the files that one SDPO step goes through.

    python -m tests.benchmarks.size

A step is traced: counted are the package's files that run between `train.on_policy_step` and the update. The
libraries below the algorithm are counted apart: model, engine, tasks, text, data, distributed, analysis.
"""

import re
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import sdistill
from configs.signs import sdpo
from sdistill.config import SDPOConfig

PACKAGE = Path(sdistill.__file__).parent
LIBRARIES = ("model", "engine", "tasks", "text", "data", "distributed", "analysis")


def files_of_a_step() -> set[str]:
    """Files of the package in which code runs during the first step."""
    settings = sdpo.get_config("tiny").to_dict() | {"evaluation": None}
    problems = sdistill.open_problems("k3_pool")[:4]
    trainer = sdistill.Trainer(sdistill.parse(SDPOConfig, settings), problems)
    seen: set[str] = set()

    def trace(frame: FrameType, event: str, argument: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE) and frame.f_code.co_name not in ("<module>", "<lambda>", "__call__"):
            seen.add(str(path.relative_to(PACKAGE)))

    threading.setprofile(trace)
    sys.setprofile(trace)
    try:
        trainer.step([0, 1, 2, 3])
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return seen


def main() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    texts = [path.read_text() for path in files]
    engines = sum(len(re.findall(r"\bSlotEngine\(", text)) for text in texts)
    step = files_of_a_step()
    libraries = {name for name in step if name.split("/")[0] in LIBRARIES}
    print(f"Python files in sdistill/: {len(files)}")
    print(f"lines in sdistill/: {sum(text.count(chr(10)) for text in texts)}")
    print(f"places that construct an engine: {engines}")
    print(f"files of a step: {len(step - libraries)}: {', '.join(sorted(step - libraries))}")
    print(f"and of the libraries below: {len(libraries)}")


if __name__ == "__main__":
    main()
