"""A step of several updates is these updates made by hand; what stops a step, and how it is named."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sdistill.learning import learn_from_rollouts, prepare, scorer
from sdistill.micro import on_policy_micro_batches
from sdistill.optimizer import OptimizerConfig, make_optimizer
from sdistill.problem_sampler import rollout_sampler
from sdistill.state import new_state
from sdistill.teacher import ema_update

from sdistill.batch import on_policy_batch
from sdistill.config import TrainConfig
from sdistill.data.catalogue import open_problems
from sdistill.data.pipelines import problem_batches
from sdistill.distributed.rules import TRAINING, place, place_batch
from sdistill.fixes import pass_rate_weights
from sdistill.losses import token_weights
from sdistill.model.weights import SIGNS_BASE, load_pretrained, new_model, save_pretrained
from sdistill.settings import ConfigError, parse
from sdistill.step import compile_gradient, compile_update, grpo_gradient, sdpo_gradient, update
from sdistill.storage import write_records
from sdistill.tasks.signs_puzzle import SignsTask
from sdistill.text.chat import SignsChat
from sdistill.train import train, training_problems
from tests import tiny

MESH = tiny.one_device()
MINI, SAMPLES = 2, 4
ROWS = MINI * SAMPLES
PROBLEMS = 4
BATCH = [3, 0, 2, 1]
FULL = {"support": "full", "top_k": None, "tail": None}


def values(objective, **changes):
    """Two updates a step, of two problems each; a rate at which the second sees another student."""
    rollouts = {
        "split": "k3_pool",
        "problems": PROBLEMS,
        "prompts": PROBLEMS,
        "samples": SAMPLES,
        "mini_batch": MINI,
        "max_prompt": 8,
        "max_response": 40,
    }
    if objective == "sdpo":
        rollouts["max_teacher_prompt"] = 64
    return {
        "objective": objective,
        "seed": 5,
        "steps": 1,
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 0},
        "rollouts": rollouts,
        "slots": 16,
    } | changes


def sdpo(**teacher):
    # A context from another problem: the next one that is solved may be in the other mini-batch.
    context, loss = {"kind": "other_problem"}, {**FULL, "pass_rate_weight": True}
    return values("sdpo", sdpo={"context": context, "teacher": teacher, "loss": loss})


CASES = {
    "ema": sdpo(weights="ema", ema_rate=0.3),
    "live": sdpo(weights="live"),
    "grpo": values("grpo", grpo={"kl_coefficient": 0.1, "aggregation": "token_mean"}, micro_rows=ROWS // 2),
}


def start(config, tokenizer, data_dir):
    """A run and its first state, of the shipped base."""
    model = load_pretrained(SIGNS_BASE)
    params = place(nnx.state(model, nnx.Param), MESH, TRAINING)
    state = new_state(params, make_optimizer(config.optimizer), MESH)
    problems = open_problems("k3_pool", str(data_dir))[:PROBLEMS]
    return prepare(config, model.config, MESH, SignsChat(tokenizer), problems, state), state


def by_hand(config, run, state):
    """What the step should come to, from functions that know nothing of mini-batches."""
    first = jax.tree.map(jnp.array, state.params)
    at_once = dataclasses.replace(config, rollouts=dataclasses.replace(config.rollouts, mini_batch=None))
    posed = [run.problems[i] for i in BATCH]
    generations, rollouts = run.sampler(state.params, posed, SignsTask(), 0)
    score = scorer(first, at_once, run.model, MESH)
    whole, _ = on_policy_batch(
        at_once, posed, generations, rollouts, run.chat, teacher=score, reference=score, past=[]
    )
    shared = {"model": run.model, "temperature": 1.0, "chunk": config.chunk}
    if config.sdpo is not None:
        gradient_of = compile_gradient(sdpo_gradient, state, config=config.sdpo.loss, mix=None, **shared)
        teacher = (None if config.sdpo.teacher.weights == "live" else first,)
    else:
        gradient_of, teacher = compile_gradient(grpo_gradient, state, config=config.grpo, **shared), ()
    apply = compile_update(state, optimizer=config.optimizer)
    gaps = []
    for number in range(2):
        rows = slice(number * ROWS, (number + 1) * ROWS)
        part = jax.tree.map(lambda x, rows=rows: x[rows], whole)
        part = part._replace(weights=weights_of(config, part, generations, number))
        gradient, sums = None, np.zeros(2)
        for _, micro in on_policy_micro_batches(part, config.micro_rows or ROWS):
            placed = place_batch(micro, MESH)
            gradient, report = gradient_of(state.params, *teacher, placed, so_far=gradient)
            sums += report.metrics["sampler_gap"]
        gaps.append(sums[0] / sums[1])
        state, _ = apply(state, gradient)
    return state, first, gaps


def weights_of(config, part, generations, number):
    """Means over the update's own rows, but pass rates beside those of all problems."""
    mask = np.asarray(part.student.response_mask)
    if config.grpo is not None:
        return token_weights(mask, config.grpo.aggregation)
    correct = np.reshape([g.correct for g in generations], (PROBLEMS, SAMPLES))
    rates = pass_rate_weights(correct)[number * MINI : (number + 1) * MINI]
    taught = mask * part.has_teacher[:, None]
    return token_weights(taught, config.sdpo.loss.aggregation) * np.repeat(rates, SAMPLES)[:, None]


@pytest.mark.parametrize("name", CASES)
def test_a_step_of_two_mini_batches_is_two_updates_made_by_hand(name, tokenizer, data_dir):
    """The teacher and the sampler's log-probabilities are the same for both; the teacher moves once."""
    config = parse(TrainConfig, CASES[name] | {"data_dir": str(data_dir)})
    run, state = start(config, tokenizer, data_dir)
    expected, first, gaps = by_hand(config, run, start(config, tokenizer, data_dir)[1])
    learned = learn_from_rollouts(run, state, None, BATCH, 0, [])
    assert int(learned.state.step) == 2
    tiny.assert_same_bits(learned.state, expected)
    if name == "ema":
        moved = ema_update(first, expected.params, 0.3)
        tiny.assert_same_bits(learned.teacher, moved)
    else:
        assert learned.teacher is None
    before = tiny.leaves(first)
    assert all(not np.array_equal(x, y) for x, y in zip(before, tiny.leaves(expected.params), strict=True))
    # The gap is measured with the weights that sampled; the second update's is how far the first went.
    assert learned.record["sampler_gap"] == pytest.approx(gaps[0], rel=1e-6)
    assert gaps[0] < 1e-4 < 1e-2 < gaps[1]


def untied(folder, tokenizer, poison=None):
    """The shipped base, except that whoever reads the poison gets hidden states that are not finite."""
    base = load_pretrained(SIGNS_BASE)
    model = new_model(dataclasses.replace(base.config, tie_word_embeddings=False), 0)
    nnx.update(model, nnx.state(base, nnx.Param))
    embedding_VD = base.embedding_VD[...]
    model.head_DV[...] = embedding_VD.T  # or every logit of that word would be poisoned, too
    if poison is not None:
        embedding_VD = embedding_VD.at[tokenizer.encode(poison)[0]].set(jnp.nan)
    model.embedding_VD[...] = embedding_VD
    save_pretrained(model, folder)
    return {"init_from": str(folder)}


ONE_BY_ONE = values(
    "sdpo",
    sdpo={"context": {"kind": "solution"}, "loss": FULL},
    rollouts=values("sdpo")["rollouts"] | {"prompts": 2, "problems": 2, "mini_batch": 1},
)


@pytest.fixture(scope="module")
def clean(tokenizer, data_dir):
    """The rollouts of the first step where nothing is poisoned; a word that does not occur changes none."""
    config = parse(TrainConfig, ONE_BY_ONE | {"data_dir": str(data_dir)})
    problems = training_problems(config.rollouts, config.data_dir)
    first = next(problem_batches(problems, batch_size=2, seed=config.seed))
    base = load_pretrained(SIGNS_BASE)
    sampler = rollout_sampler(config, base.config, MESH, SignsChat(tokenizer))
    return sampler(nnx.state(base, nnx.Param), [problems[i] for i in first], SignsTask(), 0)[0]


def named(generations):
    return ", ".join(f"{g.problem!r} (sample {g.sample})" for g in generations)


def taught(generations):
    """Those with a correct sibling."""
    return [
        g for g in generations if any(h.correct for h in generations if h.problem == g.problem and h is not g)
    ]


def failure(changes, tmp_path, data_dir):
    config = parse(TrainConfig, ONE_BY_ONE | {"data_dir": str(data_dir)} | changes)
    with pytest.raises(FloatingPointError) as error:
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists() and not (tmp_path / "run" / "model").exists()
    assert not any(path.name.isdigit() for path in (tmp_path / "run" / "checkpoints").iterdir())
    return str(error.value)


def test_a_teacher_that_is_not_finite_is_told_from_the_student(clean, tokenizer, tmp_path, data_dir):
    message = failure(untied(tmp_path / "model", tokenizer, "solution"), tmp_path, data_dir)
    assert message.startswith("step 1: ") and "loss=nan" in message and "gradient_norm=nan" in message
    first = taught(clean[:SAMPLES])
    assert f"in update 1 of 2: the teacher's hidden states are not finite in {named(first)};" in message
    assert "student" not in message and "the last checkpoint is from before" in message


@pytest.mark.parametrize("number", [0, 1], ids="problem {}".format)
def test_rows_of_the_student_that_are_not_finite_are_named(number, clean, tokenizer, tmp_path, data_dir):
    groups = [clean[:SAMPLES], clean[SAMPLES:]]
    others = {word for g in groups[1 - number] for word in f"{g.prompt} {g.text}".split()}
    word = next(word for word in groups[number][0].prompt.split() if word not in others)
    message = failure(untied(tmp_path / "model", tokenizer, word), tmp_path, data_dir)
    assert message.startswith(f"step 1: the student's logits are not finite in {named(groups[number])};")


def test_a_student_that_the_first_update_breaks_is_named_with_the_second(
    clean, tokenizer, tmp_path, data_dir
):
    """The sampler cannot have seen it."""
    changes = {"optimizer": {"learning_rate": 1e15, "warmup_steps": 0}}
    message = failure(changes | untied(tmp_path / "model", tokenizer), tmp_path, data_dir)
    where = "in update 2 of 2: the student's hidden states are not finite in "
    assert f"{where}{named(clean[SAMPLES:])};" in message


def test_scores_that_are_not_finite_are_refused_before_they_become_advantages(
    clean, tokenizer, tmp_path, data_dir
):
    """Contrastive evidence takes a comparison with NaN for a small change, and would hide it."""
    changes = {"objective": "grpo", "sdpo": None, "grpo": {"contrastive_hints": {}}}
    message = failure(changes | untied(tmp_path / "model", tokenizer, "solution"), tmp_path, data_dir)
    first = re.escape(taught(clean)[0].problem)
    assert re.match(rf"step 1: scores under the teacher are not finite in '{first}' \(sample \d\)", message)


def test_the_row_of_an_example_is_named(tokenizer, tmp_path, data_dir):
    rows = [{"prompt": f"{n} 2 3 = 6 <think>", "response": "so </think> + +"} for n in (1, 4, 5, 7)]
    write_records(tmp_path / "examples.jsonl.gz", rows)
    source = {"source": str(tmp_path / "examples.jsonl.gz"), "rows": 4, "row_length": 16, "packed": False}
    changes = {"objective": "sft", "sdpo": None, "rollouts": None, "examples": source}
    message = failure(changes | untied(tmp_path / "model", tokenizer, "7"), tmp_path, data_dir)
    assert re.search(r"nan: the student's hidden states are not finite in row [0-3];", message)


def test_an_update_that_is_not_finite_is_not_made():
    config = OptimizerConfig(learning_rate=1e-2, warmup_steps=0)
    state = new_state(tiny.parameters(), make_optimizer(config), MESH)
    gradient = jax.tree.map(jnp.ones_like, state.params)
    apply = jax.jit(functools.partial(update, optimizer=config), compiler_options=tiny.QUICKLY)
    kept, _ = apply(state, gradient)
    assert int(kept.step) == 1
    for bad in (jnp.nan, jnp.inf):
        gradient["norm_D"].set_value(gradient["norm_D"].get_value().at[3].set(bad))
        after, metrics = apply(kept, gradient)
        tiny.assert_same_bits(after, kept)
        assert not np.isfinite(metrics["gradient_norm"][0])


@pytest.mark.parametrize(
    ("rollouts", "changes", "message"),
    [
        ({"mini_batch": 3}, {}, "config.rollouts.mini_batch=3 must divide prompts=4, or be None"),
        ({"mini_batch": 0}, {}, "config.rollouts.mini_batch=0 must divide prompts=4"),
        ({"mini_batch": 8}, {}, "config.rollouts.mini_batch=8 must divide prompts=4"),
        ({}, {"micro_rows": 16}, "config.micro_rows=16 must divide rollouts.mini_batch × samples = 8, and"),
        (
            {"mini_batch": None},
            {"micro_rows": 3},
            "config.micro_rows=3 must divide rollouts.prompts × samples = 16",
        ),
        (
            {},
            {"mesh": {"data": 16}},
            "config.rollouts.mini_batch × samples = 8 rows must divide over 16 devices",
        ),
    ],
)
def test_mini_batches_that_cannot_be_cut_are_refused(rollouts, changes, message):
    settings = CASES["grpo"] | changes
    with pytest.raises(ConfigError) as error:
        parse(TrainConfig, settings | {"rollouts": settings["rollouts"] | rollouts})
    assert str(error.value).startswith(message)


def test_rows_beyond_the_model_s_positions_are_announced(tokenizer, data_dir, caplog):
    rollouts = CASES["ema"]["rollouts"] | {"max_teacher_prompt": 1000}
    config = parse(TrainConfig, CASES["ema"] | {"rollouts": rollouts, "data_dir": str(data_dir)})
    start(config, tokenizer, data_dir)
    assert "max_teacher_prompt + max_response = 10" in caplog.text
    assert "max_position_embeddings=1024" in caplog.text
