"""The decoder against what transformers computed, from files: no transformers needed."""

import numpy as np
import pytest
from safetensors import safe_open

from sdistill.model.hugging_face import from_hugging_face
from sdistill.model.weights import save_pretrained
from tests.model.oracle import golden, ours
from tests.model.oracle.cases import CASES, LAYOUT, THOROUGHLY
from tests.model.oracle.parity import TOLERANCES, error, logit_errors


def expected_logits(case):
    numbers = golden.numbers(case)
    return [numbers[f"logits {i}"] for i in range(len(LAYOUT))]


def kept(logits):
    return [x[golden.picked(len(x))] for x in logits]


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_logits_are_those_of_transformers(case):
    expected = expected_logits(case)
    assert np.mean([np.ptp(x, axis=-1).mean() for x in expected]) > 5
    for kind, found in logit_errors(kept(ours.logits(case)), expected).items():
        assert found <= TOLERANCES[kind], kind


def test_logits_in_bfloat16_are_close():
    case = CASES["qwen3 tied"]
    found = kept(ours.logits(case, "bfloat16", "bfloat16"))
    assert 1e-4 < error(found, expected_logits(case)) <= TOLERANCES["bfloat16"]


@pytest.mark.parametrize("name", THOROUGHLY)
def test_greedy_tokens_are_those_of_transformers_with_a_cache_and_without(name):
    case = CASES[name]
    np.testing.assert_array_equal(ours.greedy(case), golden.numbers(case)["greedy"])
    np.testing.assert_array_equal(ours.greedy(case), ours.greedy_without_cache(case))


@pytest.mark.parametrize("name", THOROUGHLY)
def test_gradients_of_every_parameter_are_those_of_transformers(name):
    case = CASES[name]
    found, expected = ours.gradients(case), golden.numbers(case)["gradients"]
    assert found.keys() == golden.shapes(case).keys()
    for tensor, theirs in zip(golden.shapes(case), expected, strict=True):
        assert theirs[0] > 1e-3, tensor
        difference = golden.projected(tensor, found[tensor]) - theirs
        assert np.abs(difference).max() <= TOLERANCES["gradient"] * theirs[0], tensor


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_what_is_written_has_the_names_shapes_and_config_of_transformers(case, tmp_path):
    model = ours.model(case)
    save_pretrained(model, tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="np") as file:
        written = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        for name, value in case.weights(golden.shapes(case)).items():
            np.testing.assert_array_equal(file.get_tensor(name), value, err_msg=name)
    assert written == golden.shapes(case)
    assert from_hugging_face(tmp_path / "config.json") == model.config
