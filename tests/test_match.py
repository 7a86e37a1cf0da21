"""Matched sets: what is taken from several generations, and the forms it is written in."""

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.signs import generate as recipe
from sdistill.data.catalogue import open_problems
from sdistill.generate import DONE, GenerateConfig
from sdistill.match import main, match, matched
from sdistill.settings import ConfigError, parse, to_json
from sdistill.storage import read_records, write_atomically, write_responses
from sdistill.tasks.signs_puzzle import question
from tests import tiny

PUZZLES = [((1, 1, 1), 1), ((8, 4, 7), 5), ((2, 2, 2), 6)]
NAMES = [question(*puzzle) for puzzle in PUZZLES]
counts = st.lists(st.integers(0, 4), min_size=3, max_size=3)


@given(st.lists(counts, min_size=2, max_size=4), st.integers(1, 12), st.integers(1, 4))
def test_sets_have_the_same_problems_and_counts(found, responses, per_problem):
    sets = {
        str(i): {
            name: [tiny.response(name, sample=n) for n in range(count)]
            for name, count in zip(NAMES, of, strict=True)
        }
        for i, of in enumerate(found)
    }
    chosen = matched(sets, NAMES, responses=responses, per_problem=per_problem)
    shared = [min(per_problem, *column) for column in zip(*found, strict=True)]
    expected = [
        tiny.response(name, sample=n) for name, count in zip(NAMES, shared, strict=True) for n in range(count)
    ]
    assert chosen == dict.fromkeys(sets, expected[:responses])


def generation(folder, data_dir, texts, **changes):
    """A complete generation with these (problem, response, correct)."""
    values = recipe.get_config().to_dict() | {"data_dir": str(data_dir), "split": "k3_pool"} | changes
    write_atomically(folder / "config.json", to_json(parse(GenerateConfig, values)).encode())
    write_responses(folder / DONE, (tiny.response(*text) for text in texts))
    return folder


@pytest.fixture
def two(tmp_path, pool, data_dir):
    first = [
        (pool[0].id, "a", False),
        (pool[0].id, "b", True),
        (pool[1].id, "c", True),
        (pool[2].id, "d", True),
    ]
    second = [(pool[1].id, "e", True), (pool[0].id, "f", True), (pool[0].id, "g", True)]
    return [
        generation(tmp_path / name, data_dir, texts)
        for name, texts in (("unguided", first), ("guided", second))
    ]


@pytest.fixture(scope="module")
def pool(data_dir):
    return open_problems("k3_pool", str(data_dir))


def test_what_is_written(two, pool, tmp_path):
    found = match(two, tmp_path / "out", responses=800, per_problem=8)
    assert found == {"responses": 2, "problems": 2}
    prompts = [f"{problem.id} <think>" for problem in pool[:2]]
    for name, responses in (("unguided", ["b", "c"]), ("guided", ["f", "e"])):
        rows = [{"prompt": p, "response": r} for p, r in zip(prompts, responses, strict=True)]
        assert read_records(tmp_path / "out" / f"{name}.jsonl.gz") == rows
        conversations = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        turns = [[turn["content"] for turn in c["messages"]] for c in conversations]
        # The prompt opened the thinking; a conversation has the tag in its answer.
        assert turns == [[pool[i].id, f"<think>{response}"] for i, response in enumerate(responses)]
        assert [turn["role"] for turn in conversations[0]["messages"]] == ["user", "assistant"]
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text())
    assert {entry["file_name"] for entry in info.values()} == {"unguided.json", "guided.json"}


def test_what_cannot_be_matched_is_refused(two, pool, data_dir, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="give two generations or more"):
        match(two[:1], out, responses=8, per_problem=1)
    with pytest.raises(ConfigError, match="last parts must differ"):
        match([two[0], two[0]], out, responses=8, per_problem=1)
    other = generation(tmp_path / "other", data_dir, [(pool[0].id, "x", True)], split="k4_pool")
    with pytest.raises(ConfigError, match=r"split differs among the generations: \['k3_pool', 'k4_pool'\]"):
        match([two[0], other], out, responses=8, per_problem=1)
    wrong = generation(tmp_path / "wrong", data_dir, [(pool[0].id, "x", False)])
    with pytest.raises(ConfigError, match="no problem has a correct response in every generation"):
        match([two[0], wrong], out, responses=8, per_problem=1)
    assert not out.exists()


def test_the_command_says_what_it_matched(two, tmp_path, monkeypatch, capsys):
    command = ["match", *map(str, two), "--responses", "3", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    main()
    assert "only 2 of 3 responses could be matched" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="^error: .* is not empty; give a new folder$"):
        main()
