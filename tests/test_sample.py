"""From problems to verified responses: streams, verdicts, prefixes, and verification while others decode."""

import jax
import jax.numpy as jnp
import pytest

from sdistill.config import SamplerConfig
from sdistill.engine.types import Finish
from sdistill.model.folders import load_chat
from sdistill.sample import Query, Sampler, encode, open_sampler, queries_for
from sdistill.tasks.signs_puzzle import SignsTask, make_problem
from sdistill.text.chat import SignsChat
from sdistill.types import Response
from tests import tiny

FIRST, SECOND = make_problem((8, 4, 7), 19), make_problem((1, 2, 3), 0)
CONFIG = SamplerConfig(num_samples=2, max_prompt_length=16, max_response_length=6, slots=4)


@pytest.fixture(scope="module")
def sampler(tokenizer):
    return Sampler(tiny.WORDS, tiny.one_device(), SignsChat(tokenizer), CONFIG)


@pytest.fixture(scope="module")
def params():
    return tiny.parameters(tiny.WORDS)


def test_a_repeated_problem_goes_on_counting_its_samples(tokenizer):
    contents = [None, None, "8 4 7 = 19 solution + +"]
    queries = queries_for([FIRST, SECOND, FIRST], 2, contents)
    assert [(q.problem.id, q.sample) for q in queries] == [
        ("8 4 7 = 19", 0),
        ("8 4 7 = 19", 1),
        ("1 2 3 = 0", 0),
        ("1 2 3 = 0", 1),
        ("8 4 7 = 19", 2),
        ("8 4 7 = 19", 3),
    ]
    prompts = [tokenizer.decode(encode(SignsChat(tokenizer), query)[0]) for query in queries]
    shown = ["8 4 7 = 19", "1 2 3 = 0", "8 4 7 = 19 solution + +"]
    assert prompts == [f"{content} <think>" for content in shown for _ in "12"]


class Says:
    """Stands in for an engine: every completion has these words."""

    def __init__(self, tokenizer, text, finish):
        self.tokenizer, self.text, self.finish = tokenizer, text, finish

    def generate(self, params, requests, **options):
        ids = self.tokenizer.encode(self.text) + [self.tokenizer.eos_id] * (self.finish == Finish.STOP)
        return tiny.completions([ids] * len(requests), len(ids), self.finish)


def verified(tokenizer, query, text, finish=Finish.STOP):
    sampler = Sampler(tiny.WORDS, tiny.one_device(), SignsChat(tokenizer), CONFIG)
    sampler.engine = Says(tokenizer, text, finish)
    [response], _ = sampler(None, [query], SignsTask(), seed=0, step=0)
    return response


def test_a_response_is_verified_against_its_problem(tokenizer):
    long = "perhaps 8 11 + 4 7 + 7 0 yes </think> + +"
    assert verified(tokenizer, Query(FIRST), long) == Response(
        problem=FIRST.id,
        sample=0,
        prompt="8 4 7 = 19 <think>",
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
    wrong = verified(tokenizer, Query(FIRST), "so </think> + -")
    assert not wrong.correct and wrong.feedback == "gives 5"
    other = verified(tokenizer, Query(SECOND, sample=7), "wait wait maybe </think> + -")
    assert other.correct and (other.problem, other.sample, other.num_epistemic) == (SECOND.id, 7, 3)


@pytest.mark.parametrize("finish", [Finish.LENGTH, Finish.ERROR])
def test_a_response_that_was_cut_is_wrong_even_where_it_reads_as_an_answer(tokenizer, finish):
    found = verified(tokenizer, Query(FIRST), "so </think> + +", finish)
    assert not found.correct and found.answer is None
    assert found.finish == finish.name.lower()


def test_responses_are_what_the_engine_sampled(sampler, params, tokenizer):
    queries = queries_for([FIRST, SECOND, FIRST], 2)
    responses, completions = sampler(params, queries, SignsTask(), seed=0, step=0)
    assert [(r.problem, r.sample) for r in responses] == [(q.problem.id, q.sample) for q in queries]
    for response, ids, length in zip(responses, completions.ids, completions.lengths, strict=True):
        assert response.text == tokenizer.decode(ids[:length])
        assert response.length == length
    assert len({r.text for r in responses}) > 4  # the repeated problem has new samples


def test_a_prefix_is_part_of_the_response_and_of_its_length(sampler, params, tokenizer):
    prefix = "perhaps 8 11"
    responses, _ = sampler(params, [Query(FIRST, prefix=prefix)], SignsTask(), seed=0, step=0)
    assert responses[0].text.startswith(prefix) and responses[0].length <= CONFIG.max_response_length
    assert responses[0].prompt == "8 4 7 = 19 <think>"


def test_forbidden_tokens_are_never_drawn(sampler, params, tokenizer):
    free, _ = sampler(params, queries_for([FIRST], 2), SignsTask(), seed=0, step=0)
    first = tokenizer.encode(free[0].text)[0]
    found, _ = sampler(params, queries_for([FIRST], 2), SignsTask(), seed=0, step=0, forbidden=[first])
    assert found and all(first not in tokenizer.encode(response.text) for response in found)


def test_a_stream_hands_out_the_same_responses_and_raises_what_its_callbacks_raise(sampler, params):
    queries = [*queries_for([FIRST, SECOND], 2), Query(FIRST, sample=2, prefix="perhaps 8 11")]
    streamed = []
    whole, _ = sampler(params, queries, SignsTask(), seed=3, step=0)
    sampler.stream(params, queries, SignsTask(), streamed.append, seed=3)
    order = {(query.problem.id, query.sample): number for number, query in enumerate(queries)}
    assert sorted(streamed, key=lambda r: order[r.problem, r.sample]) == whole

    def refuse(*arguments):
        raise FloatingPointError("refused")

    for callbacks in (
        {"on_response": refuse},
        {"on_response": streamed.append, "on_completion": refuse},
        {"on_response": streamed.append, "on_round": refuse},
    ):
        with pytest.raises(FloatingPointError, match="refused"):
            sampler.stream(params, queries, SignsTask(), seed=3, **callbacks)


def test_activations_and_cache_have_the_type_of_the_weights():
    sampler, params = open_sampler("signs_base", load_chat("signs_base"), CONFIG, dtype="bfloat16")
    cache = jax.eval_shape(lambda: sampler.engine.model.empty_cache(4, 8))
    assert {x.dtype for x in jax.tree.leaves((params, cache))} == {jnp.dtype("bfloat16")}
