"""Prepares a data set, and reports how many rows were read, kept and dropped, and why.

    python -m sdistill.data.prepare math500
    python -m sdistill.data.prepare dapo_math_17k --from downloads/dapo-math-17k.parquet

Without `--from`, the public file is downloaded, unless it is in the `downloads` folder of the data
directory. `open_problems` prepares a data set in the same way, without the report.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import tensorflow_datasets as tfds
from rich.progress import Progress

from sdistill.data.catalogue import ENTRIES, find, prepared
from sdistill.data.problem_set import ProblemSet, checksum
from sdistill.settings import ConfigError


def prepare(
    name: str,
    data_dir: str | Path | None = None,
    *,
    files: Sequence[Path] = (),
    drop_unparsed: bool = False,
    progress: Progress | None = None,
) -> tfds.core.DatasetBuilder:
    """Prepares the data set of a name or a builder, or finds it prepared from the same files.

    `files` are read instead of the public ones. `drop_unparsed` leaves out problems whose reference answer
    cannot be parsed; they are listed either way. A `data_dir` of None is the TFDS default.

    Raises:
      ConfigError: if that is not possible, or the data set is there, but from other files or options.
    """
    classes = {entry.builder.name: entry.builder for entry in ENTRIES.values()}
    builder_class = classes.get(name) or find(name).builder
    if not issubclass(builder_class, ProblemSet):
        if files:
            raise ConfigError(f"{builder_class.name} is generated; --from has no effect")
        return prepared(builder_class, data_dir)
    builder = prepared(builder_class, data_dir, files=files, drop_unparsed=drop_unparsed, progress=progress)

    # A data set that was there already must not pass for one made from these files, or with these options.
    stored = builder.info.metadata
    way_out = f"remove {builder.data_dir} or give another --data_dir"
    for file in files:
        if not file.is_file():
            raise ConfigError(f"{file}: no such file")
        if checksum(file) not in [source["sha256"] for source in stored["sources"]]:
            of = ", ".join(source["file"] for source in stored["sources"])
            raise ConfigError(f"{builder.name} is prepared already, from another file ({of}); {way_out}")
    if stored["drop_unparsed"] != drop_unparsed:
        word = "drop" if stored["drop_unparsed"] else "keep"
        raise ConfigError(f"{builder.name} is prepared with --unparsed {word}; {way_out}")
    return builder


def report(builder: tfds.core.DatasetBuilder) -> None:
    """Prints the splits of a data set, its files, and how many rows were merged and dropped."""
    print(f"{builder.name} is in {builder.data_dir}")
    for split, info in builder.info.splits.items():
        print(f"{split}: {info.num_examples:,} problems")
    stored = builder.info.metadata
    if not stored:
        return
    for source in stored["sources"]:
        print(f"made from {source['file']}, SHA-256 {source['sha256']}")
    print(f"{stored['read']:,} rows read, {stored['merged']:,} of them repeated and merged")
    for reason, count in stored["dropped"].items():
        print(f"{count:,} rows dropped: {reason}, for instance {', '.join(stored['examples'][reason])}")
    if stored["unparsed"]:
        word = "dropped" if stored["drop_unparsed"] else "kept"
        print(f"{len(stored['unparsed'])} reference answers cannot be parsed; their problems were {word}:")
        for problem, answer, reason in stored["unparsed"]:
            print(f"  {problem}: {answer!r}: {reason}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; an error that the user can mend is one line, with exit code 1."""
    parser = argparse.ArgumentParser("python -m sdistill.data.prepare", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("name", help="a data set, or a name of problems in the catalogue")
    add("--from", nargs="+", type=Path, default=[], dest="files", metavar="FILE", help="not the public files")
    add("--data_dir", help="where data sets are prepared; default: that of TFDS")
    help_unparsed = "what to do with problems whose reference answer cannot be parsed"
    add("--unparsed", choices=["keep", "drop"], default="keep", help=help_unparsed)
    args = parser.parse_args(arguments)
    options = {"files": args.files, "drop_unparsed": args.unparsed == "drop"}
    try:
        with Progress() as progress:
            builder = prepare(args.name, args.data_dir, progress=progress, **options)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    report(builder)


if __name__ == "__main__":
    main()
