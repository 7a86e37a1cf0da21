"""Updates from a batch that is laid out: gradients of its parts, added up, and what comes of them.

What an update reports stays on the devices until `record_of` looks at all updates of a step at once, so that
the host never waits in between. An update whose gradient is not finite is not made (`steps.update`), and
`record_of` then raises before anything is kept.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Int

from sdistill.config import TrainConfig
from sdistill.distributed.rules import place_batch
from sdistill.losses import Finite, Metrics, OnPolicyBatch, Report
from sdistill.micro import mini_batches, on_policy_micro_batches, packed_micro_batches
from sdistill.model.config import ModelConfig
from sdistill.rows import listed
from sdistill.state import TrainState
from sdistill.step import (
    PackedBatch,
    compile_gradient,
    compile_update,
    cross_entropy_gradient,
    grpo_gradient,
    sdpo_gradient,
)

Part = tuple[Int[np.ndarray, " b"], Any]
"""A micro-batch, after the numbers that its rows have in the batch."""


@dataclass(frozen=True)
class Steps:
    """The compiled steps of a run, and how batches are cut for them.

    Attributes:
      gradient: Of a micro-batch, of the run's objective.
      update: With the gradient of all micro-batches.
      mesh: Where micro-batches are placed.
      update_rows: Rows of an update.
      micro_rows: Rows of a micro-batch.
    """

    gradient: Callable[..., tuple[nnx.State, Report]]
    update: Callable[[TrainState, nnx.State], tuple[TrainState, Metrics]]
    mesh: Mesh
    update_rows: int
    micro_rows: int


class UpdateReport(NamedTuple):
    """What one update says.

    Attributes:
      parts: The numbers of a micro-batch's rows, and its report, of every micro-batch.
      metrics: Of the update itself.
    """

    parts: list[tuple[Int[np.ndarray, " b"], Report]]
    metrics: Metrics


def compile_steps(config: TrainConfig, model: ModelConfig, mesh: Mesh, state: TrainState) -> Steps:
    """The steps of the run's objective, for states laid out like `state`."""
    common: dict[str, Any] = {"model": model, "chunk": config.chunk}
    if config.rollouts is not None:
        common["temperature"] = config.rollouts.sampling.temperature
        if config.attribution:
            common["attribution"] = True
    if config.sdpo is not None:
        mix = config.sdpo.teacher.mix
        gradient = compile_gradient(sdpo_gradient, state, config=config.sdpo.loss, mix=mix, **common)
    elif config.grpo is not None:
        gradient = compile_gradient(grpo_gradient, state, config=config.grpo, **common)
    else:
        gradient = compile_gradient(cross_entropy_gradient, state, **common)
    update = compile_update(state, optimizer=config.optimizer)
    rows = config.update_rows
    return Steps(gradient, update, mesh, rows, config.micro_rows or rows)


def update_from_examples(
    steps: Steps, state: TrainState, batch: PackedBatch
) -> tuple[TrainState, list[UpdateReport]]:
    """One update from a batch of examples."""
    state, report = _update(steps, state, packed_micro_batches(batch, steps.micro_rows))
    return state, [report]


def update_from_rollouts(
    steps: Steps, state: TrainState, batch: OnPolicyBatch, *teacher: nnx.State | None
) -> tuple[TrainState, list[UpdateReport]]:
    """One update from each mini-batch of a batch of rollouts.

    Args:
      steps: Of SDPO or GRPO.
      state: Before the first update; its buffers are given away.
      batch: Laid out from all rollouts of the step.
      teacher: The teacher's weights, the same for all updates, or None for the student's own at each update;
        for SDPO only.
    """
    reports = []
    for part in mini_batches(batch, steps.update_rows):
        state, report = _update(steps, state, on_policy_micro_batches(part, steps.micro_rows), *teacher)
        reports.append(report)
    return state, reports


def _update(
    steps: Steps, state: TrainState, parts: Iterable[Part], *teacher: nnx.State | None
) -> tuple[TrainState, UpdateReport]:
    gradient, reports = add_up(steps.gradient, steps.mesh, parts, state.params, *teacher)
    state, metrics = steps.update(state, gradient)
    return state, UpdateReport(reports, metrics)


def add_up(
    gradient_of: Callable[..., tuple[nnx.State, Report]],
    mesh: Mesh,
    parts: Iterable[Part],
    *weights: nnx.State | None,
) -> tuple[nnx.State, list[tuple[Int[np.ndarray, " b"], Report]]]:
    """The gradient of a batch from those of its parts, and what they report."""
    gradient, reports = None, []
    for numbers, part in parts:
        gradient, report = gradient_of(*weights, place_batch(part, mesh), so_far=gradient)
        reports.append((numbers, report))
    assert gradient is not None  # a batch has rows
    return gradient, reports


def record_of(updates: Sequence[UpdateReport], names: Sequence[str]) -> dict[str, float]:
    """The figures of a step, over all of its updates.

    `sampler_gap` is that of the first update: the others begin from weights that have not sampled.

    Args:
      updates: Of the step.
      names: How an error calls the rows, of one update after the other.

    Raises:
      FloatingPointError: if a figure is not finite: names it, the first update where that is so, and the
        rows whose hidden states are not finite.
    """
    updates = jax.device_get(list(updates))
    rows, metrics = len(names) // len(updates), list[Metrics]()
    for number, update in enumerate(updates):
        found = [*(report.metrics for _, report in update.parts), update.metrics]
        which = f" in update {number + 1} of {len(updates)}" if len(updates) > 1 else ""
        check_finite(to_floats(found), update, names[number * rows : (number + 1) * rows], which)
        metrics += found if number == 0 else [_without(figures, "sampler_gap") for figures in found]
    return to_floats(metrics, len(updates))


def to_floats(metrics: Sequence[Metrics], updates: int = 1) -> dict[str, float]:
    """Sums over counts, or over updates what is a sum for each; 0 where nothing was counted."""
    totals: dict[str, tuple[float, float]] = {}
    for part in jax.device_get(metrics):
        for name, (total, count) in part.items():
            before = totals.get(name, (0.0, 0.0))
            totals[name] = (before[0] + float(total), before[1] + float(count))
    return {name: total / (count or updates) for name, (total, count) in totals.items()}


def check_finite(
    figures: dict[str, float], update: UpdateReport, names: Sequence[str], which: str = ""
) -> None:
    """Raises FloatingPointError, naming figures and rows, if one of an update's figures is not finite."""
    bad = [f"{name}={value}" for name, value in figures.items() if not np.isfinite(value)]
    if not bad:
        return
    found = []
    for field in Finite._fields:
        rows = sorted(
            number
            for numbers, report in update.parts
            if (finite := getattr(report.finite, field)) is not None
            for number in numbers[~finite]
        )
        if rows:
            named = listed([names[row] for row in rows])
            found.append(f"the {field.removesuffix('_B')}'s hidden states are not finite in {named}")
    raise FloatingPointError(f"{', '.join(bad)}{which}: {'; '.join(found) or 'all hidden states are finite'}")


def _without(metrics: Metrics, name: str) -> Metrics:
    return {key: value for key, value in metrics.items() if key != name}
