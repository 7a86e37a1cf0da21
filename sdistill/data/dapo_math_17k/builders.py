"""DAPO-Math-17k: competition mathematics to train on, in English and Chinese; and the paper's subsets of it.

The public file repeats each of its problems about 100 times, in 1,791,700 rows. Subsets by size and seed are
names of the catalogue (`dapo_math_17k_64`); those that were drawn for the paper are `dapo_math_17k_seen`.
"""

from collections.abc import Iterator

from sdistill.data.mathematics import MathematicsSet, mathematics_problem
from sdistill.data.problem_set import Found, Tally
from sdistill.data.sources import Source, on_the_hub
from sdistill.data.tables import Row

_RELEASED = (
    "https://raw.githubusercontent.com/beanie00/self-distillation-analysis/"
    "5c51051aaa07513764ab66c631277816bc6520e5/data/math/section_6_2"
)
_SEEN = {
    "seen_1x64": "be287350eb44f5f09f8ca0bfab958bbba8ca0bb39f53ef08ced0063ec0649b26",
    "seen_8x8": "6bfa1a84cd19143b8e1ce8230d4d82f15b447e820cc9a25a63a0e26ba69f64de",
    "seen_64": "8b5594cdeb75943f9586e6494c28e681832ee0690d86675218b4bf4aac202591",
    "seen_128": "72ad58907726ebb1af92cb1a3e2813d66c1d14ca78491da2fec719a55e2ada68",
    "seen_512": "6c92acdacedfb9ea04ff9ed27b903cb1b5d34ce17277a61fc8959b2a1a246c49",
}


class DapoMath17k(MathematicsSet):
    """The distinct problems of DAPO-Math-17k, in the order of the file."""

    name = "dapo_math_17k"
    SPLIT = "train"
    SOURCES = (
        on_the_hub(
            "BytedTsinghua-SIA/DAPO-Math-17k",
            "65877096c24ffa7abc4e4fa5edb95cf3413a5674",
            "data/dapo-math-17k.parquet",
            "534375d6bb8630d22ab46a56e11f2ffec1d288d8f7d04099bc82d68948705941",
            "Apache-2.0",
        ),
    )


class DapoMath17kSeen(MathematicsSet):
    """The training sets of section 6, nested; a split is a file, `seen_512` holds 511 distinct problems.

    `seen_1x64` is one problem 64 times, and so one problem with 64 copies here.
    """

    name = "dapo_math_17k_seen"
    SOURCES = tuple(
        Source(f"{_RELEASED}/{file}.parquet", sha256, "Apache-2.0") for file, sha256 in _SEEN.items()
    )

    def convert(self, rows: Iterator[Row], tally: Tally) -> Iterator[Found]:
        """Every row is a problem, of the split that its file is named after."""
        for row in rows:
            split = row.file.removesuffix(".parquet")
            if split not in _SEEN:
                raise row.error((), f"cannot be placed: the file must be named one of {', '.join(_SEEN)}")
            yield split, mathematics_problem(row, DapoMath17k.name)
