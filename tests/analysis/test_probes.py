import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdistill.analysis.epistemic import WORDS
from sdistill.analysis.probes import can_shuffle, first_half, followed_by, probes, shuffled, thinking
from sdistill.report.probe_results import contrast, contrasts, measured, models, regained, said
from sdistill.report.probes import findings, words_named
from sdistill.report.tables import PROBE_COLUMNS, VALUES, section_tables
from tests.analysis.synthetic import probe_records, record


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("a b yes </think> + -", "a b yes"),
        ("a\n</think>\n\n4 </think>", "a"),
        ("a b", None),
        ("</think> 4", ""),
    ],
)
def test_thinking_is_what_comes_before_its_end(response, expected):
    assert thinking(response) == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("a b c d e </think> f g h i j", "a b"),
        ("a  b\nc d", "a  b"),
        ("a </think> b", ""),
        ("", ""),
    ],
)
def test_the_first_half_is_of_the_thinking(response, expected):
    assert first_half(response) == expected


def test_a_cue_is_a_word_of_its_own():
    assert [followed_by(text, "wait") for text in ("", "a", "a\n")] == ["wait", "a wait", "a\nwait"]


TEXTS = st.lists(st.sampled_from(["maybe", "Wait", "hmm", "8", "-3", "awaits", "so"])).map(" ".join)


@given(TEXTS, st.integers())
def test_shuffling_moves_the_words_among_their_places_and_nothing_else(text, seed):
    moved = shuffled(text, WORDS, random.Random(seed))
    before, after = text.split(), moved.split()
    marked = [word.lower() in WORDS for word in before]
    assert [w for w, m in zip(before, marked, strict=True) if not m] == [
        w for w, m in zip(after, marked, strict=True) if not m
    ]
    assert sorted(before) == sorted(after)
    assert can_shuffle(text, WORDS) or moved == text


def test_shuffling_does_move():
    text = "maybe 1 wait 2 hmm 3 actually 4"
    assert len({shuffled(text, WORDS, random.Random(seed)) for seed in range(200)}) == 24


def test_contrasts_are_those_that_were_measured():
    records = probe_records()
    assert models(records) == ["base", "grpo", "sdpo"]
    assert [probe.arm for probe in measured(records)] == ["forbid_words", "extra_cue_1", "mask_words"]
    forbid, extra, mask = (contrasts(records, probe) for probe in measured(records))
    assert [(c.model, c.control) for c in forbid] == [
        (model, control) for model in ("base", "grpo", "sdpo") for control in ("forbid_neutral", "plain")
    ]
    assert [c.side for c in forbid[:2]] == ["lower", "lower"]
    assert [(c.model, c.side) for c in extra] == [("base", "level"), ("grpo", "level"), ("sdpo", "higher")]
    assert [(c.model, c.control) for c in mask] == [("sdpo", "mask_others"), ("sdpo", "plain")]
    assert forbid[0].difference["value"] == pytest.approx(-0.6)
    assert forbid[0].detectable == pytest.approx(0.01 * 1.4294, rel=1e-3)
    assert contrast(records, "base", "shuffle_words", "plain") is None


def test_what_a_probe_gives_back_is_a_share_of_what_was_lost():
    records = probe_records()
    extra = next(p for p in probes(1) if p.arm == "extra_cue_1")
    assert regained(records, "sdpo", extra) == pytest.approx(0.2 / 0.5)
    assert regained(records, "grpo", extra) is None  # has lost nothing


def test_the_reading_is_that_of_the_figures():
    text = " ".join(findings(probe_records()))
    assert "Uncertainty words forbidden, against other words forbidden: base lower, 0.150 for 0.750" in text
    assert "base not told apart (+0.000 [−0.010, +0.010], would find ±0.014)" in text
    lost = "SDPO has lost 0.500 against the base; with"
    assert f"{lost} a word of doubt instead of the end of thinking, 1 × 40 % of that comes back." in text
    assert f"{lost} uncertainty words forbidden another 40 % of that is lost." in text
    assert re.search(r"\d of \d+ comparisons would probably have found a difference of 0\.03; the", text)
    assert words_named(probe_records()) == [
        "base, uncertainty words forbidden: maybe 2.50, wait 1.00; together 3.50 a response."
    ]
    assert said(probe_records(), "base", "forbid_words") == {"maybe": 2.5, "wait": 1.0, "might": 0.0}


def test_every_probe_has_a_table_and_values_do_not_hold_words():
    tables = section_tables("probes", probe_records())
    assert [t.title for t in tables if tuple(t.columns) == PROBE_COLUMNS] == [
        "Uncertainty words forbidden",
        "A word of doubt instead of the end of thinking, 1 ×",
        "No loss at uncertainty words",
    ]
    values = next(t for t in tables if t.title == VALUES)
    assert not any(column.startswith("word:") for column in values.columns)


def test_without_probes_there_is_nothing_to_say():
    rows = [record("fixes", "grpo", "k4", "accuracy", 0.7)]
    assert findings(rows) == words_named(rows) == measured(rows) == []
