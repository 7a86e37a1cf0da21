"""Matched training sets from generations: the same problems, equally many correct responses each (section 4).

    python -m sdistill.match runs/unguided runs/guided --responses 800 --per_problem 8 --out runs/matched

For each generation, named as its directory, `--out` gets

    unguided.jsonl.gz       {prompt, response}, as `examples.source` of a training run takes it
    unguided.json           the same as conversations, for LLaMA-Factory
    dataset_info.json       what LLaMA-Factory has to know of these files

Prompts are the student's: without the context that a response was sampled under.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sdistill.data.catalogue import open_problems
from sdistill.generate import GenerateConfig, responses_by_problem
from sdistill.model.folders import load_chat
from sdistill.settings import ConfigError, parse, require
from sdistill.storage import CONFIG_FILE, write_atomically, write_records
from sdistill.tasks.problem import THINK_START, Problem
from sdistill.text.chat import Chat
from sdistill.types import Response

Correct = Mapping[str, Sequence[Response]]
"""Problem → its correct responses."""


LLAMA_FACTORY = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages"},
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    },
}
"""How LLaMA-Factory reads a set (the `sharegpt` format of its data/README.md, with OpenAI's names)."""


def matched(
    sets: Mapping[str, Correct], problems: Sequence[str], *, responses: int, per_problem: int
) -> dict[str, list[Response]]:
    """As many correct responses of every set to each problem, in the order of the problems.

    Args:
      sets: Name → the correct responses to each problem.
      problems: Ids, in the order in which they are taken.
      responses: Of each set, at most; fewer if the sets have no more in common.
      per_problem: To one problem, at most.
    """
    chosen: dict[str, list[Response]] = {name: [] for name in sets}
    taken = 0
    for problem in problems:
        count = min(per_problem, responses - taken, *(len(found.get(problem, ())) for found in sets.values()))
        taken += count
        for name, found in sets.items():
            chosen[name] += found.get(problem, ())[:count]
    return chosen


def match(directories: Sequence[Path], out: Path, *, responses: int, per_problem: int) -> dict[str, int]:
    """Writes the sets of these generations; returns how many responses, and to how many problems, each has.

    Raises:
      ConfigError: if a generation is not complete, if they are of different problems or models, if they
        have no problem in common, or if a number is not positive.
    """
    require(responses > 0, f"--responses={responses} must be positive")
    require(per_problem > 0, f"--per_problem={per_problem} must be positive")
    require(len(directories) > 1, "give two generations or more")
    require(not (out.exists() and any(out.iterdir())), f"{out} is not empty; give a new folder")
    groups = {directory.name: responses_by_problem(directory) for directory in directories}
    require(len(groups) == len(directories), "the directories' last parts must differ: they name the sets")
    configs = [parse(GenerateConfig, json.loads((d / CONFIG_FILE).read_text())) for d in directories]
    config = configs[0]
    for field in ("split", "init_from", "tokenizer", "data_dir"):
        values = {getattr(each, field) for each in configs}
        require(len(values) == 1, f"{field} differs among the generations: {sorted(map(str, values))}")
    correct = {
        name: {problem: [r for r in group if r.correct] for problem, group in found.items()}
        for name, found in groups.items()
    }
    order = list(groups[directories[0].name])
    chosen = matched(correct, order, responses=responses, per_problem=per_problem)
    if not (taken := chosen[directories[0].name]):
        raise ConfigError("no problem has a correct response in every generation; sample more")
    chat = load_chat(config.tokenizer or config.init_from)
    problems = {p.id: p for p in open_problems(config.split, config.data_dir)}
    for name, found in chosen.items():
        posed = [(problems[response.problem], response.text) for response in found]
        write_set(out, name, posed, chat, thinking=config.thinking)
    write_json(
        out / "dataset_info.json", {name: {"file_name": f"{name}.json", **LLAMA_FACTORY} for name in chosen}
    )
    return {"responses": len(taken), "problems": len({response.problem for response in taken})}


def write_set(
    out: Path, name: str, posed: Sequence[tuple[Problem, str]], chat: Chat, *, thinking: bool
) -> None:
    """Writes one set in both forms."""
    examples, conversations = [], []
    for problem, response in posed:
        prompt = chat.render(problem.messages, thinking=thinking)
        examples.append({"prompt": prompt, "response": response})
        # Templates that open the thinking leave the tag to the prompt; a conversation has it in the answer.
        opened = prompt[prompt.rindex(THINK_START) :] if prompt.rstrip().endswith(THINK_START) else ""
        turn = {"role": "assistant", "content": opened + response}
        conversations.append({"messages": [*map(dict, problem.messages), turn]})
    write_records(out / f"{name}.jsonl.gz", examples)
    write_json(out / f"{name}.json", conversations)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON for people and for LLaMA-Factory, atomically."""
    write_atomically(path, (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        "python -m sdistill.match",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("generations", nargs="+", type=Path, help="directories of complete generations")
    of_set, of_problem = "of each set, at most", "responses to one problem, at most"
    parser.add_argument("--responses", type=int, default=800, help=f"{of_set} (default %(default)s)")
    parser.add_argument("--per_problem", type=int, default=8, help=f"{of_problem} (default %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    args = parser.parse_args()
    try:
        counts = match(args.generations, args.out, responses=args.responses, per_problem=args.per_problem)
    except (ConfigError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    table = Table("set", "responses", "problems", "file")
    for directory in args.generations:
        path = args.out / f"{directory.name}.jsonl.gz"
        table.add_row(directory.name, str(counts["responses"]), str(counts["problems"]), str(path))
    Console().print(table)
    if counts["responses"] < args.responses:
        print(f"only {counts['responses']} of {args.responses} responses could be matched; sample more")


if __name__ == "__main__":
    main()
