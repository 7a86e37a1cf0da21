import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import log_softmax

from sdistill.batch import layout
from sdistill.engine.types import Completions
from sdistill.losses import score_responses
from sdistill.model.config import ModelConfig
from sdistill.model.decoder import Decoder
from sdistill.richness import richness_bits

CONFIG = ModelConfig(12, 8, 12, 1, 2, 1, 4, initializer_range=0.7)
MODEL = Decoder(CONFIG, nnx.Rngs(params=0))
PARAMS = nnx.state(MODEL, nnx.Param)
LENGTHS = np.array([4, 1, 3])
IDS = np.array([[3, 4, 5, 2], [2, 0, 0, 0], [7, 8, 2, 0]])
PLAIN = [[3, 4], [5], [6, 7, 8]]
GUIDED = [[3, 4, 9, 9, 1], [5, 1], [6, 7, 8, 10]]


@nnx.jit
def logits_of(model, ids):
    size = ids.shape[1]
    return model(ids, jnp.arange(size)[None], jnp.ones((1, size), int)) @ model.head()


def log_probs(prompts):
    result = np.zeros(IDS.shape)
    for row, prompt in enumerate(prompts):
        ids = np.zeros((1, 9), int)
        ids[0, : len(prompt) + LENGTHS[row]] = [*prompt, *IDS[row, : LENGTHS[row]]]
        log_p = log_softmax(np.asarray(logits_of(MODEL, jnp.asarray(ids)), np.float64)[0], axis=-1)
        for t in range(LENGTHS[row]):
            result[row, t] = log_p[len(prompt) - 1 + t, IDS[row, t]]
    return result


ROLLOUTS = Completions(
    IDS, LENGTHS, np.ones(3, int), np.zeros(IDS.shape), log_probs(GUIDED).astype(np.float32)
)


def bits(prompts, *, max_prompt=5, batch=2, chunk=64):
    return richness_bits(PARAMS, CONFIG, prompts, ROLLOUTS, max_prompt=max_prompt, batch=batch, chunk=chunk)


@pytest.mark.parametrize("chunk", [64, 3])
def test_response_log_probs_match_float64(chunk):
    rows = layout(PLAIN, IDS, LENGTHS, 5)
    found = score_responses(PARAMS, rows, model=CONFIG, temperature=1.0, logits_chunk_size=chunk)
    np.testing.assert_allclose(found.log_prob_BT * rows.response_mask, log_probs(PLAIN), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_bits_are_the_difference_of_log2_probabilities(batch):
    expected = (log_probs(GUIDED) - log_probs(PLAIN)).sum(axis=1) / np.log(2)
    np.testing.assert_allclose(bits(PLAIN, batch=batch), expected, rtol=1e-5, atol=1e-5)
    assert np.abs(expected).min() > 1e-3


def test_no_context_is_worth_nothing():
    np.testing.assert_allclose(bits(GUIDED), 0, atol=1e-5)


def test_on_average_over_all_responses_bits_are_the_divergence():
    p, q = (
        log_softmax(np.asarray(logits_of(MODEL, jnp.asarray([prompt])), np.float64)[0, -1])
        for prompt in (GUIDED[2], PLAIN[2])
    )
    one = np.arange(12)[:, None]
    rollouts = Completions(one, np.ones(12, int), np.ones(12, int), p[:, None], p[:, None].astype(np.float32))
    values = richness_bits(PARAMS, CONFIG, [PLAIN[2]] * 12, rollouts, max_prompt=5, batch=12, chunk=64)
    divergence = np.sum(np.exp(p) * (p - q)) / np.log(2)
    np.testing.assert_allclose(np.sum(np.exp(p) * values), divergence, rtol=1e-4)
    assert divergence > 0.01


def test_a_plain_prompt_longer_than_its_columns_is_refused():
    with pytest.raises(ValueError, match="prompt 0 has 3 tokens; it must have 1 to 2"):
        bits([[6, 7, 8], *PLAIN[1:]], max_prompt=2)
