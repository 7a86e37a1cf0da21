"""Prepares a data set, and says what was read, kept, dropped and why.

    python -m sdistill.data.prepare math500
    python -m sdistill.data.prepare dapo_math_17k --from downloads/dapo-math-17k.parquet

Without `--from`, the public file is downloaded, unless it is in the `downloads` folder of the data
directory already. What is asked for by name and is not there is prepared in the same way, without tables.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Column, Table

from sdistill.data.catalogue import ENTRIES, find, prepared
from sdistill.data.problem_set import ProblemSet
from sdistill.data.sources import checksum
from sdistill.settings import ConfigError


def prepare(
    name: str,
    data_dir: str | Path | None = None,
    *,
    files: Sequence[Path] = (),
    drop_unparsed: bool = False,
    progress: Progress | None = None,
) -> tfds.core.DatasetBuilder:
    """Prepares the data set of a name, or finds it prepared from the same files.

    Args:
      name: Of the catalogue, or of a builder.
      data_dir: Where data sets are prepared; None for the TFDS default.
      files: Read instead of the public ones.
      drop_unparsed: Leave out problems whose reference answer cannot be parsed; they are listed either way.
      progress: Shows long work.

    Raises:
      ConfigError: if that is not possible, or the data set is there, made from other files or otherwise.
    """
    builder_class = builder_of(name)
    if not issubclass(builder_class, ProblemSet):
        if files:
            raise ConfigError(f"{builder_class.name} is generated; --from has no effect")
        return prepared(builder_class, data_dir)
    options = {"files": files, "drop_unparsed": drop_unparsed, "progress": progress}
    builder = prepared(builder_class, data_dir, **options)
    check_same(builder, files, drop_unparsed)
    return builder


def builder_of(name: str) -> Any:
    """The builder class that a name of the catalogue, or its own, stands for."""
    of_name = {entry.builder.name: entry.builder for entry in ENTRIES.values()}
    return of_name[name] if name in of_name else find(name).builder


def check_same(builder: tfds.core.DatasetBuilder, files: Sequence[Path], drop_unparsed: bool) -> None:
    """Refuses to pass off a data set that is there as one of these files, made in this way."""
    stored = builder.info.metadata
    way_out = f"remove {builder.data_dir} or give another --data_dir"
    for file in files:
        if not file.is_file():
            raise ConfigError(f"{file}: no such file")
        if checksum(file) not in [source["sha256"] for source in stored["sources"]]:
            of = ", ".join(source["file"] for source in stored["sources"])
            raise ConfigError(f"{builder.name} is prepared already, from another file ({of}); {way_out}")
    if stored["drop_unparsed"] != drop_unparsed:
        raise ConfigError(f"{builder.name} is prepared with --unparsed {_word(not drop_unparsed)}; {way_out}")


def print_tables(builder: tfds.core.DatasetBuilder, console: Console) -> None:
    """Says what is in a data set, and what became of the rows that it was made of."""
    say = functools.partial(console.print, markup=False, highlight=False, soft_wrap=True)
    say(f"{builder.name} is in {builder.data_dir}")
    kept = Table("split", "problems")
    for split, info in builder.info.splits.items():
        kept.add_row(split, f"{info.num_examples:,}")
    console.print(kept)
    stored = builder.info.metadata
    if not stored:
        return
    for source in stored["sources"]:
        say(f"made from {source['file']}, SHA-256 {source['sha256']}")
    rows = Table("rows", "number", "for instance")
    rows.add_row("read", f"{stored['read']:,}")
    rows.add_row("repeated, merged", f"{stored['merged']:,}")
    for reason, count in stored["dropped"].items():
        rows.add_row(f"dropped: {reason}", f"{count:,}", escape("\n".join(stored["examples"][reason])))
    console.print(rows)
    if stored["unparsed"]:
        word = "dropped" if stored["drop_unparsed"] else "kept"
        say(f"{len(stored['unparsed'])} reference answers cannot be parsed; their problems were {word}:")
        answers = Table(*(Column(header, overflow="fold") for header in ("problem", "answer", "why")))
        for entry in stored["unparsed"]:
            answers.add_row(*map(escape, entry))
        console.print(answers)


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line; what the user can mend ends in one line and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m sdistill.data.prepare", description=__doc__.splitlines()[0]
    )
    parser.add_argument("name", help="data set, or one of the catalogue's names of problems")
    parser.add_argument(
        "--from",
        nargs="+",
        type=Path,
        default=[],
        dest="files",
        metavar="FILE",
        help="instead of the public files",
    )
    parser.add_argument("--data_dir", help="where data sets are prepared; default: that of TFDS")
    parser.add_argument(
        "--unparsed",
        choices=["keep", "drop"],
        default="keep",
        help="what to do with problems whose reference answer cannot be parsed",
    )
    given = parser.parse_args(arguments)
    console = Console()
    try:
        with Progress(console=console) as progress:
            builder = prepare(
                given.name,
                given.data_dir,
                files=given.files,
                drop_unparsed=given.unparsed == "drop",
                progress=progress,
            )
    except ConfigError as error:
        sys.exit(f"error: {error}")
    print_tables(builder, console)


def _word(drop: bool) -> str:
    return "drop" if drop else "keep"


if __name__ == "__main__":
    main()
