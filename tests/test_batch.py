"""From scored rollouts to rows, weights and advantages, against plain loops; and how batches are cut."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdistill.batch import (
    Rollouts,
    check_same_responses,
    example_lengths,
    grpo_batch,
    layout,
    micro_batches,
    mini_batches,
    packed_batch,
    sdpo_batch,
    sequence_lengths,
)
from sdistill.config import AnyTrainConfig, SDPOConfig
from sdistill.engine.types import Completions, Finish
from sdistill.model.scoring import TokenScores
from sdistill.settings import parse
from sdistill.tasks.signs_puzzle import problem_from_text
from sdistill.text.chat import SignsChat
from tests import batches
from tests.tiny import response

PROBLEMS = [problem_from_text(text) for text in ("1 1 1 = 1", "8 4 7 = 5", "2 2 2 = 6")]
TEXTS = ["likely 1 </think> + + -", "wait 2 so </think> + -", "wait </think> - -"] * 3
CORRECT = [[True, False, False], [True, True, False], [False, False, False]]
T = 8
MARKED = {"likely", "wait"}
RNG = np.random.default_rng(0)
VALUES = {
    "seed": 0,
    "steps": 1,
    "optimizer": {"learning_rate": 1e-3},
    "rollouts": {
        "split": "k3_pool",
        "num_prompts": 3,
        "num_samples": 3,
        "max_prompt_length": 8,
        "max_response_length": T,
    },
    "init_from": "signs_base",
}
TEMPLATE = "{prompt} solution {solution}"
TEACHER = {"context": {"kind": "answer", "template": TEMPLATE}, "max_prompt_length": 20}


@pytest.fixture(scope="module")
def chat(tokenizer):
    return SignsChat(tokenizer)


@pytest.fixture(scope="module")
def rollouts(tokenizer):
    ids, lengths = np.zeros((9, T), np.int32), np.zeros(9, np.int32)
    for row, text in enumerate(TEXTS):
        tokens = tokenizer.encode(text)
        ids[row, : len(tokens)], lengths[row] = tokens, len(tokens)
    mask = np.arange(T) < lengths[:, None]
    full = (RNG.uniform(-2, -0.5, (9, T)) * mask).astype(np.float32)
    kept = (RNG.uniform(0.4, 1, (9, T))).astype(np.float32)
    drawn = (full - np.log(kept) * mask).astype(np.float32)
    return Completions(ids, lengths, np.full(9, Finish.STOP), drawn, full)


def responses():
    return [
        response(
            problem=PROBLEMS[i // 3].id,
            sample=i % 3,
            text=text,
            correct=correct,
            num_epistemic=1,
            feedback="" if correct else f"- {i}",
        )
        for i, (text, correct) in enumerate(zip(TEXTS, np.ravel(CORRECT).tolist(), strict=True))
    ]


class Scorer:
    """Stands in for a model: random scores, and what it was asked."""

    def __init__(self, seed):
        self.rng, self.rows, self.scores = np.random.default_rng(seed), [], []

    def __call__(self, rows):
        self.rows.append(rows)
        shape = rows.response_mask.shape
        values = (self.rng.uniform(-3, -0.1, shape), self.rng.uniform(0.5, 1.5, shape))
        self.scores.append(TokenScores(*(x.astype(np.float32) for x in values)))
        return self.scores[-1]

    def prompts(self, tokenizer):
        """Of each call, the text of every row's prompt."""
        return [self.prompts_of(rows, tokenizer) for rows in self.rows]

    @classmethod
    def prompts_of(cls, rows, tokenizer):
        return [tokenizer.decode(row[kept > 0].tolist()) for row, kept in cls._cut(rows)]

    @staticmethod
    def _cut(rows):
        end = rows.tokens.shape[1] - T
        return zip(rows.tokens[:, :end], rows.segment_ids[:, :end], strict=True)


def batch_of(values, chat, rollouts, past=(), found=None):
    """The batch and its metrics, and what scored it as the teacher and as the reference."""
    teacher, reference = Scorer(1), Scorer(2)
    config = parse(AnyTrainConfig, VALUES | values)
    scored = Rollouts.of(config, PROBLEMS, found or responses(), rollouts, chat)
    if isinstance(config, SDPOConfig):
        batch, metrics = sdpo_batch(config, scored, chat)
    else:
        batch, metrics = grpo_batch(
            config, scored, chat, score_teacher=teacher, score_reference=reference, past=past
        )
    return batch, metrics, teacher, reference


def sdpo(teacher=TEACHER, **loss):
    return {"objective": "sdpo", "teacher": teacher, "loss": loss}


def grpo(**loss):
    return {"objective": "grpo", "loss": loss}


HAS_TEACHER = [0, 1, 1, 1, 1, 1, 0, 0, 0]
"""A lone success has no teacher, and nobody solved the third problem."""


def test_rollouts_are_measured(chat, rollouts):
    _, metrics, *_ = batch_of(grpo(), chat, rollouts)
    assert metrics == {
        "train_accuracy": pytest.approx(1 / 3),
        "solved_groups": pytest.approx(2 / 3),
        "length": pytest.approx(rollouts.lengths.mean()),
        "num_epistemic": 1.0,
        "finished": 1.0,
    }


def test_rollouts_whose_logits_were_not_finite_are_named(chat, rollouts):
    found = [dataclasses.replace(r, finish="error") if r.sample == 1 else r for r in responses()]
    names = ", ".join(f"{p.id!r} (sample 1)" for p in PROBLEMS)
    with pytest.raises(FloatingPointError) as error:
        batch_of(sdpo(), chat, rollouts, found=found)
    assert str(error.value) == f"the student's logits are not finite in {names}"


def test_weights_of_sdpo_are_those_of_the_loss(chat, rollouts):
    batch, metrics, *_ = batch_of(sdpo(), chat, rollouts)
    assert batch.has_teacher.tolist() == HAS_TEACHER and metrics["teacher_fraction"] == pytest.approx(5 / 9)
    for row, (has_teacher, length) in enumerate(zip(HAS_TEACHER, rollouts.lengths, strict=True)):
        expected = np.zeros(T)
        expected[:length] = has_teacher / length / 9
        np.testing.assert_allclose(batch.token_weights[row], expected, rtol=1e-6)


def test_masked_words_pass_rates_and_rollout_correction_make_one_weight(chat, rollouts):
    values = sdpo(masked_words=("Wait", "2"), pass_rate_weight=True, rollout_correction_cap=0.8)
    values["rollouts"] = VALUES["rollouts"] | {"sampling": {"top_p": 0.9}}
    batch, *_ = batch_of(values, chat, rollouts)
    rates = np.sqrt([2 / 9, 2 / 9, 0])
    for row, (has_teacher, text) in enumerate(zip(HAS_TEACHER, TEXTS, strict=True)):
        words = text.split()
        counted = [t for t, word in enumerate(words) if word not in ("wait", "2")]
        expected = np.zeros(T)
        for t in counted:
            correction = min(np.exp(rollouts.full_log_probs[row, t] - rollouts.log_probs[row, t]), 0.8)
            expected[t] = has_teacher / len(counted) / 9 * rates[row // 3] / rates.mean() * correction
        np.testing.assert_allclose(batch.token_weights[row], expected, rtol=1e-5)
    assert batch.token_weights.dtype == np.float32 and batch.token_weights.any()


def plain_advantages(mask):
    correct = np.array(CORRECT, np.float32)
    return (correct - correct.mean(axis=1, keepdims=True)).reshape(9, 1) * mask


def test_advantages_of_plain_grpo_are_the_same_for_all_tokens_and_ask_nobody(chat, rollouts):
    batch, metrics, teacher, reference = batch_of(grpo(), chat, rollouts)
    np.testing.assert_allclose(batch.advantages, plain_advantages(batch.student.response_mask), atol=1e-6)
    assert not teacher.rows and not reference.rows and batch.reference_log_probs is None
    assert "shaped" not in metrics and "teacher_fraction" not in metrics


def test_the_reference_scores_the_students_rows(chat, rollouts):
    batch, _, teacher, reference = batch_of(grpo(kl_coefficient=0.1), chat, rollouts)
    assert reference.rows == [batch.student] and not teacher.rows
    np.testing.assert_array_equal(batch.reference_log_probs, reference.scores[0].log_prob_BT)


def test_hints_change_advantages_by_the_rule(chat, rollouts):
    config = {"teacher": TEACHER | {"weights": "live"}, "hints": 2, "temperature": 2.0, "threshold": 0.0}
    batch, metrics, teacher, _ = batch_of(grpo(contrastive_hints=config), chat, rollouts)
    mask = batch.student.response_mask
    plain = plain_advantages(mask)
    expected = plain.copy()
    for row in (1, 2, 3, 4):  # the others lack a right or a wrong hint; these have one of each
        correct, wrong = (scores.log_prob_BT[row] for scores in teacher.scores[:2])
        changed = plain[row] + 0.5 * np.tanh((correct - wrong) / 2.0)
        expected[row] = np.where(changed * plain[row] > 0, changed, 0)
    np.testing.assert_allclose(batch.advantages, expected * mask, rtol=1e-5, atol=1e-6)
    assert not np.allclose(batch.advantages, plain)
    assert metrics["teacher_fraction"] == pytest.approx(4 / 9)
    assert metrics["shaped"] == pytest.approx((batch.advantages != plain).sum() / mask.sum())
    right, wrong, second = teacher.prompts(chat.tokenizer)
    assert right[1] == "1 1 1 = 1 solution + + - <think>" and wrong[1] == "1 1 1 = 1 solution - - <think>"
    assert right[3] == "8 4 7 = 5 solution + - <think>" and wrong[3] == "8 4 7 = 5 solution - - <think>"
    assert right[0] == "1 1 1 = 1 <think>" and second[0] == "1 1 1 = 1 solution - - <think>"


ANTI = {"teacher": TEACHER | {"weights": "live"}, "scale": 0.4, "gate": 0.9, "warmup": 2}


def record(entropy, fraction=1.0):
    return {"teacher_entropy": entropy, "teacher_fraction": fraction}


@pytest.mark.parametrize(
    ("past", "is_open"),
    [
        ([], True),
        ([record(0.2), record(0.3), record(9.0)], True),
        ([record(7.0), record(8.0), record(0.1)], False),
        ([record(0.0, fraction=0.0), record(7.0)], False),  # a step without a teacher is not one of them
    ],
)
def test_anti_self_distillation_shapes_rows_with_a_teacher_while_the_gate_is_open(
    past, is_open, chat, rollouts
):
    batch, metrics, teacher, _ = batch_of(grpo(anti_self_distillation=ANTI), chat, rollouts, past)
    mask, has_teacher = batch.student.response_mask, np.array(HAS_TEACHER)[:, None]
    scores = teacher.scores[0]
    gap = scores.log_prob_BT - rollouts.full_log_probs
    changed = plain_advantages(mask) - 0.4 * (np.log1p(np.exp(gap)) - np.log(2)) / 2
    expected = np.where(has_teacher * is_open > 0, changed, plain_advantages(mask)) * mask
    np.testing.assert_allclose(batch.advantages, expected, rtol=1e-5, atol=1e-6)
    entropy = (scores.entropy_BT * mask * has_teacher).sum() / (mask * has_teacher).sum()
    assert metrics["teacher_entropy"] == pytest.approx(entropy)
    assert metrics["shaped"] == pytest.approx((mask * has_teacher).sum() / mask.sum() * is_open)


@pytest.mark.parametrize("loss", [{"contrastive_hints": {"teacher": TEACHER}}, {"kl_coefficient": 0.1}])
def test_scores_that_are_not_finite_are_refused_before_they_become_advantages(loss, chat, rollouts):
    """Contrastive evidence takes a comparison with NaN for a small change, and would hide it."""
    whose = "the initial weights" if "kl_coefficient" in loss else "the teacher"

    class Broken(Scorer):
        def __call__(self, rows):
            scores = super().__call__(rows)
            scores.log_prob_BT[0] = scores.entropy_BT[4, 0] = np.nan
            return scores

    config = parse(AnyTrainConfig, VALUES | grpo(**loss))
    scored = Rollouts.of(config, PROBLEMS, responses(), rollouts, chat)
    # The first rollout has no correct hint: its scores do not count.
    bad = ([0] if whose == "the initial weights" else []) + [4]
    names = ", ".join(f"{PROBLEMS[row // 3].id!r} (sample {row % 3})" for row in bad)
    with pytest.raises(FloatingPointError) as error:
        grpo_batch(config, scored, chat, score_teacher=Broken(0), score_reference=Broken(1), past=[])
    assert str(error.value) == f"scores under {whose} are not finite in {names}"


def test_without_any_success_there_is_nothing_to_turn_away_from(chat, rollouts):
    wrong = [dataclasses.replace(response, correct=False) for response in responses()]
    batch, metrics, *_ = batch_of(grpo(anti_self_distillation=ANTI), chat, rollouts, found=wrong)
    assert not batch.advantages.any()
    assert metrics["teacher_fraction"] == metrics["teacher_entropy"] == metrics["shaped"] == 0


def test_teacher_prompts_that_are_too_long_are_cut_on_the_right_and_counted(
    chat, rollouts, tokenizer, caplog
):
    whole, metrics, *_ = batch_of(sdpo(), chat, rollouts)
    assert metrics["cut_teacher_prompts"] == 0 and not caplog.records
    prompts = Scorer.prompts_of(whole.teacher, tokenizer)
    longest = max(len(tokenizer.encode(prompt)) for prompt in prompts)
    batch, metrics, *_ = batch_of(sdpo(TEACHER | {"max_prompt_length": longest - 1}), chat, rollouts)
    cut = [len(tokenizer.encode(prompt)) == longest for prompt in prompts]
    assert metrics["cut_teacher_prompts"] == sum(cut) > 0
    for prompt, found, is_cut in zip(prompts, Scorer.prompts_of(batch.teacher, tokenizer), cut, strict=True):
        assert found == (tokenizer.decode(tokenizer.encode(prompt)[: longest - 1]) if is_cut else prompt)
    assert f"{sum(cut)} of 9 teacher prompts were cut" in caplog.text


def test_a_failure_without_a_demonstration_is_shown_its_feedback(chat, rollouts, tokenizer):
    context = TEACHER["context"] | {"feedback": {"template": "{prompt} likely {feedback}"}}
    batch, metrics, *_ = batch_of(sdpo(TEACHER | {"context": context}), chat, rollouts)
    shown = Scorer.prompts_of(batch.teacher, tokenizer)
    assert [f"likely - {i}" in prompt for i, prompt in enumerate(shown)] == [False] * 6 + [True] * 3
    assert batch.has_teacher.tolist() == [0, *[1] * 8]
    assert metrics["teacher_fraction"] == pytest.approx(8 / 9)


# ── Layout ───────────────────────────────────────────────────────────────────────────────────────


def test_prompts_end_and_responses_begin_at_the_same_column():
    rows = layout([[5, 6], [7, 8, 9]], np.array([[1, 2, 3], [4, 0, 0]]), np.array([3, 1]), 4)
    np.testing.assert_array_equal(rows.tokens, [[0, 0, 5, 6, 1, 2, 3], [0, 7, 8, 9, 4, 0, 0]])
    np.testing.assert_array_equal(rows.positions, [[0, 0, 0, 1, 2, 3, 4], [0, 0, 1, 2, 3, 0, 0]])
    np.testing.assert_array_equal(rows.segment_ids, [[0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(rows.response_mask, [[1, 1, 1], [1, 0, 0]])
    assert [x.dtype for x in rows] == [np.int32, np.int32, np.int32, np.float32]
    assert sequence_lengths(rows) == [(5, 3), (4, 1)]


SEQUENCES = st.lists(
    st.tuples(st.lists(st.integers(1, 99), min_size=1, max_size=6), st.lists(st.integers(1, 99), max_size=5)),
    min_size=1,
    max_size=4,
)


@given(SEQUENCES, st.integers(0, 3), st.integers(0, 99))
def test_each_row_holds_its_prompt_and_response_and_nothing_else(sequences, spare, garbage):
    prompt_columns, columns = 6 + spare, 5
    ids = np.array([r + [garbage] * (columns - len(r)) for _, r in sequences])
    rows = layout([p for p, _ in sequences], ids, np.array([len(r) for _, r in sequences]), prompt_columns)
    for i, (prompt, tokens) in enumerate(sequences):
        inside = rows.segment_ids[i] == 1
        assert rows.tokens[i][inside].tolist() == prompt + tokens
        assert rows.positions[i][inside].tolist() == list(range(len(prompt) + len(tokens)))
        assert not rows.tokens[i][~inside].any() and not rows.positions[i][~inside].any()
        first = prompt_columns - len(prompt)
        assert np.flatnonzero(inside).tolist() == list(range(first, prompt_columns + len(tokens)))
        assert rows.response_mask[i].tolist() == [1.0] * len(tokens) + [0.0] * (columns - len(tokens))


@pytest.mark.parametrize("prompt", [[1, 2, 3, 4, 5], []])
def test_prompts_that_do_not_fit_are_refused(prompt):
    with pytest.raises(ValueError) as error:
        layout([[1], prompt], np.zeros((2, 3), int), np.array([1, 1]), 4)
    expected = f"prompt 1 has {len(prompt)} tokens; it must have 1 to 4 (raise max_prompt_length)"
    assert str(error.value) == expected


def test_rows_with_other_responses_are_refused():
    ids, lengths = np.array([[3, 4, 2], [5, 2, 0], [6, 7, 2]]), np.array([3, 2, 3])
    student = layout([[1], [1], [1]], ids, lengths, 4)
    check_same_responses(student, layout([[7], [8, 8], [9]], ids, lengths, 12))
    other = ids.copy()
    other[1, 2] = 9  # after the end
    check_same_responses(student, layout([[7], [8], [9]], other, lengths, 12))
    other[2, 1], other[2, 2] = 8, 9
    with pytest.raises(ValueError, match=r"row 2: .* differ at position 1: token 7 and token 8; lay both"):
        check_same_responses(student, layout([[7], [8], [9]], other, lengths, 12))
    with pytest.raises(ValueError, match=r"row 1: .* differ at position 1: token 2 and token None;"):
        check_same_responses(student, layout([[7], [8], [9]], ids, np.array([3, 1, 3]), 12))
    with pytest.raises(ValueError, match=r"responses of shape \(3, 2\) beside those of shape \(3, 3\)"):
        check_same_responses(student, layout([[7], [8], [9]], ids[:, :2], np.array([2, 2, 2]), 12))


# ── Mini-batches and micro-batches ───────────────────────────────────────────────────────────────

ROWS = st.tuples(st.integers(0, 16), st.integers(1, 8), st.integers(1, 12))


def contents(parts):
    """Of every row, its tokens under student and teacher, and its figures."""
    found = []
    for part in parts:
        for row in range(len(part.token_weights)):
            tokens = [x.tokens[row][x.segment_ids[row] > 0].tolist() for x in (part.student, part.teacher)]
            count = int(part.student.response_mask[row].sum())
            figures = [part.token_weights, part.rollout_log_probs, part.epistemic_mask]
            found.append((*map(tuple, tokens), *(tuple(x[row, :count].tolist()) for x in figures)))
    return found


@given(st.lists(ROWS, min_size=6, max_size=6), st.sampled_from([1, 2, 3, 6]))
def test_nothing_is_lost_and_padding_is_bounded(rows, size):
    """Every token of every row is in exactly one part, at the same distance from its prompt."""
    whole = batches.sdpo_batch(*(batches.random_ids(lengths, 3) for lengths in zip(*rows, strict=True)))
    numbered = list(micro_batches(whole, size))
    for numbers, part in numbered:  # a row's number is where it was
        at = whole.token_weights[numbers, : part.token_weights.shape[1]]
        np.testing.assert_array_equal(part.token_weights, at)
    assert sorted(np.concatenate([numbers for numbers, _ in numbered])) == list(range(6))
    parts = [part for _, part in numbered]
    assert sorted(contents(parts)) == sorted(contents([whole]))
    shapes = {(p.student.tokens.shape[1], p.teacher.tokens.shape[1]) for p in parts}
    assert shapes <= {(24, 28), (18, 21), (12, 14), (6, 7)}
    for part in parts:
        responses = part.student.response_mask.sum(axis=1)
        need = max(
            np.max(responses / 16),
            np.max((part.student.segment_ids.sum(axis=1) - responses) / 8),
            np.max((part.teacher.segment_ids.sum(axis=1) - responses) / 12),
        )
        columns = part.student.response_mask.shape[1]
        assert columns == 4 or need > (columns - 4) / 16  # the next smaller shape would not have done


def test_mini_batches_are_the_rows_in_their_order():
    lengths = (3, 5, 16, 2, 1, 9)
    whole = batches.sdpo_batch(*(batches.random_ids(row, 3) for row in (lengths, [2] * 6, [4] * 6)))
    found = list(mini_batches(whole, 2))
    assert [len(part.token_weights) for part in found] == [2, 2, 2]
    assert contents(found) == contents([whole])
    hinted = batches.grpo_batch(whole, range(6))._replace(reference_log_probs=whole.rollout_log_probs)
    for number, part in enumerate(mini_batches(hinted, 3)):
        rows = slice(3 * number, 3 * number + 3)
        for column in ("advantages", "reference_log_probs"):
            np.testing.assert_array_equal(getattr(part, column), getattr(hinted, column)[rows])
    assert all(
        part.reference_log_probs is None for part in mini_batches(batches.grpo_batch(whole, [0] * 6), 2)
    )


def test_packed_rows_are_cut_as_they_come():
    segments = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 0, 0, 0, 0]])
    counted = np.array([[0, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0]], np.float32)
    ids = np.arange(12).reshape(2, 6)
    rows = {"tokens": ids, "targets": ids + 1, "weights": counted, "segment_ids": segments, "positions": ids}
    batch = packed_batch(rows)
    assert batch.token_weights.sum() == 1 and (batch.token_weights > 0).sum() == 2
    assert example_lengths(batch) == [(3, 1), (2, 1), (2, 0)]
    for row, (numbers, part) in enumerate(micro_batches(batch, 1)):
        assert numbers.tolist() == [row]
        for ours, theirs in zip(part, batch, strict=True):
            np.testing.assert_array_equal(ours, theirs[row : row + 1])
    empty = packed_batch(rows | {"weights": 0 * counted})
    assert not empty.token_weights.any()
