import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from sdistill.rows import check_same_responses, layout, response_hidden, response_ids

from sdistill.model.config import ModelConfig
from sdistill.model.decoder import Decoder


def test_prompts_end_and_responses_begin_at_the_same_column():
    rows = layout([[5, 6], [7, 8, 9]], np.array([[1, 2, 3], [4, 0, 0]]), np.array([3, 1]), max_prompt=4)
    np.testing.assert_array_equal(rows.tokens, [[0, 0, 5, 6, 1, 2, 3], [0, 7, 8, 9, 4, 0, 0]])
    np.testing.assert_array_equal(rows.positions, [[0, 0, 0, 1, 2, 3, 4], [0, 0, 1, 2, 3, 0, 0]])
    np.testing.assert_array_equal(rows.segment_ids, [[0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(rows.response_mask, [[1, 1, 1], [1, 0, 0]])
    assert [x.dtype for x in rows] == [np.int32, np.int32, np.int32, np.float32]


SEQUENCES = st.lists(
    st.tuples(st.lists(st.integers(1, 99), min_size=1, max_size=6), st.lists(st.integers(1, 99), max_size=5)),
    min_size=1,
    max_size=4,
)


@given(SEQUENCES, st.integers(0, 3), st.integers(0, 99))
def test_each_row_holds_its_prompt_and_response_and_nothing_else(sequences, spare, garbage):
    max_prompt, columns = 6 + spare, 5
    responses = np.array([r + [garbage] * (columns - len(r)) for _, r in sequences])
    lengths = np.array([len(r) for _, r in sequences])
    rows = layout([p for p, _ in sequences], responses, lengths, max_prompt)
    for i, (prompt, response) in enumerate(sequences):
        inside = rows.segment_ids[i] == 1
        assert rows.tokens[i][inside].tolist() == prompt + response
        assert rows.positions[i][inside].tolist() == list(range(len(prompt) + len(response)))
        assert not rows.tokens[i][~inside].any() and not rows.positions[i][~inside].any()
        assert np.flatnonzero(inside).tolist() == list(
            range(max_prompt - len(prompt), max_prompt + len(response))
        )
        assert rows.response_mask[i].tolist() == [1.0] * len(response) + [0.0] * (columns - len(response))
        assert response_ids(rows)[i][: len(response)].tolist() == response


def test_student_and_teacher_rows_share_their_response_columns():
    responses, lengths = np.array([[3, 4, 2], [5, 2, 9]]), np.array([3, 2])
    student = layout([[1], [1, 1]], responses, lengths, 4)
    teacher = layout([[7] * 9, [8]], responses, lengths, 12)
    np.testing.assert_array_equal(response_ids(student), response_ids(teacher))
    np.testing.assert_array_equal(student.response_mask, teacher.response_mask)
    np.testing.assert_array_equal(response_ids(student), [[3, 4, 2], [5, 2, 0]])


def test_rows_with_other_responses_are_refused():
    responses, lengths = np.array([[3, 4, 2], [5, 2, 0], [6, 7, 2]]), np.array([3, 2, 3])
    student = layout([[1], [1], [1]], responses, lengths, 4)
    check_same_responses(student, layout([[7], [8, 8], [9]], responses, lengths, 12))
    other = responses.copy()
    other[1, 2] = 9  # after the end
    check_same_responses(student, layout([[7], [8], [9]], other, lengths, 12))
    other[2, 1], other[2, 2] = 8, 9
    with pytest.raises(ValueError, match=r"row 2: .* differ at position 1: token 7 and token 8; lay both"):
        check_same_responses(student, layout([[7], [8], [9]], other, lengths, 12))
    with pytest.raises(ValueError, match=r"row 1: .* differ at position 1: token 2 and token None;"):
        check_same_responses(student, layout([[7], [8], [9]], responses, np.array([3, 1, 3]), 12))
    with pytest.raises(ValueError, match=r"responses of shape \(3, 2\) beside those of shape \(3, 3\)"):
        check_same_responses(student, layout([[7], [8], [9]], responses[:, :2], np.array([2, 2, 2]), 12))


@pytest.mark.parametrize("prompt", [[1, 2, 3, 4, 5], []])
def test_prompts_that_do_not_fit_are_refused(prompt):
    with pytest.raises(ValueError) as error:
        layout([[1], prompt], np.zeros((2, 3), int), np.array([1, 1]), max_prompt=4)
    assert str(error.value) == (
        f"prompt 1 has {len(prompt)} tokens; it must have 1 to 4 (raise max_prompt or max_teacher_prompt)"
    )


hidden_of = nnx.jit(response_hidden)
forward = nnx.jit(lambda model, *inputs: model(*inputs))


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(16, 8, 12, 1, 2, 1, 4, initializer_range=0.5)
    return Decoder(config, nnx.Rngs(params=0))


def test_hidden_states_are_those_that_predict_the_response(model):
    prompts, responses = [[3, 4, 5, 6], [7]], np.array([[8, 9, 2], [10, 2, 0]])
    lengths = np.array([3, 2])
    hidden = hidden_of(model, layout(prompts, responses, lengths, 6))
    assert hidden.shape == (2, 3, 8)
    for row, prompt in enumerate(prompts):
        ids = jnp.asarray([[*prompt, *responses[row][: lengths[row]]]])
        size = ids.shape[1]
        alone = forward(model, ids, jnp.arange(size)[None], jnp.ones((1, size), int))
        predicting = alone[0, len(prompt) - 1 : size - 1]
        np.testing.assert_allclose(hidden[row, : lengths[row]], predicting, rtol=1e-5, atol=1e-5)


def test_hidden_states_do_not_depend_on_the_room_for_prompts(model):
    prompts, responses, lengths = [[3, 4, 5], [7]], np.array([[8, 9, 2], [10, 2, 0]]), np.array([3, 2])
    tight, loose = (hidden_of(model, layout(prompts, responses, lengths, p)) for p in (3, 11))
    mask = layout(prompts, responses, lengths, 3).response_mask[..., None]
    np.testing.assert_allclose(tight * mask, loose * mask, rtol=1e-5, atol=1e-5)


def test_an_empty_response_gives_finite_gradients(model):
    rows = layout([[3], [4]], np.zeros((2, 3), int), np.array([0, 1]), 5)
    gradient = nnx.jit(nnx.grad(lambda m: jnp.sum(response_hidden(m, rows)[1, 0])))(model)
    leaves = jax.tree.leaves(gradient)
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves) and any(np.any(leaf) for leaf in leaves)
