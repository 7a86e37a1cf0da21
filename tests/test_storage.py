import gzip
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdistill.settings import ConfigError
from sdistill.storage import (
    CONFIG_FILE,
    Journal,
    check_workdir,
    read_records,
    responses_file,
    responses_files,
    to_lines,
    write_atomically,
    write_records,
    write_responses,
)

RECORDS = [{"a": 1, "b": [1.5, None, True]}, {"text": "maybe − é 漢"}, {}]


@pytest.mark.parametrize("name", ["records.jsonl", "records.jsonl.gz"])
def test_records_round_trip(tmp_path, name):
    path = tmp_path / "deep" / "er" / name
    write_records(path, iter(RECORDS))
    assert read_records(path) == RECORDS
    assert [p.name for p in path.parent.iterdir()] == [name]


def test_no_file_and_an_empty_one_have_no_records(tmp_path):
    assert read_records(tmp_path / "none.jsonl") == []
    write_records(tmp_path / "empty.jsonl.gz", [])
    assert read_records(tmp_path / "empty.jsonl.gz") == []


@pytest.mark.parametrize("character", ["\x85", "\u2028", "\u2029"])
def test_line_separators_inside_text_do_not_end_a_record(tmp_path, character):
    records = [{"response": f"a{character}b"}]
    write_records(tmp_path / "r.jsonl", records)
    assert read_records(tmp_path / "r.jsonl") == records


SAFE = st.text(st.characters(exclude_categories=["Cs", "Zl", "Zp"], exclude_characters="\x85"))


@given(
    st.lists(st.dictionaries(SAFE, SAFE | st.integers() | st.floats(allow_nan=False, allow_infinity=False)))
)
def test_any_text_round_trips(tmp_path_factory, records):
    path = tmp_path_factory.getbasetemp() / "any.jsonl.gz"
    write_records(path, records)
    assert read_records(path) == records


def test_lines_are_json_readable_as_they_are():
    lines = to_lines(RECORDS)
    assert "漢".encode() in lines and lines.endswith(b"}\n")
    assert [json.loads(line) for line in lines.split(b"\n")[:-1]] == RECORDS


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_figures_that_are_not_finite_are_refused_and_nothing_is_written(tmp_path, value):
    path = tmp_path / "records.jsonl"
    write_records(path, RECORDS)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_records(path, [{"value": value}])
    assert read_records(path) == RECORDS


def test_equal_records_are_equal_bytes(tmp_path, monkeypatch):
    write_records(tmp_path / "a.jsonl.gz", RECORDS)
    monkeypatch.setattr("time.time", lambda: 2e9)
    write_records(tmp_path / "b.jsonl.gz", RECORDS)
    content = (tmp_path / "a.jsonl.gz").read_bytes()
    assert content == (tmp_path / "b.jsonl.gz").read_bytes()
    assert gzip.decompress(content) == to_lines(RECORDS)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_is_interrupted_leaves_the_old_content(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    write_atomically(path, b"newer")
    assert path.read_bytes() == b"newer" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("torn", [b"", b'{"n": 1', b'{"n": 2}'])
def test_a_journal_goes_on_after_its_last_whole_record(tmp_path, torn):
    """Of a run that had two processes, and goes on with one."""
    path = tmp_path / "new" / "journal.jsonl"
    own, other = path.with_name("journal-0.jsonl"), path.with_name("journal-1.jsonl")
    journal = Journal(path)
    journal.add({"n": 0})
    assert journal.records == []
    journal.share()
    assert journal.records == [{"n": 0}]
    journal.close()
    with open(own, "ab") as file:
        file.write(torn)
    other.write_bytes(b'{"n": 50}\n' + torn)
    journal = Journal(path)
    assert journal.records == [{"n": 0}, {"n": 50}]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: journal.add({"n": n, "text": "x" * 10_000}), range(1, 50)))
    journal.share()
    journal.close()
    assert read_records(own) == [{"n": 0}, *journal.records[2:]]
    assert sorted(record["n"] for record in journal.records) == list(range(51))
    journal.remove()
    assert not list(path.parent.iterdir())


def settings(**changes) -> str:
    return json.dumps({"steps": 3, "mesh": {"fsdp": 8}, "slots": 4} | changes, indent=1)


@pytest.fixture
def begun(tmp_path):
    """The directory of a run."""
    write_atomically(tmp_path / CONFIG_FILE, settings().encode())
    return tmp_path


def test_a_new_directory_is_made_and_left_empty(tmp_path):
    check_workdir(tmp_path / "a" / "run", settings())
    assert list((tmp_path / "a" / "run").iterdir()) == []


def test_a_run_goes_on_under_its_own_settings_and_no_others(begun):
    check_workdir(begun, settings())
    for changes, named in (
        ({"steps": 4}, r"steps=3 there, 4 here"),
        ({"mesh": {"fsdp": 4}}, r"mesh\.fsdp=8 there, 4 here"),
        ({"mesh": None}, r"mesh=absent there, null here"),
        ({"seed": 0}, r"seed=absent there, 0 here"),
    ):
        with pytest.raises(ConfigError, match=named) as error:
            check_workdir(begun, settings(**changes))
        assert str(begun) in str(error.value) and "another --workdir" in str(error.value)


def test_a_run_goes_on_under_another_layout_and_says_so(begun, caplog):
    layout = ("mesh", "slots")
    check_workdir(begun, settings(), may_differ=layout)
    assert caplog.messages == []
    with caplog.at_level(logging.WARNING, "sdistill"):
        check_workdir(begun, settings(mesh={"fsdp": 4}, slots=8), may_differ=layout)
    assert len(caplog.messages) == 1
    assert "mesh.fsdp=8 there, 4 here; slots=4 there, 8 here" in caplog.messages[0]
    with pytest.raises(ConfigError, match="steps=3 there, 4 here"):
        check_workdir(begun, settings(mesh={"fsdp": 4}, steps=4), may_differ=layout)


def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
    """For root, too: what is in the way is a file."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written: .*storage.objectUser") as error:
        check_workdir(tmp_path / "file" / "run", settings())
    assert str(tmp_path / "file" / "run") in str(error.value)


def test_files_of_responses_are_found_by_data_set_and_step(tmp_path):
    names = {("k3_test", 0), ("k3_test", 20), ("train", 20)}
    for dataset, step in names:
        write_responses(responses_file(tmp_path, dataset, step), [])
    for other in ("sft_answer.jsonl.gz", "journal-0.jsonl", "metrics.jsonl"):
        (tmp_path / other).touch()
    found = responses_files(tmp_path)
    assert found == {name: responses_file(tmp_path, *name) for name in names}
    assert responses_files(tmp_path / "absent") == {}
