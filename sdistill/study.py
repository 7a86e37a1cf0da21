"""The whole study of arXiv 2603.24472 on the signs puzzle, section by section, with a report.

    python -m sdistill.study --config configs/signs/study.py --workdir runs/study
    python -m sdistill.study --config configs/signs/fixes.py --workdir runs/fixes
    python -m sdistill.study --config configs/signs/probes.py --workdir runs/probes

The sections are those of the paper: (3) what richer contexts do to responses, (4) SFT on unguided and on
guided responses, (5) SDPO against GRPO, then section 3 again of the models so trained, (6) task coverage. The
other two studies have one section each: the published fixes of SDPO, and the causal probes of epistemic
words.

A study directory holds responses, runs, measurements and the report (docs/files.md). Measurements are
computed from the files, and the files depend on the settings only. So a study that was killed continues, and
ends with the same `results.jsonl`.
"""

import json
import platform
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sdistill import command
from sdistill.experiments.attribution import attribution_section
from sdistill.experiments.config import FixesConfig, ProbesConfig, RunsConfig, StudyConfig
from sdistill.experiments.on_policy import coverage_section, fixes_section, on_policy_section
from sdistill.experiments.probes import probes_section
from sdistill.experiments.richness import richness_section, trained_richness_section
from sdistill.experiments.sft import sft_section
from sdistill.experiments.study import Study
from sdistill.model.folders import SIGNS_BASE
from sdistill.model.weights import load_pretrained
from sdistill.report.build import print_section, write_report
from sdistill.report.lookup import Index
from sdistill.report.runs import read_run
from sdistill.settings import parse, require, to_json
from sdistill.storage import (
    CONFIG_FILE,
    check_workdir,
    read_measurements,
    write_atomically,
    write_measurements,
)
from sdistill.tasks.signs_puzzle import SignsTask
from sdistill.text.chat import SignsChat
from sdistill.text.tokenizer import SIGNS_TOKENIZER, SentencePieceTokenizer
from sdistill.types import SCHEMA_VERSION, Measurement

SECTIONS: dict[type[RunsConfig], dict[str, Callable[[Study], list[Measurement]]]] = {
    StudyConfig: {
        "richness": richness_section,
        "sft": sft_section,
        "on_policy": on_policy_section,
        "attribution": attribution_section,
        "trained_richness": trained_richness_section,
        "coverage": coverage_section,
    },
    FixesConfig: {"fixes": fixes_section, "attribution": attribution_section},
    ProbesConfig: {"probes": probes_section},
}


def run_study(config: RunsConfig, workdir: Path, console: Console) -> Path:
    """Runs or continues the study; returns the path of the report.

    Raises:
      ConfigError: before any work, if the settings cannot be used or `workdir` belongs to others.
    """
    require(
        jax.process_count() == 1,
        f"sdistill.study runs in one process, and {jax.process_count()} were started; it is small: start it "
        "on one machine. sdistill.train, sdistill.generate and sdistill.evaluate run in several",
    )
    workdir = workdir.resolve()  # runs keep the paths of their data, however the directory was named
    check_workdir(workdir, to_json(config))
    write_atomically(workdir / CONFIG_FILE, to_json(config).encode())
    write_atomically(workdir / "environment.json", json.dumps(environment(config), indent=1).encode())
    before = read_measurements(workdir / "results.jsonl")
    found: list[Measurement] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        chat = SignsChat(SentencePieceTokenizer(SIGNS_TOKENIZER))
        study = Study(config, workdir, load_pretrained(SIGNS_BASE), chat, SignsTask(), progress)
        for name, section in SECTIONS[type(config)].items():
            found += section(study)
            done = {measurement.section for measurement in found}
            kept = [measurement for measurement in before if measurement.section not in done]
            write_measurements(workdir / "results.jsonl", found + kept)
            print_section(name, Index(found), console)
    return write_report(read_run(workdir))


def environment(config: RunsConfig) -> dict[str, str]:
    """Versions, machine and seeds, for the report."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "sentencepiece")
    return {
        "schema": str(SCHEMA_VERSION),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "platform": platform.machine(),
        "devices": ", ".join(str(device) for device in jax.devices()),
        "commit": commit.stdout.strip() or "not a git checkout",
        "seeds": ", ".join(map(str, config.seeds)),
    }


def main(values: dict[str, Any], workdir: Path) -> None:
    """Runs the study of the fixes or of the probes if the settings name some, else that of the paper."""
    console = Console()
    kinds: dict[str, type[RunsConfig]] = {"fixes": FixesConfig, "probes": ProbesConfig}
    config = parse(next((kind for field, kind in kinds.items() if field in values), StudyConfig), values)
    console.print(f"report: {run_study(config, workdir, console)}")


if __name__ == "__main__":
    command.run(main, *SECTIONS)
