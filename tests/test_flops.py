"""FLOPs of a decoder: by counting pairs and parameters, and as XLA counts those of its programs."""

import dataclasses

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.programs import Shaped, each_program, per_chip
from sdistill import flops
from sdistill.config import TrainConfig
from sdistill.distributed.mesh import MeshConfig, make_mesh
from sdistill.model.config import ComputeConfig, ModelConfig
from sdistill.settings import parse

MODEL = ModelConfig(  # wide, so that XLA's count, which has the element-wise operations, is mostly products
    vocab_size=512,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,  # unrolled: XLA counts the body of a loop once
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    tie_word_embeddings=False,
    compute=ComputeConfig(remat="full"),
)
PROMPT, RESPONSE, CONTEXT, ROWS = 16, 64, 64, 4
RECIPE = {
    "objective": "sdpo",
    "seed": 0,
    "steps": 1,
    "optimizer": {"learning_rate": 1e-3},
    "rollouts": {
        "split": "k3_pool",
        "problems": None,
        "prompts": 4,
        "samples": 2,
        "max_prompt": PROMPT,
        "max_response": RESPONSE,
        "max_teacher_prompt": CONTEXT,
    },
    "sdpo": {"context": {"kind": "solution"}},
    "micro_rows": ROWS,
    "chunk": RESPONSE,
    "slots": 8,
}


@given(length=st.integers(1, 40), window=st.one_of(st.none(), st.integers(1, 50)))
def test_pairs_are_those_of_the_mask(length, window):
    seen = sum(q - k < (window or length) for q in range(length) for k in range(q + 1))
    assert flops.visible_pairs(length, window) == seen


def test_a_token_is_multiplied_with_every_matrix_once():
    norms = 2 * MODEL.hidden_size + 2 * MODEL.head_dim
    outside = 2 * MODEL.vocab_size * MODEL.hidden_size + MODEL.hidden_size
    matrices = MODEL.parameter_count() - MODEL.num_hidden_layers * norms - outside
    assert flops.matrix_flops(MODEL, 1) == 2 * matrices
    assert flops.head_flops(MODEL, 1) == 2 * MODEL.vocab_size * MODEL.hidden_size


def test_what_is_computed_once_more_is_all_but_the_product_that_no_gradient_needs():
    assert flops.matrix_flops(MODEL, 3) - flops.recomputed_flops(MODEL, 3) == 2 * 3 * 256 * 512 * 2
    normed = dataclasses.replace(MODEL, norm="output")
    assert flops.recomputed_flops(normed, 3) == flops.matrix_flops(normed, 3)


def test_sampling_reads_a_prompt_once_and_every_token_but_the_last():
    """Two prompts of 5 and 3 tokens; two responses to each."""
    sequences = [(5 + 4, 4), (5 + 1, 1), (3 + 2, 2), (3 + 2, 2)]
    pairs = flops.attention_flops(MODEL, 1)  # of one query and one key
    read = (4 + 4 + 1) + (2 + 2 + 2)
    seen = (4 * 5 / 2 + (5 + 6 + 7 + 8) + 5) + (2 * 3 / 2 + (3 + 4) * 2)
    expected = flops.matrix_flops(MODEL, read) + seen * pairs + flops.head_flops(MODEL, 4 + 1 + 2 + 2)
    assert flops.sampling_flops(MODEL, sequences, samples=2) == pytest.approx(expected)


@pytest.fixture(scope="module")
def programs():
    run = Shaped.of(parse(TrainConfig, RECIPE), MODEL, make_mesh(MeshConfig()))
    return run, each_program(run)


def plain_attention(length):
    """FLOPs of one forward pass: without the kernels, masked pairs are computed, too."""
    pairs = length * length * MODEL.num_attention_heads * MODEL.num_hidden_layers
    return 2 * 2 * pairs * MODEL.head_dim


def without_kernels(length):
    """FLOPs of a gradient but for those of the kernels of attention, and with those of plain attention."""
    kernels = (2 + flops.ATTENTION_BACKWARD) * flops.attention_flops(MODEL, length)
    return flops.gradient_flops(MODEL, length, RESPONSE) - kernels + 4 * plain_attention(length)


def test_a_compiled_gradient_has_the_flops_of_the_shapes(programs):
    _, each = programs
    student, teacher = PROMPT + RESPONSE, CONTEXT + RESPONSE
    scored = flops.forward_flops(MODEL, teacher, RESPONSE)
    expected = ROWS * (flops.gradient_flops(MODEL, student, RESPONSE) + scored)
    assert each["gradient"].flops == pytest.approx(expected)
    scored += plain_attention(teacher) - flops.attention_flops(MODEL, teacher)
    compiled = each["gradient"].lower().compile().cost_analysis()
    assert compiled["flops"] == pytest.approx(ROWS * (without_kernels(student) + scored), rel=0.1)
    assert compiled["bytes accessed"] > each["gradient"].traffic


def test_a_step_of_decoding_has_the_flops_of_the_shapes(programs):
    """The mean over a response; XLA counts a token beside a full cache, here 8 columns of every 10."""
    _, each = programs
    counted, end = each["decode"].lower().cost_analysis(), PROMPT + RESPONSE
    last = flops.forward_flops(MODEL, end, 1) - flops.forward_flops(MODEL, end - 1, 0)
    assert counted["flops"] == pytest.approx(8 * last, rel=0.1)
    assert each["decode"].flops == pytest.approx(8 * last, rel=0.1) and each["decode"].flops < 8 * last
    read = sum(end_of_prompt + 1 for end_of_prompt in range(PROMPT - 1, end - 1)) / RESPONSE
    cache = 8 * read * 2 * MODEL.num_key_value_heads * MODEL.head_dim * MODEL.num_hidden_layers * 4
    weights = MODEL.parameter_count() - MODEL.vocab_size * MODEL.hidden_size
    assert each["decode"].traffic == pytest.approx(4 * weights + cache, rel=1e-3)
    assert counted["bytes accessed"] > each["decode"].traffic


def test_every_program_of_a_run_is_lowered_from_shapes(programs):
    _, each = programs
    assert list(each) == ["reshard", "prefill", "admit", "decode", "gradient", "update"]
    for name in ("reshard", "prefill", "admit", "update"):
        lowered = each[name].lower()
        assert jax.tree.leaves(lowered.out_info), name
        counted = lowered.cost_analysis()["bytes accessed"]
        assert counted > each[name].traffic > 0 or name == "reshard", name  # which converts nothing here


def test_what_is_resident_is_what_the_program_does_not_take(programs):
    run, each = programs
    parameters = 4 * MODEL.parameter_count()
    step = 4
    assert per_chip(run.state.params) == per_chip(run.teacher) == parameters
    assert per_chip(run.state) == pytest.approx(3 * parameters, abs=3 * step)
    assert per_chip(each["gradient"].resident) == per_chip(run.state.opt_state)
    assert per_chip(each["decode"].resident) > per_chip((run.state, run.teacher))


def test_a_teacher_that_only_scores_is_a_program(programs):
    hints = {"context": {"kind": "solution"}}
    recipe = {**RECIPE, "objective": "grpo", "grpo": {"anti_self_distillation": hints}}
    del recipe["sdpo"]
    run = Shaped.of(parse(TrainConfig, recipe), MODEL, make_mesh(MeshConfig()))
    score = each_program(run)["score"]
    assert score.times == 4 * 2 / ROWS
    assert [x.shape for x in jax.tree.leaves(score.lower().out_info)] == [(ROWS, RESPONSE)] * 2


def test_sft_learns_from_examples_and_samples_for_its_evaluations():
    recipe: dict = {key: RECIPE[key] for key in ("seed", "steps", "optimizer", "chunk", "slots")}
    recipe |= {"objective": "sft", "micro_rows": 2}
    recipe["examples"] = {"source": "signs_corpus", "rows": ROWS, "row_length": 64, "packed": True}
    evaluation = {"every": 1, "datasets": ["k3_test"], "slots": 4}
    mesh = make_mesh(MeshConfig())
    alone = each_program(Shaped.of(parse(TrainConfig, recipe), MODEL, mesh))
    assert list(alone) == ["gradient", "update"]
    assert alone["gradient"].flops == pytest.approx(2 * flops.gradient_flops(MODEL, 64, 64))
    counted = alone["gradient"].lower().cost_analysis()["flops"]
    assert counted == pytest.approx(2 * without_kernels(64), rel=0.1)
    assert alone["gradient"].times == ROWS / 2

    evaluated = each_program(Shaped.of(parse(TrainConfig, {**recipe, "evaluation": evaluation}), MODEL, mesh))
    assert list(evaluated) == ["reshard", "prefill", "admit", "decode", "gradient", "update"]
    assert evaluated["decode"].times == 0
    answered = flops.forward_flops(MODEL, 16 + 111, 112) - flops.forward_flops(MODEL, 15, 0)
    assert evaluated["decode"].flops == pytest.approx(4 * answered / 112)


def test_grpo_has_no_teacher(programs):
    recipe = {**RECIPE, "objective": "grpo", "grpo": {}}
    del recipe["sdpo"]
    recipe["rollouts"] = {k: v for k, v in recipe["rollouts"].items() if k != "max_teacher_prompt"}
    config = parse(TrainConfig, recipe)
    run = Shaped.of(config, dataclasses.replace(MODEL, num_hidden_layers=1), make_mesh(MeshConfig()))
    assert run.teacher is None
    gradient = each_program(run)["gradient"]
    assert gradient.times == 4 * 2 / ROWS
    assert all(x.dtype for x in jax.tree.leaves(gradient.lower().out_info))
    assert per_chip((gradient.arguments, gradient.keywords)) < 2.2 * per_chip(run.state.params)
    assert jax.tree.leaves(gradient.resident)
