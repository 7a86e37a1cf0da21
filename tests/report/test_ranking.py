from sdistill.report.ranking import against, by_seed, standings
from tests.analysis.synthetic import fixes_records, record


def test_fixes_are_ranked_with_ties_visible():
    places = {s.condition: s.place for s in standings(fixes_records())}
    assert places == {
        "grpo": "1–2", "grpo_contrastive_hints": "1–2", "base": "3–4", "sdpo_marker_mask": "3–4",
        "sdpo_pass_rate": "5–6", "sdpo": "5–6",
    }  # fmt: skip
    assert list(places)[:3] == ["grpo", "grpo_contrastive_hints", "base"]  # of a tie the higher first


def test_what_is_compared_with_another_is_above_level_or_below():
    rows = fixes_records()
    assert against(rows, "base") == {
        "above": ["grpo", "grpo_contrastive_hints"],
        "level": ["sdpo_marker_mask"],
        "below": ["sdpo_pass_rate", "sdpo"],
    }
    assert against(rows, "sdpo")["level"] == ["sdpo_pass_rate"]
    wide = record("fixes", "grpo", "k4", "accuracy_minus:base", 0.12, half=0.2, step=40, seed="any")
    assert "grpo" in against([*rows, wide], "base")["level"]  # about other seeds nothing is known


def test_each_seed_is_shown_and_one_alone_is_not_ranked():
    rows = fixes_records()
    assert by_seed(rows, "grpo") == [0.72, 0.74]
    assert standings([r for r in rows if r["seed"] == 0]) == []
