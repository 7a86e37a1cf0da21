"""AMC 12 of 2023: 40 problems."""

from sdistill.data.mathematics import MathematicsSet
from sdistill.data.sources import on_the_hub


class Amc23(MathematicsSet):
    """AMC 12 A and B of 2023, reworded by the publisher so that the answers are integers."""

    name = "amc23"
    SOURCES = (
        on_the_hub(
            "math-ai/amc23",
            "80815d37005feb82cd7f8fbc6901d5d3eff43057",
            "test-00000-of-00001.parquet",
            "b696e87ba47be4e879a60fd4ef1d4aa522ba78c5ae013c6aff5cc9788a397c5e",
            "not declared",
        ),
    )
