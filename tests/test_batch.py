"""From scored rollouts to weights, advantages and teacher prompts, against plain loops."""

import dataclasses

import numpy as np
import pytest

from sdistill.batch import ScoredRollouts, grpo_batch, sdpo_batch
from sdistill.config import AnyTrainConfig, SDPOConfig
from sdistill.engine.types import Completions
from sdistill.model.scoring import TokenScores
from sdistill.settings import parse
from sdistill.tasks.signs_puzzle import problem_from_text
from sdistill.text.chat import SignsChat
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
    return Completions(ids, lengths, np.ones(9, bool), drawn, full)


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
    scored = ScoredRollouts.of(config, PROBLEMS, found or responses(), rollouts, chat)
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


HAS_TEACHER = [
    0,
    1,
    1,
    1,
    1,
    1,
    0,
    0,
    0,
]  # a lone success has no teacher, and nobody solved the third problem


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
