"""Two processes of four devices each train as one process with one device does; and end together."""

import signal
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from sdistill.model.decoder import bind
from sdistill.model.weights import save_pretrained
from sdistill.storage import read_records
from tests import tiny
from tests.processes import Commands

pytestmark = pytest.mark.long

BY_TOKEN = ("signal", "entropy", "divergence")
MESH = ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"]


class Pair:
    """Starts the same training in two processes that find each other."""

    def __init__(self, folder, data_dir):
        self.commands = Commands(data_dir, devices=4)
        self.alone = Commands(data_dir, devices=1)
        save_pretrained(bind(tiny.WORDS, tiny.parameters(tiny.WORDS)), folder / "model")
        self.model = f"--config.init_from={folder / 'model'}"

    def arguments(self, recipe, workdir, *more):
        config = f"tests/multi_device/recipe.py:{recipe}"
        return ["sdistill.train", "--config", config, "--workdir", workdir, self.model, *more]

    def start(self, recipe, workdir, more=((), ())):
        return self.commands.start_two(*self.arguments(recipe, workdir, *MESH), more=more)

    def run(self, recipe, workdir, more=((), ())):
        """Exit code and what was printed, of both."""
        ends = [(process.communicate(timeout=300), process) for process in self.start(recipe, workdir, more)]
        return [(process.returncode, out, err) for (out, err), process in ends]


@pytest.fixture(scope="module")
def pair(tmp_path_factory, data_dir):
    return Pair(tmp_path_factory.mktemp("pair"), data_dir)


@pytest.fixture(scope="module")
def runs(pair, tmp_path_factory):
    """Of each objective, the run of two processes and that of one."""
    found = {}
    for recipe in ("sdpo", "grpo"):
        folder = tmp_path_factory.mktemp(recipe)
        ends = pair.run(recipe, folder / "two")
        assert [code for code, *_ in ends] == [0, 0], "\n".join(err for *_, err in ends)
        pair.alone.succeed(*pair.arguments(recipe, folder / "one"))
        found[recipe] = folder / "two", folder / "one"
    return found


@pytest.mark.parametrize("recipe", ["sdpo", "grpo"])
def test_what_is_sampled_and_learned_is_the_same(runs, recipe):
    two, one = runs[recipe]
    for name in ("train-000002.jsonl.gz", "train-000004.jsonl.gz"):
        rows = [read_records(folder / name) for folder in (two, one)]
        ours, theirs = (
            [row["attribution"].pop(field, None) for row in side for field in BY_TOKEN] for side in rows
        )
        assert rows[0] == rows[1]  # and of each token the same up to rounding, in the same place
        assert [values is None for values in ours] == [values is None for values in theirs]
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a or [], b or [], rtol=2e-3, atol=1e-5)
        assert any(value > 1e-4 for values in ours for value in values or [])
    metrics = [read_records(folder / "metrics.jsonl") for folder in (two, one)]
    for ours, theirs in zip(*metrics, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert value == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (two, one))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], atol=2e-5, err_msg=name)


def test_processes_that_differ_are_refused_at_the_start(pair, tmp_path):
    for code, _, err in pair.run("sdpo", tmp_path / "run", (["--config.seed=1"], [])):
        assert code != 0
        assert "process 1 differs from process 0: '\"seed\": 0,' there, '\"seed\": 1,' here" in err
    assert not (tmp_path / "run").exists()


def test_a_mesh_that_leaves_devices_out_is_refused(pair, tmp_path):
    for code, _, err in pair.run("sdpo", tmp_path / "run", (["--config.mesh.data=1"],) * 2):
        assert code != 0 and "mesh leaves 4 of 8 devices out" in err


def test_a_notice_to_one_process_ends_both_and_the_next_start_continues(runs, pair, tmp_path):
    """To the same bits as without it."""
    whole, cut = runs["sdpo"][0], tmp_path / "cut"
    started = pair.start("sdpo", cut)
    while not (cut / "metrics.jsonl").exists():
        assert all(process.poll() is None for process in started)
        time.sleep(0.01)
    started[1].send_signal(signal.SIGTERM)
    for process in started:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0 and "told to end; everything is kept" in out, err
    assert 2 <= len(read_records(cut / "metrics.jsonl")) < 6
    for code, _, err in pair.run("sdpo", cut):
        assert code == 0, err
    for name in ("metrics.jsonl", "model/model.safetensors", "k3_test-000006.jsonl.gz"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
