"""Every command that README.md and docs/ show is accepted as it is printed; short ones run.

Commands of Python are read by their own parsers, configs by their settings, and scripts for pods make dry
runs. What needs a cloud, a TPU or hours ends there. A command that no rule here covers fails.
"""

import argparse
import importlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.compile_check import settings_of
from sdistill import generate, study, train
from tests.processes import ROOT, Commands

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "colab").glob("*.md"))]
PYTHON = re.compile(r"(?:\.venv/bin/)?python3? (.*)")
AS_MODULE = re.compile(r"(?:\.venv/bin/)?python3? -m (.*)")
PREFIX = re.compile(r"(?:nohup|taskset -c \d+|srun(?: --\S+)*|[A-Z_]+=\S+) (?=\S)")

NOT_RUN = {
    "gcloud": "needs an account with Google Cloud",
    "xpk": "needs a cluster of Google Cloud",
    "pip": "installs extras of pyproject.toml",
    "git": "a word of the text",
    "sudo": "looks for processes that were killed for memory",
    "bash launch/quickstart.sh": "installs; driven with stand-ins in tests/launch/test_launch.py",
    "bash launch/test.sh": "runs this",
}
"""By first word, or whole."""

ARRAYS = {
    '"${pod[@]}"': "--project my-project --zone us-east5-b --name sdistill",
    '"${where[@]}"': "--project=my-project --zone=us-east5-b --cluster=ours",
}
"""What pods.md writes for these flags."""


def printed_commands(page: Path) -> list[str]:
    """Of code, indented or fenced, and what is quoted within lines; without comments, and loops unrolled."""
    text = re.sub(r"^```(?:diff|python)\n.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    text = re.sub(r" *\\\n\s+", " ", text)
    lines = [line.strip() for line in re.findall(r"^(?:    +|(?=bash|python|pip))(.*)$", text, re.M)]
    lines += re.findall(r"`([^`\n]+)`", text)
    found, loop = [], [""]
    for line in lines:
        if line.startswith("for step in "):
            loop = line.removeprefix("for step in ").removesuffix("; do").split()
        elif line == "done":
            loop = [""]
        for part in re.sub(r"\s#.*|\s*&$|\s*>\S+.*", "", line).split(" && "):
            command = PREFIX.sub("", part.strip())
            for array, values in ARRAYS.items():
                command = command.replace(array, values)
            first = command.split(" ")[0]
            if (
                re.match(r"(?:\.venv/bin/)?python3? (?:-m \S|[\w/]+\.py)|bash \S|pytest \S", command)
                or first in NOT_RUN
            ):
                found += [command.replace("$step", step) for step in loop]
    return list(dict.fromkeys(found))


class Accepted(Exception):
    """A command has read its arguments."""


def accept_config(module: str, arguments: list[str]) -> None:
    """Parses the config as the command does."""
    parser = argparse.ArgumentParser()
    flags = (
        {"config": True, "topology": True} if "compile_check" in module else {"config": True, "workdir": True}
    )
    for name, required in flags.items():
        parser.add_argument(f"--{name}", required=required)
    given = parser.parse_args(arguments)
    file, _, argument = given.config.partition(":")
    recipe = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    values = recipe.get_config(*[argument] if argument else []).to_dict()
    if "compile_check" in module:
        settings_of(values)
        return
    command, work = {
        "sdistill.train": (train, "train"),
        "sdistill.generate": (generate, "generate"),
        "sdistill.study": (study, "run_study"),
    }[module]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, work, raise_accepted)
        with pytest.raises(Accepted):
            command.main(values, Path(given.workdir))


def raise_accepted(*_: object, **__: object) -> None:
    raise Accepted


def accept_flags(module: str, arguments: list[str]) -> None:
    """Runs the command up to where its parser has accepted the arguments."""

    def parse_args(parser, given=None, namespace=None):
        parser.parse_known_args(given, namespace)
        _, unknown = parser.parse_known_args(given, namespace)
        assert not unknown
        raise Accepted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(sys, "argv", [module, *arguments])
        with pytest.raises(Accepted), warnings.catch_warnings(action="ignore"):  # that it is imported already
            runpy.run_module(module, run_name="__main__", alter_sys=True)


def accept_python(command: str) -> None:
    words = shlex.split(PYTHON.fullmatch(command)[1])
    if words[0] == "-m":
        module, *arguments = words[1:]
    else:
        module, *arguments = words[0].removesuffix(".py").replace("/", "."), *words[1:]
    arguments = [
        {"…": "configs/signs/sdpo.py", "sdistill.train": "sdistill.train"}.get(a, a) for a in arguments
    ]
    if module == "pytest":
        accept_pytest(" ".join(["pytest", *arguments]))
        return
    path = ROOT / module.replace(".", "/")
    source = (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    if not arguments:  # of commands in lists of files, or that take none
        return
    if "command.run(" in source or "command.start(" in source:
        accept_config(module, arguments)
    elif "argparse" in source:
        accept_flags(module, arguments)
    else:
        assert "sys.argv" in source and not [a for a in arguments if a.startswith("-")]


def accept_pytest(command: str) -> None:
    """Files are there, and a test has the name."""
    _, *words = shlex.split(command)
    paths = [ROOT / word for word in words if word.startswith("tests")]
    assert all(path.exists() for path in paths)
    if "-k" in words:
        files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("test_*.py"))]
        assert any(re.search(rf"def test_\w*{words[words.index('-k') + 1]}", f.read_text()) for f in files)


def accept_bash(command: str) -> None:
    """The script makes a dry run with these flags."""
    _, script, *arguments = shlex.split(command)
    after = arguments.index("--") if "--" in arguments else len(arguments)
    own = [a for a in arguments[:after] if a != "--dry_run"]
    done = subprocess.run(
        ["bash", script, *own, "--dry_run", *arguments[after:]], cwd=ROOT, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr


def accept(command: str) -> None:
    """Raises if the command would not take what follows it."""
    if command in NOT_RUN or command.split(" ")[0] in NOT_RUN:
        return
    if PYTHON.fullmatch(command):
        accept_python(command)
    elif command.startswith("pytest "):
        accept_pytest(command)
    else:
        accept_bash(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_printed_commands_are_accepted(page):
    refused = []
    for command in printed_commands(page):
        try:
            accept(command)
        except (Exception, SystemExit) as error:
            refused.append((command, repr(error)))
    assert refused == []


def test_commands_are_found():
    """And one whose flag is wrong is refused."""
    assert sum(len(printed_commands(page)) for page in PAGES) > 90
    wrong = "python -m sdistill.evaluate --model signs_base --split k3_test --problems 3"
    for command in (wrong, "bash launch/pod/create.sh --zone a", "python -m sdistill.train --config x.py"):
        with pytest.raises((AssertionError, SystemExit, argparse.ArgumentError)):
            accept(command)


# ── Short ones run ───────────────────────────────────────────────────────────────────────────────


def few(command: str) -> str:
    return f"{command} --num_problems 2 --num_samples 2 --slots 4"


def tiny(command: str) -> str:
    return re.sub(r"\.py(:\w+)?", r"\g<0>:tiny", command)


WALK: dict[str, Callable[[str], str]] = {
    r"sdistill\.train --config configs/signs/sdpo\.py .*": tiny,
    r"sdistill\.evaluate .*": few,
    r"sdistill\.generate --config configs/paper/section[34]\.py:.*": tiny,
    r"sdistill\.match .*": str,
    r"sdistill\.train --config configs/paper/section4_sft\.py.*": tiny,
    r"sdistill\.report runs/study( .*)?": str,
    r"tests\.benchmarks\.size": str,
}
"""What follows `python -m` on a page, in the order to run in, and what makes it small."""


@pytest.mark.long
def test_printed_commands_run_one_after_the_other(tmp_path, data_dir):
    """Each in a process of its own, in a directory that looks like the repository's."""
    commands_of_pages = [command for page in PAGES for command in printed_commands(page)]
    printed = dict.fromkeys(match[1] for c in commands_of_pages if (match := AS_MODULE.match(c)))
    for name in ("configs", "sdistill", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    for run in ("study", "again"):
        shutil.copytree(ROOT / "results" / "signs", tmp_path / "runs" / run)
    commands = Commands(data_dir, folder=tmp_path)
    for pattern, tiny in WALK.items():
        walked = [command for command in printed if re.fullmatch(pattern, command)]
        assert walked, pattern
        for command in walked:
            commands.succeed(*shlex.split(tiny(command)))
    for made in ("sdpo/model", "section3/regenerated_again", "section4/sft_guided/model", "both/report.html"):
        assert (tmp_path / "runs" / made).exists()
