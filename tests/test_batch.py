"""How judged rollouts become weights and advantages, against plain loops; what the teacher is asked."""

import dataclasses

import numpy as np
import pytest

from sdistill.batch import on_policy_batch
from sdistill.config import TrainConfig
from sdistill.engine.types import Completions
from sdistill.model.scoring import TokenScores
from sdistill.settings import parse
from sdistill.tasks.signs_puzzle import problem_from_text
from sdistill.text.chat import SignsChat
from tests import tiny

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
        "problems": None,
        "prompts": 3,
        "samples": 3,
        "max_prompt": 8,
        "max_response": T,
        "max_teacher_prompt": 20,
    },
}


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


def generations():
    return [
        tiny.response(PROBLEMS[i // 3].id, text, correct, sample=i % 3, feedback="" if correct else f"- {i}")
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


def batch_of(values, chat, rollouts, past=()):
    teacher, reference = Scorer(1), Scorer(2)
    config = parse(TrainConfig, VALUES | values)
    batch, figures = on_policy_batch(
        config, PROBLEMS, generations(), rollouts, chat, teacher=teacher, reference=reference, past=past
    )
    return batch, figures, teacher, reference


def sdpo(**loss):
    return {"objective": "sdpo", "sdpo": {"context": {"kind": "answer"}, "loss": loss}}


def grpo(**changes):
    rollouts = dict(VALUES["rollouts"])
    if not {"contrastive_hints", "anti_self_distillation"} & changes.keys():
        del rollouts["max_teacher_prompt"]
    return {"objective": "grpo", "grpo": changes, "rollouts": rollouts}


TAUGHT = [0, 1, 1, 1, 1, 1, 0, 0, 0]  # a lone success has no teacher, and nobody solved the third problem


def test_weights_of_sdpo_are_those_of_the_loss(chat, rollouts):
    batch, figures, *_ = batch_of(sdpo(), chat, rollouts)
    assert batch.has_teacher.tolist() == TAUGHT and figures["teacher_fraction"] == pytest.approx(5 / 9)
    for row, (taught, length) in enumerate(zip(TAUGHT, rollouts.lengths, strict=True)):
        expected = np.zeros(T)
        expected[:length] = taught / length / 9
        np.testing.assert_allclose(batch.weights[row], expected, rtol=1e-6)


def test_masked_words_pass_rates_and_rollout_correction_make_one_weight(chat, rollouts):
    values = sdpo(masked_words=("Wait", "2"), pass_rate_weight=True, rollout_correction_cap=0.8)
    values["rollouts"] = VALUES["rollouts"] | {"sampling": {"top_p": 0.9}}
    batch, *_ = batch_of(values, chat, rollouts)
    rates = np.sqrt([2 / 9, 2 / 9, 0])
    for row, (taught, text) in enumerate(zip(TAUGHT, TEXTS, strict=True)):
        words = text.split()
        counted = [t for t, word in enumerate(words) if word not in ("wait", "2")]
        expected = np.zeros(T)
        for t in counted:
            correction = min(np.exp(rollouts.full_log_probs[row, t] - rollouts.log_probs[row, t]), 0.8)
            expected[t] = taught / len(counted) / 9 * rates[row // 3] / rates.mean() * correction
        np.testing.assert_allclose(batch.weights[row], expected, rtol=1e-5)
    assert batch.weights.dtype == np.float32 and batch.weights.any()


def plain_advantages(mask):
    correct = np.array(CORRECT, np.float32)
    return (correct - correct.mean(axis=1, keepdims=True)).reshape(9, 1) * mask


def test_advantages_of_plain_grpo_are_the_same_for_all_tokens_and_ask_nobody(chat, rollouts):
    batch, figures, teacher, reference = batch_of(grpo(), chat, rollouts)
    np.testing.assert_allclose(batch.advantages, plain_advantages(batch.student.response_mask), atol=1e-6)
    assert not teacher.rows and not reference.rows and batch.reference_log_probs is None
    assert "shaped" not in figures and "teacher_fraction" not in figures


def test_the_reference_scores_the_students_rows(chat, rollouts):
    batch, _, teacher, reference = batch_of(grpo(kl_coefficient=0.1), chat, rollouts)
    assert reference.rows == [batch.student] and not teacher.rows
    np.testing.assert_array_equal(batch.reference_log_probs, reference.scores[0].log_prob_BT)


def test_hints_change_advantages_by_the_rule(chat, rollouts):
    config = {"context": {"kind": "answer"}, "hints": 2, "temperature": 2.0, "threshold": 0.0}
    batch, figures, teacher, _ = batch_of(grpo(contrastive_hints=config), chat, rollouts)
    mask = batch.student.response_mask
    plain = plain_advantages(mask)
    expected = plain.copy()
    for row in (1, 2, 3, 4):  # the others lack a right or a wrong hint; these have one of each
        correct, wrong = (scores.log_prob_BT[row] for scores in teacher.scores[:2])
        changed = plain[row] + 0.5 * np.tanh((correct - wrong) / 2.0)
        expected[row] = np.where(changed * plain[row] > 0, changed, 0)
    np.testing.assert_allclose(batch.advantages, expected * mask, rtol=1e-5, atol=1e-6)
    assert not np.allclose(batch.advantages, plain)
    assert figures["teacher_fraction"] == pytest.approx(4 / 9)
    assert figures["shaped"] == pytest.approx((batch.advantages != plain).sum() / mask.sum())
    right, wrong, second = teacher.prompts(chat.tokenizer)
    assert right[1] == "1 1 1 = 1 solution + + - <think>" and wrong[1] == "1 1 1 = 1 solution - - <think>"
    assert right[3] == "8 4 7 = 5 solution + - <think>" and wrong[3] == "8 4 7 = 5 solution - - <think>"
    assert right[0] == "1 1 1 = 1 <think>" and second[0] == "1 1 1 = 1 solution - - <think>"


ANTI = {"context": {"kind": "answer"}, "scale": 0.4, "gate": 0.9, "warmup": 2}


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
    batch, figures, teacher, _ = batch_of(grpo(anti_self_distillation=ANTI), chat, rollouts, past)
    mask, taught = batch.student.response_mask, np.array(TAUGHT)[:, None]
    scores = teacher.scores[0]
    gap = scores.log_prob_BT - rollouts.full_log_probs
    changed = plain_advantages(mask) - 0.4 * (np.log1p(np.exp(gap)) - np.log(2)) / 2
    expected = np.where(taught * is_open > 0, changed, plain_advantages(mask)) * mask
    np.testing.assert_allclose(batch.advantages, expected, rtol=1e-5, atol=1e-6)
    entropy = (scores.entropy_BT * mask * taught).sum() / (mask * taught).sum()
    assert figures["teacher_entropy"] == pytest.approx(entropy)
    assert figures["shaped"] == pytest.approx((mask * taught).sum() / mask.sum() * is_open)


def test_without_any_success_there_is_nothing_to_turn_away_from(chat, rollouts):
    config = parse(TrainConfig, VALUES | grpo(anti_self_distillation=ANTI))
    wrong = [dataclasses.replace(generation, correct=False) for generation in generations()]
    batch, figures = on_policy_batch(
        config, PROBLEMS, wrong, rollouts, chat, teacher=Scorer(1), reference=Scorer(2), past=[]
    )
    assert not batch.advantages.any()
    assert figures["teacher_fraction"] == figures["teacher_entropy"] == figures["shaped"] == 0


def test_teacher_prompts_that_are_too_long_are_cut_on_the_right_and_counted(
    chat, rollouts, tokenizer, caplog
):
    whole, figures, *_ = batch_of(sdpo(), chat, rollouts)
    assert figures["cut_teacher_prompts"] == 0 and not caplog.records
    prompts = Scorer.prompts_of(whole.teacher, tokenizer)
    longest = max(len(tokenizer.encode(prompt)) for prompt in prompts)
    settings = VALUES["rollouts"] | {"max_teacher_prompt": longest - 1}
    batch, figures, *_ = batch_of(sdpo() | {"rollouts": settings}, chat, rollouts)
    cut = [len(tokenizer.encode(prompt)) == longest for prompt in prompts]
    assert figures["cut_teacher_prompts"] == sum(cut) > 0
    for prompt, found, is_cut in zip(prompts, Scorer.prompts_of(batch.teacher, tokenizer), cut, strict=True):
        assert found == (tokenizer.decode(tokenizer.encode(prompt)[: longest - 1]) if is_cut else prompt)
    assert f"{sum(cut)} of 9 teacher prompts were cut" in caplog.text


def test_a_failure_without_a_demonstration_is_shown_its_feedback(chat, rollouts, tokenizer):
    context = {"kind": "answer", "feedback": {"template": "{prompt} likely {feedback}"}}
    batch, figures, *_ = batch_of(sdpo() | {"sdpo": {"context": context}}, chat, rollouts)
    shown = Scorer.prompts_of(batch.teacher, tokenizer)
    assert [f"likely - {i}" in prompt for i, prompt in enumerate(shown)] == [False] * 6 + [True] * 3
    assert batch.has_teacher.tolist() == [0, *[1] * 8]
    assert figures["teacher_fraction"] == pytest.approx(8 / 9)
