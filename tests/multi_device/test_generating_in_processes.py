"""Two processes of four devices each keep what one process with one device keeps, also after a kill."""

import json
import time

import pytest

from sdistill.generate import DONE, PASSED_OVER
from sdistill.storage import read_records
from tests.processes import Commands, assert_same_files

pytestmark = pytest.mark.long

WALK = ("sdistill.generate", "--config", "tests/multi_device/walk.py", "--workdir")
MESH = ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")
EVALUATION = (
    *("sdistill.evaluate", "--model", "signs_base", "--split", "k3_test", "--num_problems", 5),
    *("--num_samples", 3, "--max_response_length", 24, "--slots", 8),
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory, data_dir):
    return Commands(data_dir, devices=4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, data_dir):
    return Commands(data_dir, devices=1)


@pytest.fixture(scope="module")
def whole(alone, tmp_path_factory):
    """What one process with one device keeps."""
    folder = tmp_path_factory.mktemp("whole")
    alone.succeed(*WALK, folder)
    return folder


def both(pair, *arguments):
    """What the two print; beside it, the library says so by which they meet."""
    printed = []
    for process in pair.start_two(*arguments):
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        printed.append(out)
    return printed


def settled(folder):
    """Makes the mesh, in which the directories differ by intent, the same."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mesh": None}))
    return folder


def test_a_walk_is_the_same_and_the_first_one_speaks(pair, whole, tmp_path):
    first, second = both(pair, *WALK, tmp_path / "two", *MESH)
    assert "6 responses" in first and "signs_base" not in second
    assert len(read_records(whole / DONE)) == 6 and len(read_records(whole / PASSED_OVER)) == 10
    assert_same_files(settled(tmp_path / "two"), settled(whole))


def test_what_both_have_kept_is_gone_on_with_after_a_kill(pair, whole, tmp_path):
    """Each has kept what it verified itself; nothing of it is sampled again."""
    started = pair.start_two(*WALK, tmp_path / "cut", *MESH)
    journals = [tmp_path / "cut" / f"journal-{i}.jsonl" for i in range(2)]
    while not all(path.exists() and path.stat().st_size for path in journals):
        assert all(process.poll() is None for process in started)
        time.sleep(0.01)
    for process in started:
        process.kill()
        process.communicate()
    kept = [record for path in journals for record in read_records(path)]
    assert 2 <= len(kept) < 16
    for path in journals:
        marked = [record | {"text": "kept"} for record in read_records(path)]
        path.write_text("".join(json.dumps(record) + "\n" for record in marked))
    both(pair, *WALK, tmp_path / "cut", *MESH)
    found = read_records(tmp_path / "cut" / PASSED_OVER) + read_records(tmp_path / "cut" / DONE)
    as_whole = read_records(whole / PASSED_OVER) + read_records(whole / DONE)
    assert [r | {"text": ""} for r in found] == [r | {"text": ""} for r in as_whole]
    assert sum(record["text"] == "kept" for record in found) == len(kept)
    assert not any(path.exists() for path in journals)


def test_an_evaluation_is_the_same_and_the_first_one_speaks(pair, alone):
    first, second = both(pair, *EVALUATION)
    assert "5 problems × 3 samples" in first and "signs_base" not in second
    rows = [line for line in alone.succeed(*EVALUATION).splitlines() if line.startswith("│")]
    assert len(rows) > 3 and all(row in first for row in rows)


def test_processes_that_are_to_do_different_things_are_refused(pair, tmp_path):
    for command, field in ((EVALUATION, "--seed"), ((*WALK, tmp_path / "walk", *MESH), "--config.seed")):
        for process in pair.start_two(*command, more=([f"{field}=1"], [f"{field}=2"])):
            _, err = process.communicate(timeout=300)
            assert process.returncode != 0 and "process 1 differs from process 0" in err
    assert not (tmp_path / "walk").exists()
