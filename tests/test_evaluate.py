"""From problems to judged responses, and the command that prints a table of them."""

import numpy as np
import pytest

from sdistill.evaluate import judge, requests_for, sample
from sdistill.parallel.mesh import MeshConfig, make_mesh
from sdistill.rollout.engine import Engine, Request, Rollouts
from sdistill.rollout.sampling import Sampling
from sdistill.tasks.signs.puzzle import SignsTask, make_problem
from sdistill.text.chat import SignsChat
from tests import tiny
from tests.processes import Commands
from tests.test_train import WORDS

FIRST, SECOND = make_problem((8, 4, 7), 19), make_problem((1, 2, 3), 0)


def rollouts_of(tokenizer, responses, finished, limit=24) -> Rollouts:
    ids, lengths = np.zeros((len(responses), limit), np.int32), []
    for row, (response, ended) in enumerate(zip(responses, finished, strict=True)):
        encoded = tokenizer.encode(response) + [tokenizer.eos_id] * ended
        ids[row, : len(encoded)] = encoded
        lengths.append(len(encoded))
    zeros = np.zeros(ids.shape, np.float32)
    return Rollouts(ids, np.asarray(lengths), np.asarray(finished), zeros, zeros)


def test_a_repeated_problem_goes_on_counting_its_samples(tokenizer):
    contents = ["8 4 7 = 19", "1 2 3 = 0", "8 4 7 = 19 solution + +"]
    requests = requests_for([FIRST, SECOND, FIRST], contents, SignsChat(tokenizer), samples=4)
    assert [(r.problem, r.first_sample) for r in requests] == [
        ("8 4 7 = 19", 0),
        ("1 2 3 = 0", 0),
        ("8 4 7 = 19", 4),
    ]
    assert [tokenizer.decode(r.prompt) for r in requests] == [f"{c} <think>" for c in contents]


def test_responses_are_judged_against_their_own_problem(tokenizer):
    responses = [
        "perhaps 8 11 + 4 7 + 7 0 yes </think> + +",
        "so </think> + -",
        "so </think> + -",
        "wait wait maybe </think> + -",
    ]
    requests = [Request([3], "a", 0), Request([4, 5], "b", 6)]
    generations = judge(
        [FIRST, SECOND],
        requests,
        rollouts_of(tokenizer, responses, [True] * 4),
        SignsChat(tokenizer),
        SignsTask(),
    )
    assert [g["correct"] for g in generations] == [True, False, True, True]
    assert [g["problem"] for g in generations] == [FIRST.id, FIRST.id, SECOND.id, SECOND.id]
    assert [g["sample"] for g in generations] == [0, 1, 6, 7]
    assert [g["response"] for g in generations] == responses
    assert [g["answer"] for g in generations] == ["+ +", "+ -", "+ -", "+ -"]
    assert [g["length"] for g in generations] == [len(r.split()) + 1 for r in responses]
    assert [g["words"] for g in generations] == [1, 0, 0, 3]
    assert {g["finish"] for g in generations} == {"stop"}


def test_a_response_that_was_cut_is_wrong_even_where_it_reads_as_an_answer(tokenizer):
    responses = ["so </think> + +", "so </think> + +"]
    rollouts = rollouts_of(tokenizer, responses, [True, False])
    generations = judge([FIRST], [Request([3], "a")], rollouts, SignsChat(tokenizer), SignsTask())
    assert [g["correct"] for g in generations] == [True, False]
    assert [g["finish"] for g in generations] == ["stop", "length"]


def test_sampling_judges_what_the_engine_said(tokenizer):
    engine = Engine(
        WORDS,
        mesh=make_mesh(MeshConfig()),
        eos_id=tokenizer.eos_id,
        slots=4,
        max_prompt=8,
        max_response=6,
    )
    problems = [FIRST, SECOND, FIRST]
    generations, rollouts = sample(
        engine,
        tiny.parameters(WORDS),
        problems,
        [p.messages[-1]["content"] for p in problems],
        chat=SignsChat(tokenizer),
        task=SignsTask(),
        samples=2,
        seed=0,
        step=0,
        sampling=Sampling(),
    )
    assert [g["problem"] for g in generations] == [p.id for p in problems for _ in range(2)]
    assert [(g["problem"], g["sample"]) for g in generations[::5]] == [(FIRST.id, 0), (FIRST.id, 3)]
    for generation, ids, length in zip(generations, rollouts.ids, rollouts.lengths, strict=True):
        assert generation["response"] == tokenizer.decode(ids[:length])
        assert generation["length"] == length
    assert len({g["response"] for g in generations}) > 4  # the repeated problem has new samples


@pytest.mark.slow
def test_the_command_prints_a_table_with_its_conditions(tmp_path, data_dir):
    commands = Commands(tmp_path / "cache", data_dir)
    printed = commands.succeed(
        "sdistill.evaluate", "--problems=8", "--samples=2", "--max_response=48", "--seed=3"
    )
    for part in ("accuracy", "length", "words", "pass@2", "maj@2", "95 % interval"):
        assert part in printed
    assert "8 problems × 2 samples, seed 3, temperature 1.0, at most 48 tokens" in printed
