"""Each data set, from a small file in the schema of its public one; and from the real files if given."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress

from sdistill.data import builders, prepare
from sdistill.data.builders import SYSTEM_PROMPT, boxed_prompt, split_indices
from sdistill.data.catalogue import open_corpus, open_problems
from sdistill.data.problem_set import read_rows
from sdistill.settings import ConfigError
from sdistill.tasks.code import read_tests
from sdistill.tasks.multiple_choice import MultipleChoiceTask
from sdistill.tasks.problem import Problem
from sdistill.tasks.signs_puzzle import all_questions, parse_question, question, solutions, split_of
from sdistill.tasks.signs_reasoner import Habits, example
from tests.data.files import (
    BOXED,
    DAPO_CLOSING,
    DAPO_OPENING,
    as_json_text,
    code_row,
    dapo_row,
    pack,
    plain_row,
    science_row,
    verl_row,
    write_lines,
    write_parquet,
)
from tests.public_files import public_file


@given(st.text())
def test_posing_a_problem_again_changes_nothing(text):
    once = boxed_prompt(text)
    assert once.endswith(BOXED) and boxed_prompt(once) == once
    assert boxed_prompt(f"{DAPO_OPENING}{text.strip()}{DAPO_CLOSING}") == once


def test_instructions_within_a_problem_stay():
    text = f"Ann says: Solve the following math problem step by step. {DAPO_CLOSING} Bob solves it."
    assert boxed_prompt(text) == text + BOXED


def test_dapo_is_merged_rewritten_and_in_the_order_of_the_file(tmp_path):
    questions = [("u3", "What is $3$?", "3"), ("u1", "求 $1$", "1"), ("u2", " What is 2?\n", "2")]
    rows = [dapo_row(*question) for _ in range(4) for question in questions]
    path = write_parquet(tmp_path / "dapo.parquet", rows)
    prepare.prepare("dapo_math_17k", tmp_path, files=[path])
    problems = open_problems("dapo_math_17k", tmp_path)
    assert [p.id for p in problems] == [f"dapo_math_17k/{u}" for u in ("u3", "u1", "u2")]
    assert [p.messages[0]["content"] for p in problems] == [
        f"What is $3$?{BOXED}",
        f"求 $1${BOXED}",
        f"What is 2?{BOXED}",
    ]
    assert [p.metadata for p in problems] == [{"language": lang, "copies": 4} for lang in ("en", "zh", "en")]


def test_the_papers_subsets_are_read_by_the_names_of_their_files(tmp_path):
    one = write_parquet(tmp_path / "seen_1x64.parquet", [verl_row("a", f"What a?{BOXED}", "1")] * 64)
    two = write_parquet(
        tmp_path / "seen_8x8.parquet", [verl_row(c, f"What {c}?{BOXED}", "1") for c in "abcdefgh"] * 8
    )
    prepare.prepare("dapo_math_17k_seen", tmp_path, files=[one, two])
    assert [p.metadata["copies"] for p in open_problems("dapo_math_17k_seen_1", tmp_path)] == [64]
    assert [p.metadata["copies"] for p in open_problems("dapo_math_17k_seen_8", tmp_path)] == [8] * 8
    with pytest.raises(
        ConfigError, match="no split 'seen_64' in dapo_math_17k_seen; it has seen_1x64, seen_8x8"
    ):
        open_problems("dapo_math_17k_seen_64", tmp_path)
    other = write_parquet(tmp_path / "seen_2.parquet", [verl_row("a", "What?", "1")])
    with pytest.raises(
        ConfigError, match="seen_2.parquet, row 1: .*must be named one of seen_1x64, seen_8x8, "
    ):
        prepare.prepare("dapo_math_17k_seen", tmp_path / "other", files=[other])


@pytest.mark.parametrize("name", ["aime24", "aime25", "amc23", "math500"])
def test_all_forms_of_mathematics_are_the_same_problem(tmp_path, name):
    question, answer = "What is $\\frac{1}{2}$ of 4?", "2"
    extra = {"subject": "Algebra", "level": 2}
    verl = verl_row("test/1.json", question + BOXED, answer, **extra)
    plain = plain_row("test/1.json", question, answer, **extra)
    renamed = {"question": question, "answer": answer, "id": "test/1.json", **extra}
    rows = (verl, as_json_text(verl), plain, renamed)
    files = [write_lines(tmp_path / f"{index}.jsonl", [row]) for index, row in enumerate(rows)]
    prepare.prepare(name, tmp_path, files=files)
    (problem,) = open_problems(name, tmp_path)
    assert problem == Problem(
        f"{name}/test/1.json",
        ({"role": "user", "content": question + BOXED},),
        answer,
        {"language": "en", "copies": 4, **extra},
    )


def test_answers_that_are_numbers_in_the_file(tmp_path):
    rows = [{"id": i, "question": f"What is {i}?", "answer": float(i), "url": ""} for i in (27, -1)]
    prepare.prepare("amc23", tmp_path, files=[write_parquet(tmp_path / "amc.parquet", rows)])
    assert [(p.id, p.answer) for p in open_problems("amc23", tmp_path)] == [
        ("amc23/27", "27"),
        ("amc23/-1", "-1"),
    ]


def test_mathematics_of_neither_form_is_refused_by_row_and_column(tmp_path):
    rows = [plain_row("a", "What is 1?", "1"), {"problem": "What is 2?", "solution": "2"}]
    with pytest.raises(
        ConfigError, match="a.jsonl, row 2: column answer is missing; there are problem, solution"
    ):
        prepare.prepare("aime25", tmp_path, files=[write_lines(tmp_path / "a.jsonl", rows)])
    turns = verl_row("a", "What?", "1")
    turns["prompt"].insert(0, {"role": "system", "content": "Be brief."})
    with pytest.raises(ConfigError, match="b.jsonl, row 1: column prompt must be one message, not 2"):
        prepare.prepare("aime25", tmp_path, files=[write_lines(tmp_path / "b.jsonl", [turns])])


# SciKnowEval.


@given(st.integers(1, 500))
def test_a_tenth_of_the_questions_rounded_up_is_for_testing(count):
    split = split_indices(count)
    assert sorted([*split["test"], *split["train"]]) == list(range(count))
    assert count <= 10 * len(split["test"]) < count + 10
    assert split_indices(count) == split


@pytest.fixture(scope="module")
def science(tmp_path_factory):
    folder = tmp_path_factory.mktemp("science")
    rows = [science_row(f"Question {i}?", "ABCD"[i % 4]) for i in range(30)]
    rows += [science_row(f"Fact {i}?", level="L1") for i in range(3)]
    rows += [
        science_row("Open?", type="open-ended-qa"),
        science_row("Two?", type="mcq-2-choices", labels="AB"),
    ]
    rows += [science_row(f"Cell {i}?", domain="Biology") for i in range(11)]
    prepare.prepare("sciknoweval", folder, files=[write_lines(folder / "v2.jsonl", rows)])
    return folder


def test_science_is_split_by_domain(science):
    sizes = {
        f"{domain}_{split}": len(open_problems(f"sciknoweval_{domain}_{split}", science))
        for domain in ("chemistry", "biology")
        for split in ("train", "test")
    }
    assert sizes == {"chemistry_train": 27, "chemistry_test": 4, "biology_train": 9, "biology_test": 2}
    with pytest.raises(ConfigError, match="no split 'physics_test' in sciknoweval"):
        open_problems("sciknoweval_physics_test", science)
    dropped = prepare.prepare("sciknoweval", science).info.metadata["dropped"]
    assert dropped == {"not of level L3": 3, "not multiple choice": 1}


def test_science_is_posed_as_released(science):
    problems = [
        p for split in ("train", "test") for p in open_problems(f"sciknoweval_chemistry_{split}", science)
    ]
    found = {p.messages[1]["content"].split("\n")[0]: p for p in problems}
    two = found["Two?"]
    assert two.id == "sciknoweval/chemistry/30" and two.metadata["letters"] == "AB"
    for index in range(30):
        problem = found[f"Question {index}?"]
        options = "\n".join(f"{letter}: choice {letter}" for letter in "ABCD")
        assert problem.messages[1] == {
            "role": "user",
            "content": f"Question {index}?\n\n{options}\nPlease reason step by step.",
        }
        assert problem.messages[0] == {"role": "system", "content": SYSTEM_PROMPT}
        assert (problem.id, problem.answer) == (f"sciknoweval/chemistry/{index}", "ABCD"[index % 4])
        assert MultipleChoiceTask().verify(problem, f"<answer>\n{problem.answer}\n</answer>").correct


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"domain": "Alchemy"},
            "column domain must be one of biology, chemistry, material, physics, not 'alchemy'",
        ),
        ({"answer": "E"}, "column answerKey must be one of A, B, C, D, not 'E'"),
    ],
)
def test_science_that_makes_no_sense_is_refused(tmp_path, change, message):
    path = write_lines(tmp_path / "v2.jsonl", [science_row("Fine?"), science_row("Not?", **change)])
    with pytest.raises(ConfigError, match=f"v2.jsonl, row 2: {message}"):
        prepare.prepare("sciknoweval", tmp_path, files=[path])


def test_the_released_split_files_give_the_same_problems(science, tmp_path):
    problems = open_problems("sciknoweval_chemistry_test", science)
    rows = [
        {
            "idx": int(p.id.rpartition("/")[2]),
            "kind": "mcq",
            "answer": p.answer,
            "prompt": p.messages[1]["content"],
            "system": p.messages[0]["content"],
        }
        for p in problems
    ]
    prepare.prepare("sciknoweval", tmp_path, files=[write_lines(tmp_path / "chemistry_test.json", rows)])
    assert open_problems("sciknoweval_chemistry_test", tmp_path) == problems


# LiveCodeBench.


def test_programming_problems_carry_their_tests(tmp_path):
    rows = [
        code_row("abc_a"),
        code_row("abc_b", packed=False),
        code_row("leet", function="double", tests=[{"input": "2", "output": "4"}]),
        code_row("early", date="2025-01-31T23:59:59"),
        code_row("first", date="2025-02-01T00:00:00"),
        code_row("late", date="2025-05-01T00:00:00"),
    ]
    builder = prepare.prepare(
        "livecodebench_v6", tmp_path, files=[write_lines(tmp_path / "test6.jsonl", rows)]
    )
    problems = {p.id.partition("/")[2]: p for p in open_problems("livecodebench_v6", tmp_path)}
    assert list(problems) == ["abc_a", "abc_b", "leet", "first"]
    assert sum(builder.info.metadata["dropped"].values()) == 2
    tests = [{"input": "1\n", "output": "2\n"}, {"input": "3\n", "output": "4\n"}]
    assert read_tests(problems["abc_a"]) == read_tests(problems["abc_b"]) == (tests, None)
    assert read_tests(problems["leet"]) == ([{"input": "2", "output": "4"}], "double")
    prompt = problems["leet"].messages[0]["content"]
    assert prompt.endswith("signature: ```python\ndef double(n: int) -> int:\n```") and "self" not in prompt
    assert problems["abc_a"].messages[0]["content"].endswith("with ```.\n\nDo abc_a.")


class Harmful:
    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


@pytest.mark.parametrize(
    "tests", [pack(Harmful()), pack("no JSON"), "no base 64", pack(3), '[{"input": "1"}]']
)
def test_tests_that_cannot_be_read_are_refused_and_never_run(tmp_path, tests):
    row = {**code_row("a"), "private_test_cases": tests}
    with pytest.raises(ConfigError, match="test6.jsonl, row 1: column private_test_cases cannot be read: "):
        prepare.prepare("livecodebench_v6", tmp_path, files=[write_lines(tmp_path / "test6.jsonl", [row])])


# The signs puzzle.

SPLITS = ("k3_pool", "k4_pool", "k3_test", "k4_test", "k5_test")


@pytest.fixture(scope="module")
def questions(data_dir):
    return {split: [p.id for p in open_problems(split, data_dir)] for split in SPLITS}


def test_every_split_holds_its_own_solvable_puzzles(questions):
    for split, texts in questions.items():
        k, owner = int(split[1]), split[3:]
        for text in texts:
            numbers, target = parse_question(text)
            assert len(numbers) == k and solutions(numbers, target) and split_of(numbers, target) == owner


def test_no_problem_is_in_two_splits_or_twice_in_one(questions):
    texts = [text for split in questions.values() for text in split]
    assert len(texts) == len(set(texts))


@pytest.mark.parametrize("k", [3, 4])
def test_splits_of_three_and_four_numbers_are_complete(questions, k):
    for split in ("pool", "test"):
        expected = {question(*q) for q in all_questions(k) if split_of(*q) == split}
        assert set(questions[f"k{k}_{split}"]) == expected


def test_the_split_of_five_numbers_is_full(questions):
    assert 1100 < len(questions["k5_test"]) <= 1200


def test_order_is_mixed_and_stays(questions, tmp_path, monkeypatch):
    monkeypatch.setattr(builders, "PROBLEM_SPLITS", ("k3_pool", "k3_test", "k5_test"))
    for split in builders.PROBLEM_SPLITS:
        assert [p.id for p in open_problems(split, tmp_path)] == questions[split]
    for texts in questions.values():
        assert texts != sorted(texts)
        assert len({parse_question(text)[0][0] for text in texts[:60]}) == 9


def test_order_is_that_of_the_published_figures(questions):
    assert {split: texts[0] for split, texts in questions.items()} == {
        "k3_pool": "7 2 1 = 8",
        "k4_pool": "5 7 7 2 = -7",
        "k3_test": "1 1 5 = 5",
        "k4_test": "8 7 5 3 = -7",
        "k5_test": "5 7 7 6 6 = 5",
    }


def test_problems_are_whole(data_dir):
    problem = open_problems("k3_pool", data_dir)[0]
    assert problem.messages == ({"role": "user", "content": problem.id},)
    assert tuple(problem.answer.split()) in solutions(*parse_question(problem.id))


def test_unknown_splits_are_refused_with_those_there_are(data_dir):
    with pytest.raises(ConfigError, match="no problems are called 'k9_pool'; did you mean ") as error:
        open_problems("k9_pool", data_dir)
    assert all(split in str(error.value) for split in SPLITS)


def test_corpus_holds_the_reasoners_examples(tmp_path, monkeypatch):
    monkeypatch.setattr(builders, "CORPUS_SIZE", {"train": 40, "validation": 15})
    for seed, (split, size) in enumerate(builders.CORPUS_SIZE.items()):
        records = open_corpus(split, tmp_path)
        found = {(r["prompt"].decode(), r["response"].decode()) for r in records}
        assert len(records) == size
        assert found == {example(i, seed, (3, 4), Habits()) for i in range(size)}
    with pytest.raises(ConfigError, match="no split 'test' in signs_corpus; it has train, validation"):
        open_corpus("test", tmp_path)


# The real files.


@pytest.mark.parametrize("name", ["aime24", "math500"])
def test_prompts_of_real_evaluation_sets_are_those_of_the_paper(tmp_path, name):
    path = public_file("math", f"{name}.parquet")
    prepare.prepare(name, tmp_path, files=[path])
    problems = open_problems(name, tmp_path)
    rows = list(read_rows(path, Progress(disable=True)))
    assert [p.messages for p in problems] == [row.messages("prompt") for row in rows]
    assert [p.answer for p in problems] == [row.text("reward_model", "ground_truth") for row in rows]
    assert {
        boxed_prompt(row.text("extra_info", "raw_problem")) == row.messages("prompt")[0]["content"]
        for row in rows
    } == {True}
    assert prepare.prepare(name, tmp_path).info.metadata["unparsed"] == []


def test_real_training_sets_are_nested_and_partly_chinese(tmp_path):
    files = [public_file("math", f"seen_{name}.parquet") for name in ("1x64", "8x8", "64", "128", "512")]
    prepare.prepare("dapo_math_17k_seen", tmp_path, files=files)
    sets = [open_problems(f"dapo_math_17k_seen_{n}", tmp_path) for n in (1, 8, 64, 128, 512)]
    assert [len(problems) for problems in sets] == [1, 8, 64, 128, 511]
    assert [sum(p.metadata["language"] == "zh" for p in problems) for problems in sets] == [0, 2, 11, 24, 94]
    assert [sum(p.metadata["copies"] for p in problems) for problems in sets] == [64, 64, 64, 128, 512]
    prompts = [{p.messages[0]["content"] for p in problems} for problems in sets]
    assert all(small < large for small, large in zip(prompts, prompts[1:], strict=False))
    for path, found in zip(files, prompts, strict=True):
        rows = read_rows(path, Progress(disable=True))
        assert found == {row.messages("prompt")[0]["content"] for row in rows}


def test_the_split_of_real_science_is_the_released_one(tmp_path):
    path = public_file("sciknoweval", "chemistry_test.json")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    prepare.prepare("sciknoweval", tmp_path, files=[path])
    problems = open_problems("sciknoweval_chemistry_test", tmp_path)
    assert split_indices(2100)["test"] == [row["idx"] for row in rows]
    assert [p.id for p in problems] == [f"sciknoweval/chemistry/{row['idx']}" for row in rows]
    assert [[m["content"] for m in p.messages] for p in problems] == [
        [SYSTEM_PROMPT, row["prompt"]] for row in rows
    ]
    assert {p.metadata["letters"] for p in problems} == {"ABCD"}
