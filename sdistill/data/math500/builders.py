"""MATH-500: 500 problems of the MATH test set."""

from sdistill.data.mathematics import MathematicsSet
from sdistill.data.sources import on_the_hub


class Math500(MathematicsSet):
    """MATH-500, of seven subjects and five levels; answers are LaTeX."""

    name = "math500"
    SOURCES = (
        on_the_hub(
            "HuggingFaceH4/MATH-500",
            "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
            "test.jsonl",
            "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132",
            "MIT",
        ),
    )
