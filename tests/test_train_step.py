"""A step of several updates is these updates made by hand; what stops a step, and how it is named.

A scripted sampler stands in for the engine: a random model solves no problems.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.signs.common import CONTEXT, FULL_DIVERGENCE
from sdistill import step as steps
from sdistill.batch import Rollouts, grpo_batch, micro_batches, sdpo_batch
from sdistill.config import AnyTrainConfig, SDPOConfig
from sdistill.data.catalogue import open_problems
from sdistill.distributed.rules import TRAINING, place, place_batch
from sdistill.fixes import pass_rate_weights
from sdistill.losses import score_responses, token_weights
from sdistill.sample import queries_for
from sdistill.settings import parse
from sdistill.text.chat import SignsChat
from sdistill.train import OnPolicyRun, Run, example_step, on_policy_step, scorer
from tests import tiny

MESH = tiny.one_device()
# Without tied heads, or every logit of a word would be poisoned with its embedding.
MODEL = dataclasses.replace(tiny.CONFIG, vocab_size=168, num_hidden_layers=1, tie_word_embeddings=False)
MINI, SAMPLES, PROBLEMS = 2, 4, 4
ROWS = MINI * SAMPLES
BATCH = [3, 0, 2, 1]
TEXTS = (
    "wait 8 1 so </think> + +",
    "so 4 so 4 </think> - -",
    "yes wait 2 2 </think> + -",
    "8 4 </think> - + -",
)
# The context of group 1 is from group 3: from another mini-batch.
CORRECT = ((0, 0, 0, 0), (0, 1, 1, 0), (0, 0, 0, 0), (1, 1, 0, 1))


def values(objective, **changes):
    """Two updates a step, of two problems each; a rate at which the second sees another student."""
    rollouts = {
        "split": "k3_pool",
        "num_problems": PROBLEMS,
        "num_prompts": PROBLEMS,
        "num_samples": SAMPLES,
        "mini_batch_size": MINI,
        "max_prompt_length": 8,
        "max_response_length": 8,
        "slots": 16,
    }
    return {
        "objective": objective,
        "seed": 5,
        "steps": 1,
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 0},
        "init_from": "signs_base",
        "rollouts": rollouts,
    } | changes


def sdpo(kind="other_problem", pass_rate_weight=True, **teacher):
    teacher = {"context": {"kind": kind, **CONTEXT}, "max_prompt_length": 28, **teacher}
    loss = {"divergence": FULL_DIVERGENCE, "pass_rate_weight": pass_rate_weight}
    return values("sdpo", teacher=teacher, loss=loss)


CASES = {
    "ema": sdpo(weights="ema", ema_rate=0.3),
    "live": sdpo(weights="live") | {"attribution": True},
    "grpo": values(
        "grpo", loss={"kl_coefficient": 0.1, "aggregation": "token_mean"}, micro_batch_size=ROWS // 2
    ),
}


class Script:
    """Stands in for the sampler: the same texts and verdicts for the same queries."""

    def __init__(self, chat, problems):
        self.chat, self.order = chat, [problems[i].id for i in BATCH]

    def __call__(self, params, queries, task, *, seed, step, on_round):
        responses, ids = [], []
        for query in queries:
            group = self.order.index(query.problem.id)
            text = TEXTS[(group + query.sample) % len(TEXTS)]
            ids.append([*self.chat.tokenizer.encode(text), self.chat.tokenizer.eos_id])
            correct = bool(CORRECT[group][query.sample])
            responses.append(tiny.response(query.problem.id, text, correct, sample=query.sample))
        return responses, tiny.completions(ids, 8)


class OnPolicy(Script):
    """With the log-probabilities of the weights that sample."""

    def __init__(self, run):
        super().__init__(run.chat, run.problems)
        self.run = run

    def __call__(self, params, queries, task, **options):
        responses, completions = super().__call__(params, queries, task, **options)
        problems = [query.problem for query in queries[::SAMPLES]]
        student = Rollouts.of(self.run.config, problems, responses, completions, self.run.chat).student
        settings = {
            "model": MODEL,
            "temperature": 1.0,
            "logits_chunk_size": self.run.config.logits_chunk_size,
        }
        log_probs = np.asarray(score_responses(params, student, **settings).log_prob_BT)
        return responses, completions._replace(log_probs=log_probs, full_log_probs=log_probs)


@pytest.fixture(scope="module")
def problems(data_dir):
    return open_problems("k3_pool", str(data_dir))[:PROBLEMS]


@pytest.fixture(scope="module")
def start(tokenizer, problems):
    """A run and its first state; a word can be poisoned: whoever reads it has no finite hidden states."""

    def start_run(settings, poison=None):
        config = parse(AnyTrainConfig, settings)
        params = tiny.parameters(MODEL)
        if poison is not None:
            embedding_VD = params["embedding_VD"].get_value()
            embedding_VD = embedding_VD.at[tokenizer.encode(poison)[0]].set(jnp.nan)
            params["embedding_VD"].set_value(embedding_VD)
        state = steps.init_state(place(params, MESH, TRAINING), MODEL, config.optimizer, MESH)
        shared = config, MODEL, MESH, SignsChat(tokenizer)
        if "rollouts" not in settings:
            return Run(*shared), state
        run = OnPolicyRun(*shared, problems, state.params)
        run.sampler = OnPolicy(run)
        return run, state

    return start_run


def queries_and_rollouts(run, state):
    posed = [run.problems[i] for i in BATCH]
    options = {"seed": run.config.seed, "step": 0, "on_round": None}
    responses, completions = run.sampler(state.params, queries_for(posed, SAMPLES), run.task, **options)
    return Rollouts.of(run.config, posed, responses, completions, run.chat)


def by_hand(run, state):
    """The state after the step, from functions that know nothing of mini-batches."""
    config = run.config
    first = jax.tree.map(jnp.array, state.params)
    at_once = dataclasses.replace(config, rollouts=dataclasses.replace(config.rollouts, mini_batch_size=None))
    rollouts = queries_and_rollouts(run, state)
    weights = None
    if isinstance(config, SDPOConfig):
        whole, _ = sdpo_batch(at_once, rollouts, run.chat)
        weights = None if config.teacher.weights == "live" else first
    else:
        score = scorer(run, first)
        whole, _ = grpo_batch(
            at_once, rollouts, run.chat, score_teacher=score, score_reference=score, past=[]
        )
    gaps = []
    for number in range(2):
        rows = slice(number * ROWS, (number + 1) * ROWS)
        part = jax.tree.map(lambda x, rows=rows: x[rows], whole)
        part = part._replace(token_weights=weights_of(config, part, rollouts, number))
        gradient, sums = None, np.zeros(2)
        for _, micro in micro_batches(part, config.micro_batch_size or ROWS):
            placed = place_batch(micro, MESH)
            gradient, report = run.gradient(state.params, weights, placed, accumulated=gradient)
            sums += report.metrics["logprob_diff"]
        gaps.append(sums[0] / sums[1])
        state, _ = run.update(state, gradient)
    return state, first, gaps


def weights_of(config, part, rollouts, number):
    """Means over the update's own rows, but pass rates beside those of all problems."""
    mask = np.asarray(part.student.response_mask)
    if not isinstance(config, SDPOConfig):
        return token_weights(mask, config.loss.aggregation)
    rates = pass_rate_weights(rollouts.correct_QG)[number * MINI : (number + 1) * MINI]
    taught = mask * part.has_teacher[:, None]
    return token_weights(taught, config.loss.aggregation) * np.repeat(rates, SAMPLES)[:, None]


@pytest.mark.parametrize("name", CASES)
def test_a_step_of_two_mini_batches_is_two_updates_made_by_hand(name, start):
    """The teacher and the sampler's log-probabilities are the same for both; the teacher moves once."""
    run, state = start(CASES[name])
    expected, first, gaps = by_hand(run, start(CASES[name])[1])
    teacher = steps.init_teacher(run.config.teacher, state.params)
    state, teacher, metrics, responses = on_policy_step(run, state, teacher, BATCH, 0, [])
    assert int(state.step) == 2
    tiny.assert_same_bits(state, expected)
    if name == "ema":
        moved = steps.update_teacher(run.config.teacher, first, expected.params)
        tiny.assert_same_bits(teacher, moved)
    else:
        assert teacher is None
    before = tiny.leaves(first)
    assert all(not np.array_equal(x, y) for x, y in zip(before, tiny.leaves(expected.params), strict=True))
    # It is measured with the weights that sampled; the second update's is how far the first went.
    assert metrics["logprob_diff"] == pytest.approx(gaps[0], rel=1e-6)
    assert gaps[0] < 1e-4 < 1e-2 < gaps[1]
    assert metrics["train_accuracy"] == np.mean(CORRECT)
    assert {response.step for response in responses} == {1} and len(responses) == PROBLEMS * SAMPLES
    for response in responses:
        assert (response.attribution is not None) == run.config.attribution
    assert ("class_signal_epistemic" in metrics) == run.config.attribution


def named(responses):
    return ", ".join(f"{r.problem!r} (sample {r.sample})" for r in responses)


def failure(run, state):
    teacher = steps.init_teacher(run.config.teacher, state.params)
    with pytest.raises(FloatingPointError) as error:
        on_policy_step(run, state, teacher, BATCH, 0, [])
    return str(error.value)


def test_a_teacher_that_is_not_finite_is_told_from_the_student(start):
    """Only its prompts say "solution"."""
    run, state = start(CASES["ema"], poison="solution")
    rollouts = queries_and_rollouts(run, state)
    message = failure(run, state)
    assert "loss=nan" in message and "gradient_norm=nan" in message and "student" not in message
    where = "in update 1 of 2: the teacher's hidden states are not finite in"
    assert message.endswith(f"{where} {named(rollouts.responses[:ROWS])}")


def test_a_student_that_the_first_update_breaks_is_named_with_the_second(start):
    """The sampler cannot have seen it."""
    run, state = start(CASES["ema"] | {"optimizer": {"learning_rate": 1e15, "warmup_steps": 0}})
    rollouts = queries_and_rollouts(run, state)
    where = "in update 2 of 2: the student's hidden states are not finite in"
    assert failure(run, state).endswith(f"{where} {named(rollouts.responses[ROWS:])}")


def test_the_row_of_an_example_is_named(start, tokenizer):
    settings = values("sft")
    del settings["rollouts"]
    examples = {"source": "signs_corpus", "batch_size": 2, "sequence_length": 8, "packed": False}
    run, state = start(settings | {"examples": examples}, poison="7")
    ids = np.asarray([tokenizer.encode(f"{n} 2 3 = 6 so + +") for n in (1, 7)])
    ones = np.ones_like(ids)
    columns = {
        "tokens": ids,
        "targets": np.roll(ids, -1, 1),
        "weights": ones.astype(np.float32),
        "segment_ids": ones,
        "positions": np.cumsum(ones, 1) - 1,
    }
    with pytest.raises(FloatingPointError, match="nan: the student's hidden states are not finite in row 1$"):
        example_step(run, state, columns)


def test_teacher_sequences_beyond_the_model_s_positions_are_announced(start, caplog):
    start(sdpo(max_prompt_length=57))
    expected = "teacher.max_prompt_length + max_response_length = 65 tokens, and the model was made for "
    assert f"{expected}max_position_embeddings=64" in caplog.text
    assert "max_prompt_length=56 would cut" in caplog.text
    caplog.clear()
    start(sdpo(max_prompt_length=56))
    assert not caplog.records
