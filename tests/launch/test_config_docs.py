"""docs/config.md says everything about every setting, and what it says is current."""

import dataclasses

import pytest

from launch import config_docs
from sdistill.config import TrainConfig
from sdistill.contexts import ContextConfig
from sdistill.experiments.config import StudyConfig
from sdistill.fixes import ContrastiveHints

CLASSES = config_docs.classes()


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_field_is_described_and_nothing_else(cls):
    fields, told = {field.name for field in dataclasses.fields(cls)}, config_docs.descriptions(cls)
    assert fields == told.keys(), "give each field a line under `Attributes:` in the docstring"
    assert all(text.endswith((".", "…")) for text in told.values())


def test_the_page_is_current():
    written = config_docs.PAGE.read_text(encoding="utf-8")
    assert written == config_docs.page(), "run: python launch/config_docs.py"


def test_what_the_page_says_of_a_field():
    lines = [
        line for line in config_docs.section(TrainConfig).splitlines() if line.startswith("| `objective`")
    ]
    assert lines[0].startswith(
        "| `objective` | `pretrain`, `sft`, `grpo`, `sdpo` | **needed** | What is minimised"
    )
    hints = {line.split("`")[1]: line for line in config_docs.section(ContrastiveHints).splitlines()[6:]}
    assert "[ContextConfig](#contextconfig) | `kind='solution'` |" in hints["context"]
    assert "`float` | `0.02` | Evidence that counts as much" in hints["temperature"]
    partial = next(line for line in config_docs.section(ContextConfig).splitlines() if "`fraction`" in line)
    assert "`float`, or None | `None` |" in partial


def test_a_class_has_what_the_class_it_extends_says():
    assert config_docs.descriptions(StudyConfig)["seeds"].startswith("Each condition is run under each")
