"""A run that goes on under one mesh after the other, beside one that stays on one device; prints both.

In a process of its own, because the number of CPU devices is fixed when JAX starts.
"""

import json
import sys
from pathlib import Path

from sdistill.config import AnyTrainConfig
from sdistill.settings import parse
from sdistill.storage import read_records
from sdistill.train import train
from tests.test_train import PowerCut, cut_power_at, settings

MESHES = ({"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 4, "context": 2}, {})
"""Eight devices, eight in another layout, one."""


def one_leg(folder: Path, workdir: Path, mesh: dict[str, int], until: int) -> None:
    """Runs on, under this mesh, up to a step."""
    values = settings(folder, init_from="signs_base", evaluation=None, mesh=mesh, micro_batch_size=8)
    try:
        train(parse(AnyTrainConfig, values), workdir, progress=cut_power_at(until, workdir))
    except PowerCut:
        return


def main(folder: Path) -> None:
    """Makes both runs."""
    for leg, mesh in enumerate(MESHES):
        one_leg(folder, folder / "moved", mesh, until=2 * leg + 2)
    one_leg(folder, folder / "stayed", {}, until=6)
    print(json.dumps({name: read_records(folder / name / "metrics.jsonl") for name in ("moved", "stayed")}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
