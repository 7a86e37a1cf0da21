"""Measures the mathematics verifier: agreement, speed, and what it does with hostile answers.

    python -m tests.benchmarks.bench_verify [--data DIR] [--workers 2] [--hostile 1000] [--json]

Agreement with what is known:
    rewritings  every gold answer of MATH-500 and AIME24, as itself, in common other ways of writing, and as
                wrong neighbours (`tests/tasks/rewritings.py`); known from how each was made
    solutions   the 500 worked solutions of MATH-500, as responses to their problems; all are right
    strangers   gold answers as answers to other problems, drawn at random; all are wrong
    parity      the rewritings again, in parity mode, which judges as the authors' released code does
Speed: verdicts a second on each of these, on those rewritings that go to a worker, and of one answer
at the end of 400,000 characters. Hostile: answers made to hang or crash (`tests/tasks/adversarial.py`); how
long one took at most, and what processes are left. DIR holds the parquet files of the authors' repository,
math500.parquet and aime24.parquet.
"""

import argparse
import json
import os
import random
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet
from rich.console import Console
from rich.table import Table

from sdistill.tasks.mathematics import MathematicsTask
from sdistill.tasks.problem import Problem, Verdict
from tests.public_files import FOLDER
from tests.tasks.adversarial import answers
from tests.tasks.rewritings import rewritings

PUBLIC = FOLDER / "math"
GOLDS = ("7", r"\frac{1}{2}", "x^2+1", "(1,2)")  # what hostile answers are compared with


class Case(NamedTuple):
    gold: str
    response: str
    rule: str
    right: bool


def column(folder: Path, name: str, field: str) -> list[dict[str, Any]]:
    """A column of records; one set keeps them as JSON text, the other nested."""
    records = pyarrow.parquet.read_table(folder / f"{name}.parquet")[field].to_pylist()
    return [json.loads(record) if isinstance(record, str) else record for record in records]


def gold_answers(folder: Path, *names: str) -> list[str]:
    """Every distinct gold answer."""
    return list(
        dict.fromkeys(r["ground_truth"] for name in names for r in column(folder, name, "reward_model"))
    )


def rewritten(golds: Sequence[str]) -> list[Case]:
    return [Case(gold, rf"\boxed{{{r.text}}}", r.rule, r.right) for gold in golds for r in rewritings(gold)]


def solutions(folder: Path) -> list[Case]:
    models, extra = column(folder, "math500", "reward_model"), column(folder, "math500", "extra_info")
    both = zip(models, extra, strict=True)
    return [Case(model["ground_truth"], more["solution"], "solution", True) for model, more in both]


def strangers(golds: Sequence[str], count: int) -> list[Case]:
    """Pairs that differ in more than signs and words: 90 degrees are 90."""
    pairs = [(a, b) for a in golds for b in golds if re.findall(r"\d", a) != re.findall(r"\d", b)]
    return [Case(a, rf"\boxed{{{b}}}", "stranger", False) for a, b in random.Random(0).sample(pairs, count)]


def posed(gold: str) -> Problem:
    return Problem(gold, ({"role": "user", "content": ""},), gold)


def agreement(task: MathematicsTask, cases: Sequence[Case]) -> dict[str, Any]:
    """Verdicts against what is known, and how many there are a second."""
    task.verify(posed("x"), r"\boxed{y}")  # the workers' start is not measured
    calls, start = task.counts["calls"], time.perf_counter()
    verdicts = task.verify_all([(posed(case.gold), case.response) for case in cases])
    seconds = time.perf_counter() - start
    both = zip(cases, verdicts, strict=True)
    wrong = [(c.gold, v.answer, c.rule, c.right) for c, v in both if v.correct != c.right]
    return {
        "pairs": len(cases),
        "agree": 1 - len(wrong) / len(cases),
        "rate": len(cases) / seconds,
        "calls": task.counts["calls"] - calls,
        "timed out": sum(verdict.timed_out for verdict in verdicts),
        "disagreements": wrong,
    }


def asked_cases(task: MathematicsTask, cases: Sequence[Case]) -> list[Case]:
    """Those that go to a worker."""
    found = []
    for case in cases:
        before = task.counts["calls"]
        task.verify(posed(case.gold), case.response)
        if task.counts["calls"] > before:
            found.append(case)
    return found


def long_response(task: MathematicsTask) -> float:
    """Seconds for one verdict on 400,000 characters full of boxes, none of them in a thinking part."""
    thought = r"so \frac{1}{2} of {it} is \boxed{3}, wait, "
    response = rf"{thought * (400_000 // len(thought))} \boxed{{\frac{{2}}{{4}}}}"
    start = time.perf_counter()
    assert task.verify(posed(r"\frac{1}{2}"), response).correct
    return time.perf_counter() - start


def hostile(count: int, workers: int, deadline: float) -> dict[str, Any]:
    """What becomes of hostile answers, and of the processes."""
    start = time.perf_counter()
    with MathematicsTask(deadline=deadline, workers=workers) as task:

        def judge(index: int, response: str) -> tuple[float, Verdict]:
            task.verify(
                posed("x"), r"\boxed{y}"
            )  # starts a worker in place of one that was ended: not measured
            before = time.perf_counter()
            verdict = task.verify(posed(GOLDS[index % len(GOLDS)]), response)
            return time.perf_counter() - before, verdict

        with ThreadPoolExecutor(
            workers
        ) as threads:  # as many as there are workers, so that none waits for one
            judged = list(threads.map(judge, range(count), answers(count, seed=0)))
        counts = dict(task.counts)
    return {
        "count": count,
        "deadline": deadline,
        "slowest": max(seconds for seconds, _ in judged),
        "timed out": sum(verdict.timed_out for _, verdict in judged),
        "called right": sum(verdict.correct for _, verdict in judged),
        "workers died": counts.get("died", 0),
        "seconds": time.perf_counter() - start,
        "left": children(),
    }


def children() -> int:
    """Processes this one has started that are still there."""
    found = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            found += int(status.read_text().rpartition(")")[2].split()[1]) == os.getpid()
        except OSError:  # it ended meanwhile
            continue
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures; each row has fresh workers, which have read none of its answers before."""
    golds = gold_answers(args.data, "math500", "aime24")
    cases = rewritten(golds)
    figures: dict[str, Any] = {"workers": args.workers}
    with MathematicsTask(workers=args.workers) as task:
        figures["defects"] = [gold for gold in golds if task.defect(gold)]
        figures["long response"] = long_response(task)
        asked = asked_cases(task, cases)
    rows = {
        "rewritings": cases,
        "rewritings to workers": asked,
        "solutions": solutions(args.data),
        "strangers": strangers(golds, args.strangers),
        "parity": cases,
    }
    figures["rows"] = {}
    for name, chosen in rows.items():
        with MathematicsTask(workers=args.workers, parity=name == "parity") as task:
            figures["rows"][name] = agreement(task, chosen)
    if args.hostile:
        figures["hostile"] = hostile(args.hostile, args.workers, args.deadline)
    return figures


def show(figures: dict[str, Any]) -> None:
    """The figures as tables, with every disagreement but those of parity mode."""
    console = Console()
    table = Table("pairs", "number", "agree", "verdicts a second", "to workers", "timed out")
    for name, row in figures["rows"].items():
        shown = (row["pairs"], f"{row['agree']:.2%}", f"{row['rate']:.0f}", row["calls"], row["timed out"])
        table.add_row(name, *map(str, shown))
    console.print(table)
    for name, row in figures["rows"].items():
        for gold, answer, rule, right in row["disagreements"] if name != "parity" else []:
            console.print(
                f"{answer!r} is {'right' if right else 'wrong'} for {gold!r} ({rule})", markup=False
            )
    console.print(f"gold answers that cannot be compared with: {figures['defects']}", markup=False)
    console.print(f"one verdict on 400,000 characters: {1000 * figures['long response']:.0f} ms")
    for name, value in figures.get("hostile", {}).items():
        console.print(f"hostile answers, {name}: {value}", markup=False)


def main() -> None:
    """Prints the tables, or the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=PUBLIC, help="folder of the parquet files")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--strangers", type=int, default=4000, help="number of pairs of different answers")
    parser.add_argument(
        "--hostile", type=int, default=1000, help="number of hostile answers, 0 to leave them out"
    )
    parser.add_argument("--deadline", type=float, default=0.5, help="seconds a hostile answer may take")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    figures = measure(args)
    if args.json:
        print(json.dumps(figures))
    else:
        show(figures)


if __name__ == "__main__":
    main()
