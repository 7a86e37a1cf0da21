"""docs/scale.md and docs/scale.jsonl: what was compiled for the paper's runs, and what is said of it."""

import dataclasses
import json

import pytest

from launch import compile_check, compile_table
from launch.compile_check import Memory, Report
from launch.compile_table import DOCS, GIB, with_table

LINES = compile_table.read_lines()


def test_the_table_is_what_the_lines_give():
    text = DOCS.read_text()
    assert with_table(text, LINES) == text


def test_every_line_is_of_a_run_as_it_is_laid_out_now_and_there_once():
    assert compile_table.current(LINES) == LINES
    assert len({(line["run"], line["program"]) for line in LINES}) == len(LINES) > 0


def test_every_program_fits_with_a_twentieth_to_spare():
    for line in LINES:
        memory = Report.from_json(line).memory
        assert memory.total == line["total"] <= 0.95 * memory.limit, (line["run"], line["program"])


MEMORY = Memory(2.0 * GIB, 1.0 * GIB, 3.0 * GIB, 4.0 * GIB, 20.0 * GIB)
RUNS = ["section3.py:walk:v5e_4", "section5_sdpo.py:olmo3_7b:v5p_8"]


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Two runs, and nothing compiled of them yet."""
    monkeypatch.setattr(compile_table, "LINES", tmp_path / "scale.jsonl")
    monkeypatch.setattr(compile_table, "DOCS", tmp_path / "scale.md")
    monkeypatch.setattr(compile_table, "runs", lambda: ((run, "v5e:2x2") for run in RUNS))
    monkeypatch.setattr(compile_table, "version", lambda package: f"of {package}")
    (tmp_path / "scale.md").write_text(f"Before.\n{compile_table.BEGIN}\nold\n{compile_table.END}\nAfter.\n")
    return tmp_path


@pytest.fixture
def compiled(monkeypatch):
    """The programs that were asked for, in that order; every third interrupts."""
    asked = []

    def check(config, topology, only, known):
        asked.append((config.init_from.split("/")[0], only))
        if len(asked) % 3 == 0:
            raise KeyboardInterrupt
        key = f"{topology} {only}"
        assert key not in known or known[key].program == only
        yield Report(only, key, topology, 3600.0, 1.0, MEMORY, flops=394e12, traffic=819e9)

    monkeypatch.setattr(compile_check, "check", check)
    return asked


def run_until_done():
    interruptions = 0
    while True:
        try:
            compile_table.main()
            return interruptions
        except KeyboardInterrupt:
            interruptions += 1


def test_what_is_interrupted_goes_on_with_what_is_missing(folder, compiled):
    assert run_until_done() == 4
    lines = [json.loads(line) for line in (folder / "scale.jsonl").read_text().splitlines()]
    assert len(lines) == 10 and len(compiled) == 14
    assert compiled[0] == ("allenai", "gradient")
    assert {line["compiler"] for line in lines} == {"jax of jax, libtpu of libtpu"}
    before = list(compiled)
    compile_table.main()
    assert compiled == before


def test_the_table_stands_between_the_marks(folder, compiled):
    run_until_done()
    text = (folder / "scale.md").read_text()
    assert text.startswith("Before.\n") and text.endswith("\nAfter.\n") and "old" not in text
    assert (
        "| `section5_sdpo.py:olmo3_7b:v5p_8` | v5e:2x2 | fsdp 8 | 8 | 32 | 10.0 | 10.0 "
        "| 10.0 (decode) | 50% | 2.0 (arithmetic) | 2000.0 (arithmetic) | 12 |"
    ) in text
    assert (
        "| `section3.py:walk:v5e_4` | v5e:2x2 | tensor 4 | – | 8 | – | – "
        "| 10.0 (decode) | 50% | – | 2000.0 (arithmetic) | 8 |"
    ) in text
    assert "Not compiled" not in text


def test_lines_of_another_layout_are_made_again(folder, compiled):
    run_until_done()
    lines = [json.loads(line) for line in (folder / "scale.jsonl").read_text().splitlines()]
    lines[0]["layout"]["slots"] += 1
    (folder / "scale.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]))
    shown = with_table((folder / "scale.md").read_text(), compile_table.current(lines[:-1]))
    assert f"Not compiled: `{RUNS[1]}` (gradient, update)." in shown and "| ≈ 41 | – | 10.0 (decode)" in shown
    before = len(compiled)
    run_until_done()
    assert {x[1] for x in compiled[before:]} == {"gradient", "update"}


def test_what_is_not_compiled_is_estimated(folder):
    (row,) = (line for line in compile_table.table([]).splitlines() if "olmo3_7b" in line and line[0] == "|")
    assert row.split(" | ")[5:9] == ["≈ 41", "–", "≈ 79", "–"]


def test_what_does_not_fit_is_said():
    full = dataclasses.replace(MEMORY, temporaries=20.0 * GIB)
    line = {"run": RUNS[0], **Report("decode", "", "v5e:2x2", 1.0, 1.0, full, 0.0, 819e9).to_json()}
    assert "| 27.0 (decode) | does not fit | – | 1000.0 (memory) | – |" in compile_table.table([line])
