"""What is written to disk: the same values come back, and the page of the forms lists their fields."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from sdistill.storage import read_measurements, read_responses, write_measurements, write_responses
from sdistill.types import SCHEMA_VERSION, Condition, Measurement, Response, TokenAttribution
from tests import tiny

PAGE = (Path(__file__).parents[1] / "docs" / "files.md").read_text(encoding="utf-8")

RESPONSES = [
    tiny.response("a", "wait 1", True, answer="1", step=3, bits=0.5, context="1?"),
    tiny.response("b", "\u2028", attribution=TokenAttribution(["\u2028"], [0.1], [1.0], [0.0])),
    tiny.response("c", attribution=TokenAttribution([], [], [])),
]
MEASUREMENTS = [
    Measurement("sft", Condition("sft", "none"), 0, 9, "k3", "accuracy", 0.5, 32, 0.25, 0.75),
    Measurement("fixes", Condition("grpo"), "any", 9, "k4", "length", -1.0, baseline=Condition("base")),
    Measurement("probes", Condition("base", intervention="plain"), "all", 0, "k4", "word", None, group="so"),
]


def test_responses_and_measurements_come_back_as_they_were(tmp_path):
    write_responses(tmp_path / "responses.jsonl.gz", RESPONSES)
    assert read_responses(tmp_path / "responses.jsonl.gz") == RESPONSES
    write_measurements(tmp_path / "results.jsonl", MEASUREMENTS)
    assert read_measurements(tmp_path / "results.jsonl") == MEASUREMENTS


def test_what_is_absent_is_not_written():
    assert MEASUREMENTS[1].to_json() == {
        **{"section": "fixes", "condition": {"method": "grpo"}, "baseline": {"method": "base"}},
        **{"seed": "any", "step": 9, "dataset": "k4", "metric": "length", "value": -1.0},
    }
    assert "divergence" not in json.dumps(RESPONSES[2].to_json())


def test_fields_that_are_not_known_are_refused():
    with pytest.raises(TypeError, match="response"):
        Response.from_json(RESPONSES[0].to_json() | {"response": "of another version"})


def test_labels_tell_conditions_apart():
    conditions = [
        Condition("base"),
        Condition("base", prompt="partial", fraction=0.25),
        Condition("base", prompt="partial_solution", fraction=0.5),
        Condition("grpo", num_problems=64),
        Condition("sdpo", "solution", "ema", 64),
        Condition("sdpo", fix="mask_words", intervention="plain"),
        Condition("sdpo", intervention="extra_cue", attempts=2),
    ]
    assert [c.label for c in conditions] == [
        *("base", "base-partial_25", "base-partial_solution_50", "grpo_64", "sdpo_solution_ema_64"),
        *("sdpo_mask_words-plain", "sdpo-extra_cue_2"),
    ]


def documented(first, last):
    """Names and whether they may be absent, of the table of the page that begins and ends with these."""
    rows = re.findall(r"^\| `(\w+)`( °)? \|", PAGE, re.M)
    names = [name for name, _ in rows]
    start = names.index(first)
    return rows[start : names.index(last, start) + 1]


@pytest.mark.parametrize("kind", [Response, TokenAttribution, Measurement, Condition])
def test_the_page_lists_every_field(kind):
    fields = dataclasses.fields(kind)
    expected = [(f.name, " °" if f.default is None or f.name == "value" else "") for f in fields]
    assert documented(fields[0].name, fields[-1].name) == expected


def test_the_page_names_the_version():
    assert f"version {SCHEMA_VERSION}, `types.SCHEMA_VERSION`" in PAGE


def test_the_page_lists_every_metric_of_training():
    runs = [json.loads(path.read_text()) for path in (Path(__file__).parent / "golden").glob("*.json")]
    names = {name for run in runs for step in run["metrics"] for name in step}
    assert len(names) > 10 and {name for name in names if f"`{name}`" not in PAGE} == set()
