"""docs/config.md says everything about every setting, and what it says is current."""

import dataclasses

from launch import config_docs
from sdistill.config import ContextConfig, ContrastiveHints, SDPOConfig
from sdistill.experiments.config import StudyConfig
from sdistill.settings import descriptions


def test_every_field_is_described_and_nothing_else():
    for cls in config_docs.classes():
        fields, described = {field.name for field in dataclasses.fields(cls)}, descriptions(cls)
        assert fields == described.keys(), f"{cls}: give each field a line under `Attributes:`"
        assert all(text.endswith((".", "…")) for text in described.values()), cls


def test_the_page_is_current():
    written = config_docs.PAGE.read_text(encoding="utf-8")
    assert written == config_docs.page(), "run: python launch/config_docs.py"


def row(cls, name):
    return next(line for line in config_docs.section(cls).splitlines() if line.startswith(f"| `{name}`"))


def test_what_the_page_says_of_a_field():
    assert row(ContrastiveHints, "teacher").startswith("| `teacher` | [TeacherConfig](#teacherconfig) | **n")
    assert "| `float` | `0.02` | Temperature τ of the evidence" in row(ContrastiveHints, "temperature")
    assert r"| `float \| None` | `None` |" in row(ContextConfig, "fraction")
    assert r"| `'solution' \| 'answer' \|" in row(ContextConfig, "kind")


def test_a_class_refers_to_the_class_that_it_extends():
    assert "It has the fields of [OnPolicyConfig](#onpolicyconfig), too." in config_docs.section(SDPOConfig)
    assert "`rollouts`" not in config_docs.section(SDPOConfig)
    assert descriptions(StudyConfig)["seeds"].startswith("Seeds of every condition")
