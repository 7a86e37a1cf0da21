"""AIME 2024: 30 problems whose answers are integers."""

from sdistill.data.mathematics import MathematicsSet
from sdistill.data.sources import on_the_hub


class Aime24(MathematicsSet):
    """AIME 2024; the public file holds every problem 32 times."""

    name = "aime24"
    SOURCES = (
        on_the_hub(
            "BytedTsinghua-SIA/AIME-2024",
            "aa49075e24ad594b79fdf0bdcefa735c2181be67",
            "data/aime-2024.parquet",
            "12154e38a716d12db5731f9a022ae69a610c4f7d0e0dcc04e902887a686877e7",
            "Apache-2.0",
        ),
    )
