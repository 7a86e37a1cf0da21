"""FLOPs of a decoder: by counting pairs and parameters, and as XLA counts those of its programs."""

import dataclasses

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.programs import (
    ATTENTION_BACKWARD,
    gradient_flops,
    per_chip,
    recomputed_flops,
    training_programs,
)
from sdistill import flops
from sdistill.config import AnyTrainConfig
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
MESH = make_mesh(MeshConfig())
PROMPT, RESPONSE, CONTEXT, ROWS = 16, 64, 64, 4
ROLLOUTS = {
    "split": "k3_pool",
    "num_prompts": 4,
    "num_samples": 2,
    "max_prompt_length": PROMPT,
    "max_response_length": RESPONSE,
    "slots": 8,
}
TEACHER = {"context": {"kind": "solution"}, "max_prompt_length": CONTEXT}
RUN = {
    "seed": 0,
    "steps": 1,
    "optimizer": {"learning_rate": 1e-3},
    "init_from": "signs_base",
    "micro_batch_size": ROWS,
    "logits_chunk_size": RESPONSE,
}
ON_POLICY = {**RUN, "rollouts": ROLLOUTS}


def programs_of(objective, **settings):
    config = parse(AnyTrainConfig, {"objective": objective, **settings})
    return training_programs(config, MODEL, MESH)


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
    assert flops.matrix_flops(MODEL, 3) - recomputed_flops(MODEL, 3) == 2 * 3 * 256 * 512 * 2
    normed = dataclasses.replace(MODEL, norm="output")
    assert recomputed_flops(normed, 3) == flops.matrix_flops(normed, 3)


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
    return programs_of("sdpo", teacher=TEACHER, **ON_POLICY)


def plain_attention(length):
    """FLOPs of one forward pass: without the kernels, masked pairs are computed, too."""
    pairs = length * length * MODEL.num_attention_heads * MODEL.num_hidden_layers
    return 2 * 2 * pairs * MODEL.head_dim


def without_kernels(length, positions):
    """FLOPs of a gradient with plain attention in the place of the kernels."""
    kernels = (2 + ATTENTION_BACKWARD) * flops.attention_flops(MODEL, length)
    return gradient_flops(MODEL, length, positions) - kernels + 4 * plain_attention(length)


def test_the_gradient_has_the_flops_of_the_shapes(programs):
    student, teacher = PROMPT + RESPONSE, CONTEXT + RESPONSE
    scored = flops.forward_flops(MODEL, teacher, RESPONSE)
    expected = ROWS * (gradient_flops(MODEL, student, RESPONSE) + scored)
    assert programs["gradient"].flops == pytest.approx(expected)
    scored += plain_attention(teacher) - flops.attention_flops(MODEL, teacher)
    counted = programs["gradient"].lower().cost_analysis()
    assert counted["flops"] == pytest.approx(ROWS * (without_kernels(student, RESPONSE) + scored), rel=0.1)
    assert counted["bytes accessed"] > programs["gradient"].traffic


def test_a_step_of_decoding_has_the_flops_of_the_shapes(programs):
    """The mean over a response; XLA counts a token beside a full cache, here 8 columns of every 10."""
    counted, end = programs["decode"].lower().cost_analysis(), PROMPT + RESPONSE
    last = flops.forward_flops(MODEL, end, 1) - flops.forward_flops(MODEL, end - 1, 0)
    assert counted["flops"] == pytest.approx(8 * last, rel=0.1)
    assert (
        programs["decode"].flops == pytest.approx(8 * last, rel=0.1) and programs["decode"].flops < 8 * last
    )
    read = sum(end_of_prompt + 1 for end_of_prompt in range(PROMPT - 1, end - 1)) / RESPONSE
    cache = 8 * read * 2 * MODEL.num_key_value_heads * MODEL.head_dim * MODEL.num_hidden_layers * 4
    weights = MODEL.parameter_count() - MODEL.vocab_size * MODEL.hidden_size
    assert programs["decode"].traffic == pytest.approx(4 * weights + cache, rel=1e-3)
    assert counted["bytes accessed"] > programs["decode"].traffic


def test_every_program_of_a_run_is_lowered_from_shapes(programs):
    assert list(programs) == ["reshard", "prefill", "admit", "decode", "gradient", "update"]
    for name in ("reshard", "prefill", "admit", "update"):
        lowered = programs[name].lower()
        assert jax.tree.leaves(lowered.out_info), name
        counted = lowered.cost_analysis()["bytes accessed"]
        assert counted > programs[name].traffic > 0 or name == "reshard", name  # which converts nothing here


def test_what_is_resident_is_what_the_program_does_not_take(programs):
    params, step = 4 * MODEL.parameter_count(), 4
    (state, gradient), teacher = programs["update"].arguments, programs["update"].resident
    assert per_chip(state.params) == per_chip(gradient) == per_chip(teacher) == params
    assert per_chip(state) == pytest.approx(3 * params, abs=3 * step)
    assert per_chip(programs["gradient"].resident) == per_chip(state.opt_state)
    assert per_chip(programs["decode"].resident) > per_chip((state, teacher))


def test_a_teacher_that_only_scores_is_a_program():
    programs = programs_of("grpo", loss={"anti_self_distillation": {"teacher": TEACHER}}, **ON_POLICY)
    score = programs["score"]
    assert score.times == 4 * 2 / ROWS
    assert score.flops == pytest.approx(ROWS * flops.forward_flops(MODEL, CONTEXT + RESPONSE, RESPONSE))
    assert [x.shape for x in jax.tree.leaves(score.lower().out_info)] == [(ROWS, RESPONSE)] * 2


def test_sft_trains_on_examples_and_samples_for_its_evaluations():
    examples = {"source": "signs_corpus", "batch_size": ROWS, "sequence_length": 64, "packed": True}
    sft = {**RUN, "examples": examples, "micro_batch_size": 2}
    alone = programs_of("sft", **sft)
    assert list(alone) == ["gradient", "update"]
    assert alone["gradient"].flops == pytest.approx(2 * gradient_flops(MODEL, 64, 64))
    counted = alone["gradient"].lower().compile().cost_analysis()
    assert counted["flops"] == pytest.approx(2 * without_kernels(64, 64), rel=0.1)
    assert counted["bytes accessed"] > alone["gradient"].traffic
    assert alone["gradient"].times == ROWS / 2

    evaluation = {"every": 1, "datasets": ["k3_test"], "slots": 4, "num_samples": 4}
    evaluation |= {"max_prompt_length": 16, "max_response_length": 112}
    evaluated = programs_of("sft", **sft, evaluation=evaluation)
    assert list(evaluated) == ["reshard", "prefill", "admit", "decode", "gradient", "update"]
    assert evaluated["decode"].times == 0
    answered = flops.forward_flops(MODEL, 16 + 111, 112) - flops.forward_flops(MODEL, 15, 0)
    assert evaluated["decode"].flops == pytest.approx(4 * answered / 112)


def test_grpo_has_no_teacher():
    programs = programs_of("grpo", **ON_POLICY)
    assert "score" not in programs and programs["update"].resident is None
    gradient = programs["gradient"]
    assert gradient.times == 4 * 2 / ROWS
    assert gradient.flops == pytest.approx(ROWS * gradient_flops(MODEL, PROMPT + RESPONSE, RESPONSE))
    assert all(x.dtype for x in jax.tree.leaves(gradient.lower().out_info))
    params = programs["update"].arguments[0].params
    assert per_chip((gradient.arguments, gradient.keywords)) < 2.2 * per_chip(params)
    assert jax.tree.leaves(gradient.resident)
