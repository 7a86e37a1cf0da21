"""From problems to judged responses, and the command that prints a table of them."""

import pytest

from sdistill.distributed.mesh import MeshConfig, make_mesh
from sdistill.engine.engine import SlotEngine
from sdistill.engine.model import CachedDecoder
from sdistill.engine.sampling import Sampling
from sdistill.engine.types import Finish, Request
from sdistill.evaluate import judge, requests_for, sample
from sdistill.tasks.signs_puzzle import SignsTask, make_problem
from sdistill.text.chat import SignsChat
from sdistill.types import Response
from tests import tiny
from tests.processes import Commands
from tests.test_train import WORDS

FIRST, SECOND = make_problem((8, 4, 7), 19), make_problem((1, 2, 3), 0)


def judged(tokenizer, problem, request, response, finish=Finish.STOP):
    ids = tokenizer.encode(response) + [tokenizer.eos_id] * (finish == Finish.STOP)
    return judge(problem, request, ids, finish, SignsChat(tokenizer), SignsTask())


def test_a_repeated_problem_goes_on_counting_its_samples(tokenizer):
    contents = ["8 4 7 = 19", "1 2 3 = 0", "8 4 7 = 19 solution + +"]
    requests = requests_for([FIRST, SECOND, FIRST], contents, SignsChat(tokenizer), 2, Sampling(0.5))
    assert [(r.problem, r.sample) for r in requests] == [
        ("8 4 7 = 19", 0),
        ("8 4 7 = 19", 1),
        ("1 2 3 = 0", 0),
        ("1 2 3 = 0", 1),
        ("8 4 7 = 19", 2),
        ("8 4 7 = 19", 3),
    ]
    assert [tokenizer.decode(r.prompt) for r in requests] == [f"{c} <think>" for c in contents for _ in "12"]
    assert {r.sampling for r in requests} == {Sampling(0.5)}


def test_a_response_is_judged_against_its_problem(tokenizer):
    long = "perhaps 8 11 + 4 7 + 7 0 yes </think> + +"
    first, second = Request(tokenizer.encode("8 4 7 = 19"), "a", 0), Request([4, 5], "b", 7)
    assert judged(tokenizer, FIRST, first, long) == Response(
        problem=FIRST.id,
        sample=0,
        prompt="8 4 7 = 19",
        text=long,
        correct=True,
        answer="+ +",
        feedback="",
        timed_out=False,
        finish="stop",
        length=len(long.split()) + 1,
        num_epistemic=1,
        num_epistemic_substrings=1,
    )
    wrong = judged(tokenizer, FIRST, first, "so </think> + -")
    assert not wrong.correct and wrong.feedback == "gives 5"
    other = judged(tokenizer, SECOND, second, "wait wait maybe </think> + -")
    assert other.correct
    assert (other.problem, other.sample, other.num_epistemic) == (SECOND.id, 7, 3)


@pytest.mark.parametrize("finish", [Finish.LENGTH, Finish.ERROR])
def test_a_response_that_was_cut_is_wrong_even_where_it_reads_as_an_answer(tokenizer, finish):
    found = judged(tokenizer, FIRST, Request([3], "a"), "so </think> + +", finish)
    assert not found.correct and found.answer is None
    assert found.finish == finish.name.lower()


def test_sampling_judges_what_the_engine_said(tokenizer):
    engine = SlotEngine(
        CachedDecoder(WORDS),
        mesh=make_mesh(MeshConfig()),
        stop_ids=tokenizer.stop_ids,
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
    assert [g.problem for g in generations] == [p.id for p in problems for _ in range(2)]
    assert [(g.problem, g.sample) for g in generations[::5]] == [(FIRST.id, 0), (FIRST.id, 3)]
    for generation, ids, length in zip(generations, rollouts.ids, rollouts.lengths, strict=True):
        assert generation.text == tokenizer.decode(ids[:length])
        assert generation.length == length
    assert len({g.text for g in generations}) > 4  # the repeated problem has new samples


@pytest.mark.slow
def test_the_command_prints_a_table_with_its_conditions(tmp_path, data_dir):
    commands = Commands(data_dir)
    printed = commands.succeed(
        "sdistill.evaluate", "--problems=8", "--samples=2", "--max_response=48", "--seed=3"
    )
    for part in ("accuracy", "length", "words", "pass@2", "maj@2", "95 % interval"):
        assert part in printed
    said = "8 problems × 2 samples, seed 3, temperature 1.0, top-p 1.0, top-k None, at most 48 tokens"
    assert said in printed
