"""Shares and means by groups of tokens, against plain loops."""

import dataclasses

import numpy as np
import pytest

from sdistill.analysis.attribution import CLASSES, FIFTHS, GROUPINGS, TENTHS, measured, tokens_of
from sdistill.analysis.statistics import bootstrap_ratio
from sdistill.types import TokenAttribution
from tests import tiny

WORDS = [" wait", " maybe", " 8", " -3", " +", " so", " yes", " </think>", " perhaps"]
KIND = dict(zip(WORDS, "eeddd" + "ooo" + "e", strict=True))


def rollouts(seed, problems=6, taught=lambda i: i % 3 != 0):
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(problems * 2):
        size = int(rng.integers(1, 25))
        by_token = TokenAttribution(
            tokens=rng.choice(WORDS, size).tolist(),
            signal=rng.uniform(0, 1, size).tolist(),
            entropy=rng.uniform(0, 2, size).tolist(),
            divergence=rng.uniform(-0.1, 3, size).tolist() if taught(i) else None,
        )
        rows.append(tiny.response(f"p{i // 2}", attribution=by_token))
    return rows


def groups(rows, grouping):
    """(group, row, place) of every token, the slow way."""
    rows = [row.attribution for row in rows]
    ranked = sorted(e for row in rows for e in row.entropy)
    found = []
    for row in rows:
        size = len(row.tokens)
        for t in range(size):
            if grouping == "class":
                group = CLASSES["edo".index(KIND[row.tokens[t]])]
            elif grouping == "tenth":
                group = str(int(10 * t / size) + 1)
            else:
                group = str(int(5 * ranked.index(row.entropy[t]) / len(ranked)) + 1)
            found.append((group, row, t))
    return found


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_figures_are_those_of_plain_loops(grouping):
    seeds = [rollouts(0), rollouts(1)]
    tokens = [tokens_of(rows) for rows in seeds]
    assert None not in tokens
    found = measured(tokens, grouping)
    expected = {}
    for group in GROUPINGS[grouping]:
        by_seed = {"tokens": [], "signal": [], "divergence": []}
        for rows in seeds:
            every = groups(rows, grouping)
            mine = [(row, t) for g, row, t in every if g == group]
            by_seed["tokens"].append(len(mine) / len(every))
            by_seed["signal"].append(
                sum(row.signal[t] for row, t in mine) / sum(row.signal[t] for _, row, t in every)
            )
            taught = [row.divergence[t] for row, t in mine if row.divergence]
            by_seed["divergence"].append(np.mean(taught))
        expected |= {f"{m}:{grouping}:{group}": np.mean(v) for m, v in by_seed.items()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value), name
        assert found[name].low <= found[name].value <= found[name].high
    for measure in ("tokens", "signal"):
        assert sum(e.value for n, e in found.items() if n.startswith(measure)) == pytest.approx(1)
    assert len(GROUPINGS["tenth"]) == TENTHS and len(GROUPINGS["fifth"]) == FIFTHS


def test_what_has_no_teacher_has_no_divergence_and_what_has_no_signal_no_share():
    rows = rollouts(0, taught=lambda i: False)
    names = measured([tokens_of(rows)], "class")
    assert {name.partition(":")[0] for name in names} == {"tokens", "signal"}
    silent = [
        dataclasses.replace(row, attribution=dataclasses.replace(a, signal=[0.0] * len(a.signal)))
        for row in rows
        if (a := row.attribution)
    ]
    names = measured([tokens_of(silent)], "class")
    assert {name.partition(":")[0] for name in names} == {"tokens"}


def test_rollouts_of_runs_that_kept_nothing_have_no_tokens():
    assert tokens_of([tiny.response("a", "wait")]) is None and tokens_of([]) is None


def test_a_ratio_is_bootstrapped_with_both_of_its_parts():
    rng = np.random.default_rng(0)
    below = rng.uniform(1, 9, 40)
    estimate = bootstrap_ratio([(0.3 * below, below)])
    assert estimate is not None  # the parts vary, and their ratio does not
    assert estimate == pytest.approx((0.3, 0.3, 0.3))
    assert bootstrap_ratio([(below, 0 * below)]) is None and bootstrap_ratio([]) is None
    rare = np.zeros(40)
    rare[0] = 2.0
    found = bootstrap_ratio([(rare, rare)])  # a third of the draws have none of it
    assert found is not None and np.isfinite(found).all()


def test_the_interval_of_a_ratio_holds_the_truth():
    """In 400 samples of 60 problems from a population whose ratio is known."""
    rng, held = np.random.default_rng(1), 0
    for _ in range(400):
        below = rng.gamma(2.0, 3.0, 60)
        above = below * rng.beta(2, 6, 60)
        estimate = bootstrap_ratio([(above, below)])
        held += estimate.low <= 0.25 <= estimate.high
    assert 0.90 < held / 400 < 0.98
