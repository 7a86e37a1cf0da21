import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdistill.data.builders import Aime24, DapoMath17kSeen
from sdistill.data.catalogue import prepared
from sdistill.data.problem_set import Tally, merge_duplicates
from sdistill.settings import ConfigError
from sdistill.tasks.problem import Problem
from tests.data.files import BOXED, dapo_row, verl_row, write_lines, write_parquet


def problem(index, text, answer="1"):
    return Problem(f"set/{index}", ({"role": "user", "content": text},), answer)


@given(
    st.lists(st.tuples(st.sampled_from(["train", "test"]), st.integers(0, 5), st.integers(0, 1)), max_size=40)
)
def test_every_row_is_kept_merged_or_dropped(rows):
    tally = Tally()
    found = [(split, problem(f"{split}{text}", f"text {text}", str(answer))) for split, text, answer in rows]
    splits = merge_duplicates(found, tally)
    answers: dict = {}
    for split, text, answer in rows:
        answers.setdefault((split, text), []).append(answer)
    agreed = [key for key, given in answers.items() if len(set(given)) == 1]
    kept = [(split, int(p.messages[0]["content"][5:]), p) for split, ps in splits.items() for p in ps]
    assert sorted((split, text) for split, text, _ in kept) == sorted(agreed)
    for split, text, p in kept:
        assert p.metadata == {"language": "en", "copies": len(answers[split, text])}
        assert p.answer == str(answers[split, text][0])
    for split in splits:  # in the order in which they first came
        first = list(dict.fromkeys(text for s, text, _ in rows if s == split and (s, text) in agreed))
        assert [text for s, text, _ in kept if s == split] == first
    assert len(rows) == len(kept) + tally.merged + sum(tally.dropped.values())


@pytest.mark.parametrize(
    ("text", "language"),
    [("What is 1?", "en"), ("求 $x$ 的值", "zh"), ("é “quoted” ∑", "en"), ("Let 甲 be", "zh")],
)
def test_language(text, language):
    (kept,) = merge_duplicates([("test", problem(1, text))], Tally())["test"]
    assert kept.metadata["language"] == language


def test_two_problems_with_one_id_are_refused():
    with pytest.raises(ConfigError, match="id 'set/7' belongs to two problems, 'What is 1' and 'What is 2'"):
        merge_duplicates([("a", problem(7, "What is 1")), ("b", problem(7, "What is 2"))], Tally())


def test_the_same_problem_may_be_in_two_splits_and_under_two_ids():
    splits = merge_duplicates(
        [("a", problem(1, "x")), ("b", problem(1, "x")), ("a", problem(2, "x"))], Tally()
    )
    assert {split: [p.id for p in problems] for split, problems in splits.items()} == {
        "a": ["set/1"],
        "b": ["set/1"],
    }


class Odd(Aime24):
    """Objects to odd answers, so that no algebra is needed."""

    name = "odd"

    def defects(self, answers):
        assert len(answers) == len(set(answers))  # each answer is checked once
        return ["odd" if int(answer) % 2 else None for answer in answers]


ROWS = [dapo_row(f"id{i}", f"What is {i // 2}?", str(i // 2)) for i in range(10)]


def test_a_prepared_set_says_what_it_was_made_of(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [*ROWS, dapo_row("new", "What is 4?", "5")])
    builder = prepared(Aime24, tmp_path / "data", files=[path])
    again = Aime24(data_dir=tmp_path / "data", file_format="array_record")
    for metadata in (builder.info.metadata, again.info.metadata):
        assert metadata == {
            "sources": [{"file": "a.parquet", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}],
            "drop_unparsed": False,
            "read": 11,
            "merged": 4,
            "dropped": {"rows give different answers": 3},
            "examples": {"rows give different answers": ["aime24/id8"]},
            "unparsed": [],
        }
    assert again.info.splits["test"].num_examples == 4


@pytest.mark.parametrize("drop", [False, True])
def test_answers_that_cannot_be_parsed_are_listed_and_kept_or_dropped(tmp_path, drop):
    path = write_lines(tmp_path / "a.jsonl", ROWS)
    builder = prepared(Odd, tmp_path, files=[path], drop_unparsed=drop)
    metadata = builder.info.metadata
    assert [tuple(entry) for entry in metadata["unparsed"]] == [
        ("odd/id2", "1", "odd"),
        ("odd/id6", "3", "odd"),
    ]
    assert metadata["dropped"] == ({"reference answer cannot be parsed": 2} if drop else {})
    answers = [record["answer"] for record in builder.as_data_source("test")]
    assert answers == ([b"0", b"2", b"4"] if drop else [b"0", b"1", b"2", b"3", b"4"])
    assert metadata["read"] == metadata["merged"] + sum(metadata["dropped"].values()) + len(answers)


def test_a_set_of_which_nothing_is_left_is_not_prepared(tmp_path):
    rows = [dapo_row("a", "What is 1?", "1"), dapo_row("b", "What is 1?", "2")]
    path = write_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(
        ConfigError, match="a.jsonl: no problem is left; dropped: {'rows give different answers': 2}"
    ):
        prepared(Aime24, tmp_path, files=[path])
    assert not Aime24(data_dir=tmp_path).data_path.exists()


def test_a_split_of_which_nothing_is_left_is_not_there(tmp_path):
    one = write_parquet(tmp_path / "seen_1x64.parquet", [verl_row("a", "What?", str(i)) for i in range(2)])
    two = write_parquet(tmp_path / "seen_64.parquet", [verl_row("b", "How?", "1")])
    builder = prepared(DapoMath17kSeen, tmp_path, files=[one, two])
    assert list(builder.info.splits) == ["seen_64"]


def test_records_become_the_problems_they_were_made_of(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", ROWS[:1])
    (record,) = prepared(Aime24, tmp_path, files=[path]).as_data_source("test")
    prompt = {"role": "user", "content": f"What is 0?{BOXED}"}
    expected = Problem("aime24/id0", (prompt,), "0", {"language": "en", "copies": 1})
    assert Aime24.problem_of(record) == expected
