"""Checkpoints: what comes back, and what happens when the newest cannot be read."""

import dataclasses
import functools
import gc
import logging
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdistill.checkpoints import Checkpoints
from sdistill.config import OptimizerConfig
from sdistill.step import init_state
from tests import tiny

MODEL = dataclasses.replace(tiny.CONFIG, num_hidden_layers=1)

# What Orbax leaves unfinished when a read fails is none of ours.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)


@functools.cache
def make_arrays(seed: int, teacher: bool = True):
    """A training state and a teacher."""
    params = tiny.parameters(MODEL, seed)
    state = init_state(params, MODEL, OptimizerConfig(learning_rate=1e-3), tiny.one_device())
    opt_state = jax.tree.map(lambda x: x + seed, state.opt_state)
    state = state._replace(step=state.step + seed, opt_state=opt_state)
    return state, tiny.parameters(MODEL, seed + 100) if teacher else None


def make_position(step: int) -> dict:
    return {"next": step * 7, "nested": {"epoch": step}}


@pytest.fixture(autouse=True)
def nothing_left_unfinished():
    """Orbax's leavings are collected, and warned of, while warnings are ignored."""
    yield
    gc.collect()


def save(directory, step: int) -> None:
    checkpoints = Checkpoints(directory)
    checkpoints.save(step, make_arrays(step), make_position(step))
    checkpoints.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Three checkpoints were written, at steps 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    for step in (1, 2, 3):
        save(folder, step)
    return folder


@pytest.fixture
def directory(written, tmp_path):
    """A copy of them."""
    return shutil.copytree(written, tmp_path / "checkpoints")


def restore(directory, like=None):
    checkpoints = Checkpoints(directory)
    restored = checkpoints.restore(like or make_arrays(0))
    checkpoints.close()
    return restored


def assert_is_step(restored, step: int) -> None:
    number, arrays, position = restored
    assert number == step
    tiny.assert_same_bits(arrays, make_arrays(step))
    assert position == make_position(step)


def largest_file(directory, part: str):
    return max(
        (path for path in directory.glob(f"{part}/**/*") if path.is_file()), key=lambda p: p.stat().st_size
    )


def test_an_empty_directory_has_nothing_to_restore(tmp_path):
    assert restore(tmp_path / "new") is None


def test_the_newest_comes_back_bit_by_bit_and_the_oldest_is_gone(directory):
    assert_is_step(restore(directory), 3)
    assert sorted(path.name for path in directory.iterdir() if path.name.isdigit()) == ["2", "3"]


def test_a_run_without_a_teacher_has_checkpoints_too(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_arrays(1, teacher=False), make_position(1))
    checkpoints.close()
    _, arrays, _ = restore(tmp_path, make_arrays(0, teacher=False))
    tiny.assert_same_bits(arrays, make_arrays(1, teacher=False))


def test_what_is_saved_is_the_state_at_that_moment(tmp_path):
    """The step donates its state, while the checkpoint may still be on its way to the disk."""
    checkpoints = Checkpoints(tmp_path)
    arrays = {"x": jnp.arange(200_000.0)}
    expected = np.asarray(arrays["x"]).copy()
    checkpoints.save(1, arrays, {})
    jax.jit(lambda tree: {"x": tree["x"] * 0}, donate_argnums=0)(arrays)["x"].block_until_ready()
    checkpoints.close()
    _, restored, _ = restore(tmp_path, {"x": jnp.zeros(200_000)})
    np.testing.assert_array_equal(restored["x"], expected)


def test_a_step_takes_over_the_buffers_of_what_was_restored(directory):
    """Otherwise a run that goes on would need the memory of two states."""
    _, arrays, _ = restore(directory)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # JAX warns of donated buffers that it could not use
        jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(arrays)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(arrays))


DAMAGE = {
    "largest array file truncated": lambda d: largest_file(d, "arrays").write_bytes(b"\0" * 10),
    "largest array file deleted": lambda d: largest_file(d, "arrays").unlink(),
    "arrays deleted": lambda d: shutil.rmtree(d / "arrays"),
    "position emptied": lambda d: (d / "position" / "metadata").write_bytes(b""),
    "position deleted": lambda d: shutil.rmtree(d / "position"),
    "everything in it deleted": lambda d: [
        shutil.rmtree(p) if p.is_dir() else p.unlink() for p in d.iterdir()
    ],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_gives_way_to_the_one_before(damage, directory, caplog):
    DAMAGE[damage](directory / "3")
    with caplog.at_level(logging.WARNING, "sdistill"):
        assert_is_step(restore(directory), 2)
    warnings = [m for m in caplog.messages if "cannot be read" in m]
    assert len(warnings) == 1 and "checkpoint of step 3" in warnings[0] and str(directory) in warnings[0]
    assert {path.name for path in directory.iterdir() if path.name.isdigit()} == {"2"}
    assert (directory.parent / "damaged_checkpoints" / "3").exists()


def test_a_damaged_one_can_be_made_again(directory):
    DAMAGE["arrays deleted"](directory / "3")
    restore(directory)
    save(directory, 3)
    assert_is_step(restore(directory), 3)


def test_when_all_are_damaged_the_run_starts_over(directory, caplog):
    for step in ("2", "3"):
        DAMAGE["largest array file truncated"](directory / step)
    with caplog.at_level(logging.WARNING, "sdistill"):
        assert restore(directory) is None
    assert sum("cannot be read" in message for message in caplog.messages) == 2
