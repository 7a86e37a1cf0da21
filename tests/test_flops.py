"""The arithmetic of a decoder: by counting pairs and parameters, and as compiled programs do it."""

import dataclasses

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import hlo
from launch.programs import Shaped, each_program, per_chip
from sdistill import flops
from sdistill.config import TrainConfig
from sdistill.distributed.mesh import MeshConfig, make_mesh
from sdistill.model.config import ComputeConfig, ModelConfig
from sdistill.settings import parse

MODEL = ModelConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=6,  # a scan: up to 4 layers are unrolled
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
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
    "chunk": 16,
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
    assert flops.matrix_flops(MODEL, 3) - flops.repeated_flops(MODEL, 3) == 2 * 3 * 64 * 160 * 6
    normed = dataclasses.replace(MODEL, norm="output")
    assert flops.repeated_flops(normed, 3) == flops.matrix_flops(normed, 3)


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


def counted(program):
    return hlo.count(program.lower().compile().as_text()).flops


def test_the_compiled_gradient_does_what_was_counted(programs):
    """Plain attention computes masked pairs, too: so it is counted here, by hand."""
    run, each = programs

    def attention(length):
        pairs = length * length * MODEL.num_attention_heads * MODEL.num_hidden_layers
        return 2 * 2 * pairs * MODEL.head_dim

    student, teacher, head = PROMPT + RESPONSE, CONTEXT + RESPONSE, flops.head_flops(MODEL, RESPONSE)
    matrices = flops.matrix_flops(MODEL, student) * (1 + 2) + flops.repeated_flops(MODEL, student) + 4 * head
    matrices += flops.matrix_flops(MODEL, teacher) + head
    expected = matrices + attention(student) * (1 + 1 + 2) + attention(teacher)
    gradient = each["gradient"]
    assert counted(gradient) == pytest.approx(ROWS * expected, rel=0.1)
    assert gradient.all_flops - gradient.kernel_flops == pytest.approx(ROWS * matrices)


def test_a_step_of_decoding_does_what_was_counted(programs):
    run, each = programs
    assert counted(each["decode"]) == pytest.approx(each["decode"].model_flops, rel=0.1)


def test_every_program_of_a_run_compiles_from_shapes(programs):
    run, each = programs
    assert list(each) == ["reshard", "prefill", "admit", "decode", "gradient", "update"]
    for name in ("reshard", "prefill", "admit", "update"):
        memory = each[name].lower().compile().memory_analysis()
        assert memory.output_size_in_bytes > 0, name


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
    matrices = flops.matrix_flops(MODEL, 64) * (1 + 2) + flops.repeated_flops(MODEL, 64)
    matrices += 4 * flops.head_flops(MODEL, 64)
    attention = 4 * 64 * 64 * MODEL.num_attention_heads * MODEL.head_dim * MODEL.num_hidden_layers
    assert counted(alone["gradient"]) == pytest.approx(2 * (matrices + 4 * attention), rel=0.1)
    assert alone["gradient"].times == ROWS / 2

    evaluated = each_program(Shaped.of(parse(TrainConfig, {**recipe, "evaluation": evaluation}), MODEL, mesh))
    assert list(evaluated) == ["reshard", "prefill", "admit", "decode", "gradient", "update"]
    assert evaluated["decode"].times == 0
    assert evaluated["decode"].model_flops == pytest.approx(
        4 * (flops.forward_flops(MODEL, 16 + 112, 1) - flops.forward_flops(MODEL, 16 + 111, 0))
    )


def test_grpo_has_no_teacher(programs):
    recipe = {**RECIPE, "objective": "grpo", "grpo": {}}
    del recipe["sdpo"]
    recipe["rollouts"] = {k: v for k, v in recipe["rollouts"].items() if k != "max_teacher_prompt"}
    config = parse(TrainConfig, recipe)
    run = Shaped.of(config, dataclasses.replace(MODEL, num_hidden_layers=1), make_mesh(MeshConfig()))
    assert run.teacher is None
    gradient = each_program(run)["gradient"]
    assert gradient.times == 4 * 2 / ROWS
    assert gradient.lower().compile().memory_analysis().argument_size_in_bytes < 2.2 * per_chip(
        run.state.params
    )
    assert jax.tree.leaves(gradient.resident)
