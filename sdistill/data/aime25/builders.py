"""AIME 2025: 30 problems whose answers are integers."""

from sdistill.data.mathematics import MathematicsSet
from sdistill.data.sources import on_the_hub


class Aime25(MathematicsSet):
    """AIME 2025, I and II."""

    name = "aime25"
    SOURCES = (
        on_the_hub(
            "math-ai/aime25",
            "563bb8404243c5f09de6ec262f2db674fe5bce9b",
            "test.jsonl",
            "b4e273c02d3e7fe1b74b59eae768fc8230bfb0f79539890cb56f4361caac0331",
            "Apache-2.0",
        ),
    )
