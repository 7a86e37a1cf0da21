"""How much there is to read: files, lines, and the files that one SDPO step goes through.

    python -m tests.benchmarks.size

One step of SDPO runs under cProfile, and the package's files in which code ran are counted: those of its
stages, and apart from them settings, types and clocks, and the libraries below (model, engine, tasks, ...).
"""

import cProfile
import pstats
import re
from pathlib import Path

import sdistill
from configs.signs import sdpo
from sdistill.config import SDPOConfig

PACKAGE = Path(sdistill.__file__).parent
LIBRARIES = ("model", "engine", "tasks", "text", "data", "divergence", "distributed", "analysis")
SUPPORT = ("api.py", "types.py", "config.py", "settings.py", "clock.py", "flops.py")


def files_of_a_step() -> set[str]:
    """Files of the package in which code runs during the first step."""
    settings = sdpo.get_config("tiny").to_dict() | {"evaluation": None}
    problems = sdistill.open_problems("k3_pool")[:4]
    trainer = sdistill.Trainer(sdistill.parse(SDPOConfig, settings), problems)
    with cProfile.Profile() as profile:
        trainer.step([0, 1, 2, 3])
    paths = [Path(file) for file, _, function in pstats.Stats(profile).stats if function != "<module>"]
    return {str(path.relative_to(PACKAGE)) for path in paths if path.is_relative_to(PACKAGE)}


def main() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    texts = [path.read_text() for path in files]
    engines = sum(len(re.findall(r"\bSlotEngine\(", text)) for text in texts)
    step = files_of_a_step()
    libraries, support = (
        {name for name in step if name.split("/")[0] in LIBRARIES},
        step.intersection(SUPPORT),
    )
    print(f"Python files in sdistill/: {len(files)}")
    print(f"lines in sdistill/: {sum(text.count(chr(10)) for text in texts)}")
    print(f"places that construct an engine: {engines}")
    stages = step - libraries - support
    print(f"files of a step: {len(stages)}: {', '.join(sorted(stages))}")
    print(f"settings, types and clocks that it uses: {len(support)}; libraries below it: {len(libraries)}")


if __name__ == "__main__":
    main()
