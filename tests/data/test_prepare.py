import pytest

from sdistill.data import builders, prepare
from tests.data.files import dapo_row, plain_row, write_lines, write_parquet


def run(capsys, *arguments):
    prepare.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def test_the_command_says_what_became_of_the_rows(tmp_path, capsys):
    rows = [dapo_row(f"u{i}", f"What is {i}?", str(i)) for i in range(5)] * 3
    path = write_parquet(tmp_path / "dapo.parquet", [*rows, dapo_row("v", "What is 1?", "one [sic]")])
    shown = run(capsys, "dapo_math_17k", "--from", path, "--data_dir", tmp_path)
    for expected in (
        "train: 4 problems",
        "16 rows read, 8 of them repeated and merged",
        "4 rows dropped: rows give different answers, for instance dapo_math_17k/u1",
    ):
        assert expected in shown.splitlines(), shown
    again = run(capsys, "dapo_math_17k", "--data_dir", tmp_path)
    assert again.splitlines()[-5:] == shown.splitlines()[-5:]


@pytest.mark.parametrize("word", ["keep", "drop"])
def test_answers_that_cannot_be_parsed_are_listed(tmp_path, capsys, word):
    rows = [plain_row("a", "What is 1?", "1"), plain_row("b", "What is 2?", "2" * 2001)]
    path = write_lines(tmp_path / "test.jsonl", rows)
    shown = run(capsys, "math500", "--from", path, "--data_dir", tmp_path, "--unparsed", word)
    kept = {"keep": "kept", "drop": "dropped"}[word]
    assert f"1 reference answers cannot be parsed; their problems were {kept}:" in shown
    assert f"  math500/b: {'2' * 2001!r}: it has 2001 characters, more than 2000" in shown
    assert f"test: {len(rows) if word == 'keep' else 1} problems" in shown


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        prepare.main([str(argument) for argument in arguments])
    message = str(end.value)
    assert message.startswith("error: ")
    return message


def test_what_is_there_is_not_passed_off_as_something_else(tmp_path, capsys):
    first = write_lines(tmp_path / "first.jsonl", [plain_row("a", "What is 1?", "1")])
    other = write_lines(tmp_path / "other.jsonl", [plain_row("a", "What is 2?", "2")])
    run(capsys, "aime25", "--from", first, "--data_dir", tmp_path)
    run(capsys, "aime25", "--from", first, "--data_dir", tmp_path)
    way_out = f"; remove {tmp_path}/aime25/1.0.0 or give another --data_dir"
    message = refused(capsys, "aime25", "--from", other, "--data_dir", tmp_path)
    assert "aime25 is prepared already, from another file (first.jsonl)" + way_out in message
    message = refused(capsys, "aime25", "--data_dir", tmp_path, "--unparsed", "drop")
    assert "aime25 is prepared with --unparsed keep" + way_out in message


def test_mistakes_end_in_one_line(tmp_path, capsys):
    assert "no problems are called 'aime_25'; did you mean 'aime25'?" in refused(capsys, "aime_25")
    assert f"{tmp_path}/none.jsonl: no such file" in refused(
        capsys, "aime25", "--from", tmp_path / "none.jsonl", "--data_dir", tmp_path
    )
    path = write_lines(tmp_path / "a.jsonl", [plain_row("a", "What?", "1")])
    assert "signs_problems is generated; --from has no effect" in refused(capsys, "k3_test", "--from", path)


def test_generated_sets_are_prepared_too(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(builders, "PROBLEM_SPLITS", ("k3_test",))
    shown = run(capsys, "signs_problems", "--data_dir", tmp_path)
    assert f"signs_problems is in {tmp_path}" in shown and "k3_test: 441 problems" in shown
