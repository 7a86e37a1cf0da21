import re

import pytest

from sdistill.analysis.measure import BASE
from sdistill.analysis.probes import MASKED, PLAIN, Arm, probes
from sdistill.report.findings import (
    contrast,
    contrasts,
    probed_models,
    probes_made,
    recovered,
    standings,
    words_of_arm,
)
from sdistill.report.lookup import GRPO, SDPO, Index
from sdistill.report.prose import fixes_findings, probe_findings, probe_words
from sdistill.report.tables import VALUES, section_tables
from tests.report.synthetic import fixed, fixes_measurements, measured, probe_measurements


def test_fixes_are_ranked_with_ties_visible():
    ranks = standings(Index(fixes_measurements()))
    assert ranks == {
        GRPO: "1–2", fixed("grpo", "contrastive_hints"): "1–2",
        BASE: "3–4", fixed("sdpo", "marker_mask"): "3–4",
        fixed("sdpo", "pass_rate"): "5–6", SDPO: "5–6",
    }  # fmt: skip
    assert list(ranks)[:3] == [GRPO, fixed("grpo", "contrastive_hints"), BASE]  # of a tie the higher first


def test_ranked_conditions_lie_above_level_with_or_below_a_baseline():
    rows = fixes_measurements()
    assert fixes_findings(Index(rows)) == [
        "Better than base: GRPO, GRPO + contrastive hints.",
        "Not told apart from base: SDPO + marker mask.",
        "Worse than base: SDPO + pass-rate weight, SDPO.",
        "Better than SDPO: GRPO, GRPO + contrastive hints, SDPO + marker mask.",
        "Not told apart from SDPO: SDPO + pass-rate weight.",
    ]
    wide = measured("fixes", GRPO, "k4", "accuracy", 0.12, half=0.2, step=40, seed="any", baseline=BASE)
    found = fixes_findings(Index([*rows, wide]))  # the interval over seeds holds zero
    assert "Not told apart from base: GRPO, SDPO + marker mask." in found


def test_each_seed_is_shown_and_one_alone_is_not_ranked():
    rows = fixes_measurements()
    (table, *_) = section_tables("fixes", Index(rows))
    assert [row[-1] for row in table.rows if row[1] == GRPO] == ["0.72, 0.74"]
    assert standings(Index([m for m in rows if m.seed == 0])) == {}


@pytest.fixture(scope="module")
def index():
    return Index(probe_measurements())


def test_contrasts_are_those_that_were_measured(index):
    assert probed_models(index) == [BASE, GRPO, SDPO]
    assert [probe.arm for probe in probes_made(index)] == [
        Arm("forbid_words"),
        Arm("extra_cue", 1),
        MASKED.arm,
    ]
    forbid, extra, mask = (contrasts(index, probe) for probe in probes_made(index))
    assert [(c.model, c.control) for c in forbid] == [
        (model, control) for model in (BASE, GRPO, SDPO) for control in (Arm("forbid_neutral"), PLAIN)
    ]
    assert [c.difference.side for c in forbid[:2]] == ["below", "below"]
    assert [(c.model, c.difference.side) for c in extra] == [
        (BASE, "level"),
        (GRPO, "level"),
        (SDPO, "above"),
    ]
    assert [(c.model, c.control) for c in mask] == [(SDPO, control) for control in MASKED.controls]
    assert forbid[0].difference.value == pytest.approx(-0.6)
    assert forbid[0].difference.detectable == pytest.approx(0.01 * 1.4294, rel=1e-3)
    assert contrast(index, BASE, Arm("shuffle_words"), PLAIN) is None


def test_a_probe_recovers_a_share_of_the_loss(index):
    extra = next(p for p in probes(1) if p.arm == Arm("extra_cue", 1))
    assert recovered(index, SDPO, extra) == (pytest.approx(0.5), pytest.approx(0.2 / 0.5))
    assert recovered(index, GRPO, extra) is None  # has lost nothing


def test_the_findings_state_the_differences(index):
    text = " ".join(probe_findings(index))
    assert "Epistemic words forbidden, against other words forbidden: base lower, 0.150 for 0.750" in text
    assert "base not told apart (+0.000 [−0.010, +0.010], would find ±0.014)" in text
    lost = "SDPO has lost 0.500 against the base; with"
    assert f"{lost} “epistemic word instead of the end of thinking, 1 ×” 40 % of that comes back." in text
    assert f"{lost} “epistemic words forbidden” another 40 % of that is lost." in text
    assert re.search(r"\d of \d+ comparisons would probably have found a difference of 0\.03; the", text)
    assert probe_words(index) == [
        "base, epistemic words forbidden: maybe 2.50, wait 1.00; together 3.50 per response."
    ]
    assert words_of_arm(index, BASE, Arm("forbid_words")) == {"maybe": 2.5, "wait": 1.0, "might": 0.0}


def test_every_probe_has_a_table_and_values_hold_no_words(index):
    tables = section_tables("probes", index)
    assert [t.title for t in tables if t.is_above] == [
        "Epistemic words forbidden",
        "Epistemic word instead of the end of thinking, 1 ×",
        "No loss at epistemic words",
    ]
    values = next(t for t in tables if t.title == VALUES)
    assert "word" not in values.columns


def test_without_probes_there_are_no_findings():
    index = Index([measured("fixes", GRPO, "k4", "accuracy", 0.7)])
    assert probe_findings(index) == probe_words(index) == probes_made(index) == []
