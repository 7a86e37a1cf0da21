import hashlib
import random

import pytest

from sdistill.data import builders
from sdistill.data.builders import Aime25, SignsProblems
from sdistill.data.catalogue import ENTRIES, find, open_problems, subset_of, task_of
from sdistill.data.prepare import prepare
from sdistill.data.problem_set import Source
from sdistill.settings import ConfigError
from sdistill.tasks.code import CodeTask
from sdistill.tasks.mathematics import MathematicsTask
from sdistill.tasks.multiple_choice import MultipleChoiceTask
from sdistill.tasks.problem import Problem
from sdistill.tasks.signs_puzzle import SignsTask
from tests.data.files import dapo_row, plain_row, write_lines

PROBLEMS = [
    Problem(f"dapo_math_17k/{i}", ({"role": "user", "content": f"What is {i}?"},), str(i)) for i in range(90)
]


@pytest.mark.parametrize(
    "name", ["aime26", "dapo_math_17k_0", "dapo_math_17k_-1", "math500_64", "seen_64", ""]
)
def test_unknown_names_are_refused_with_those_there_are(name):
    with pytest.raises(ConfigError, match=f"no problems are called {name!r}; ") as error:
        open_problems(name)
    assert all(known in str(error.value) for known in ENTRIES)


def test_a_near_name_is_offered():
    with pytest.raises(ConfigError, match="did you mean 'math500'"):
        find("math_500")


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("k3_test", SignsTask),
        ("dapo_math_17k_64_seed2", MathematicsTask),
        ("dapo_math_17k_seen_64", MathematicsTask),
        ("math500", MathematicsTask),
        ("sciknoweval_material_train", MultipleChoiceTask),
        ("livecodebench_v6", CodeTask),
    ],
)
def test_every_set_has_its_task(name, task):
    assert type(task_of(name)) is task


def test_subsets_are_nested_and_do_not_depend_on_the_order_of_the_file():
    mixed = random.Random(0).sample(PROBLEMS, len(PROBLEMS))
    for seed in (0, 1):
        sets = [subset_of(PROBLEMS, n, seed) for n in (1, 8, 64)]
        assert [len(set(p.id for p in s)) for s in sets] == [1, 8, 64]
        assert sets[0] == sets[2][:1] and sets[1] == sets[2][:8]
        assert subset_of(mixed, 8, seed) == sets[1]
        without = [p for p in PROBLEMS if p != sets[2][3]]
        assert subset_of(without, 7, seed) == sets[1][:3] + sets[1][4:]
    assert subset_of(PROBLEMS, 64, 0) != subset_of(PROBLEMS, 64, 1)
    assert subset_of(PROBLEMS, 90, 0) != tuple(PROBLEMS)


@pytest.fixture
def dapo(tmp_path):
    path = write_lines(
        tmp_path / "dapo.jsonl", [dapo_row(f"u{i}", f"What is {i}?", str(i)) for i in range(20)]
    )
    prepare("dapo_math_17k", tmp_path, files=[path])
    return tmp_path


def test_subsets_by_name(dapo):
    whole = list(open_problems("dapo_math_17k", dapo))
    assert open_problems("dapo_math_17k_8", dapo) == subset_of(whole, 8, 0)
    assert open_problems("dapo_math_17k_8_seed3", dapo) == subset_of(whole, 8, 3)
    assert sorted(p.id for p in open_problems("dapo_math_17k_20", dapo)) == sorted(p.id for p in whole)
    with pytest.raises(ConfigError, match="'dapo_math_17k_21': dapo_math_17k has only 20 problems"):
        open_problems("dapo_math_17k_21", dapo)


def test_what_is_asked_for_is_prepared_from_a_file_put_into_its_place(tmp_path, monkeypatch):
    place = tmp_path / "downloads" / "aime25"
    place.mkdir(parents=True)
    path = write_lines(place / "test.jsonl", [plain_row("0", "What is 1?", "1")])
    source = Source("http://127.0.0.1:1/test.jsonl", hashlib.sha256(path.read_bytes()).hexdigest(), "MIT")
    monkeypatch.setattr(Aime25, "SOURCES", (source,))
    assert [p.answer for p in open_problems("aime25", tmp_path)] == ["1"]


def test_what_cannot_be_had_is_refused_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(Aime25, "SOURCES", (Source("http://127.0.0.1:1/test.jsonl", None, "MIT"),))
    with pytest.raises(ConfigError, match="aime25 is not prepared, and .* cannot be downloaded") as error:
        open_problems("aime25", tmp_path)
    assert f"put it at {tmp_path}/downloads/aime25/test.jsonl" in str(error.value)
    assert f"prepare aime25 --data_dir {tmp_path} --from test.jsonl" in str(error.value)


def test_of_two_runs_that_prepare_at_the_same_time_the_slower_reads_what_the_other_made(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(builders, "PROBLEM_SPLITS", ("k3_test",))
    alone, prepare_splits = [], SignsProblems._split_generators

    def overtaken(builder, manager):
        monkeypatch.setattr(SignsProblems, "_split_generators", prepare_splits)
        alone.extend(open_problems("k3_test", tmp_path))  # the other run, from beginning to end
        return prepare_splits(builder, manager)

    monkeypatch.setattr(SignsProblems, "_split_generators", overtaken)
    assert list(open_problems("k3_test", tmp_path)) == alone != []
    assert not list(tmp_path.rglob("*incomplete*"))
