"""Settings of training runs that contradict each other, or have no effect, are refused by name."""

import copy
import json

import pytest

from sdistill.config import GRPO_PRESETS, AnyTrainConfig
from sdistill.settings import ConfigError, parse, to_json

RUN = {"seed": 0, "steps": 2, "optimizer": {"learning_rate": 1e-4}, "init_from": "signs_base"}
ROLLOUTS = {
    "split": "k3_pool",
    "num_prompts": 4,
    "num_samples": 4,
    "max_prompt_length": 8,
    "max_response_length": 48,
}
TEACHER = {"context": {"kind": "solution"}, "max_prompt_length": 64}
LENGTHS = {"num_samples": 1, "max_prompt_length": 8, "max_response_length": 8}
EVALUATION = {**LENGTHS, "every": 1, "datasets": ["trained"]}
SDPO = {**RUN, "objective": "sdpo", "rollouts": ROLLOUTS, "teacher": TEACHER}
GRPO = {**RUN, "objective": "grpo", "rollouts": ROLLOUTS}
SFT = {
    **RUN,
    "objective": "sft",
    "examples": {"source": "signs_corpus", "batch_size": 4, "sequence_length": 64, "packed": False},
}
REMOVE = object()
TEMPLATE = "config.teacher.context.template='{}' must contain {{prompt}} and {{solution}} and no other field"


def changed(values, path, value):
    values = copy.deepcopy(values)
    *parents, name = path.split(".")
    place = values
    for parent in parents:
        place = place.setdefault(parent, {})
    if value is REMOVE:
        del place[name]
    else:
        place[name] = value
    return values


@pytest.mark.parametrize("values", [SDPO, GRPO, SFT])
def test_the_settings_that_are_broken_below_are_fine(values):
    config = parse(AnyTrainConfig, values)
    assert parse(AnyTrainConfig, json.loads(to_json(config))) == config


def refused(values, path, value, message):
    with pytest.raises(ConfigError) as error:
        parse(AnyTrainConfig, changed(values, path, value))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("steps", 0, "config.steps=0 must be positive"),
        ("objective", "ppo", "config.objective='ppo' must be one of 'pretrain', 'sft', 'grpo', 'sdpo'"),
        ("init_from", None, "config.model is needed where init_from is None"),
        ("rollouts", REMOVE, "missing field config.rollouts (RolloutsConfig)"),
        ("examples", SFT["examples"], "config.examples has no effect with objective='sdpo'; remove it"),
        ("teacher", REMOVE, "missing field config.teacher (TeacherConfig)"),
        ("teacher.max_prompt_length", REMOVE, "missing field config.teacher.max_prompt_length (int)"),
        ("loss.clip_low", 0.2, "unknown field config.loss.clip_low"),
        ("rollouts.num_samples", 1, "config.rollouts.num_samples=1 must be 2 or more"),
        ("rollouts.num_problems", 0, "config.rollouts.num_problems=0 must be positive"),
        ("rollouts.mini_batch_size", 3, "config.rollouts.mini_batch_size=3 must divide num_prompts=4, or be"),
        ("rollouts.mini_batch_size", 0, "config.rollouts.mini_batch_size=0 must divide num_prompts=4"),
        ("rollouts.mini_batch_size", 8, "config.rollouts.mini_batch_size=8 must divide num_prompts=4"),
        ("rollouts.sampling.temperature", 0, "config.rollouts.sampling.temperature=0"),
        (
            "rollouts.sampling.temperature",
            -1.0,
            "config.rollouts.sampling.temperature=-1.0 must be 0 or more",
        ),
        ("rollouts.sampling.top_p", 0.0, "config.rollouts.sampling.top_p=0.0 must be above 0"),
        ("rollouts.sampling.top_p", 1.1, "config.rollouts.sampling.top_p=1.1 must be above 0 and at most 1"),
        ("rollouts.sampling.top_k", 0, "config.rollouts.sampling.top_k=0 must be positive, or None"),
        ("mesh.data", 3, "config.rollouts.num_prompts × num_samples = 16 rows must divide over 3 devices"),
        ("micro_batch_size", 3, "config.micro_batch_size=3 must divide rollouts.num_prompts × num_samples"),
        ("teacher.context.kind", "answers", "config.teacher.context.kind='answers' must be one of"),
        ("teacher.context.fraction", 0.5, "config.teacher.context.fraction=0.5 goes with kind='partial' or"),
        (
            "teacher.context",
            {"kind": "partial", "fraction": 1.5},
            "config.teacher.context.fraction=1.5 must be 0 to 1",
        ),
        ("teacher.context.kind", "partial", "config.teacher.context.fraction=None goes with kind='partial'"),
        (
            "teacher.context.template",
            "{prompt}",
            TEMPLATE.format("{prompt}"),
        ),
        (
            "teacher.context.template",
            "{solution}",
            TEMPLATE.format("{solution}"),
        ),
        (
            "teacher.context.feedback",
            {"template": "{prompt}"},
            "config.teacher.context.feedback.template='{prompt}' must contain {feedback} and {prompt} and no",
        ),
        (
            "teacher.context.feedback",
            {"template": "{prompt} {feedback}", "with_solution": "{prompt}"},
            "config.teacher.context.feedback.with_solution='{prompt}' must contain {feedback} and {prompt}",
        ),
        ("teacher.weights", "ema", "config.teacher.ema_rate=None goes with weights='ema'"),
        ("teacher.ema_rate", 0.1, "config.teacher.ema_rate=0.1 goes with weights='ema'"),
        (
            "teacher",
            {**TEACHER, "weights": "ema", "ema_rate": 2.0},
            "config.teacher.ema_rate=2.0 must be 0 to 1",
        ),
        ("loss.divergence.alpha", 1.5, "config.loss.divergence.alpha=1.5 must be 0 to 1"),
        (
            "loss.divergence.support",
            "full",
            "config.loss.divergence.top_k=100 goes with support='topk' and only with it",
        ),
        (
            "loss.divergence.top_k",
            None,
            "config.loss.divergence.top_k=None goes with support='topk' and only with it",
        ),
        ("loss.divergence.top_k", 0, "config.loss.divergence.top_k=0 must be positive"),
        (
            "loss.divergence.tail",
            None,
            "config.loss.divergence.tail=None goes with support='topk' and only with it",
        ),
        (
            "loss.divergence",
            {"support": "full", "top_k": None},
            "config.loss.divergence.tail='bucket' goes with support='topk' and only with it",
        ),
        (
            "loss.divergence",
            {"support": "sampled", "top_k": None, "tail": None},
            "config.loss.divergence.alpha=0.5: support='sampled' estimates KL(S‖T), alpha=1, only",
        ),
        (
            "loss.rollout_correction_cap",
            2.0,
            "config.loss.rollout_correction_cap has no effect where rollouts.sampling sets neither",
        ),
        (
            "loss.rollout_correction_cap",
            0.0,
            "config.loss.rollout_correction_cap=0.0 must be positive, or None",
        ),
        ("loss.masked_words", [""], "config.loss.masked_words=('',): a word must not be empty"),
        (
            "loss.fork_aware",
            {"threshold": 0.0, "repulsion": 1.0},
            "config.loss.fork_aware.threshold=0.0",
        ),
        (
            "loss.fork_aware",
            {"threshold": 1.0, "repulsion": -1.0},
            "config.loss.fork_aware.repulsion=-1.0 must be 0 or more",
        ),
        ("loss.importance_cap", 0.0, "config.loss.importance_cap=0.0 must be positive, or None"),
        ("profile_steps", [2], "config.profile_steps=(2,) must be a first and a last step, 1 to steps="),
        ("profile_steps", [3, 2], "config.profile_steps=(3, 2) must be a first and a last step"),
        ("profile_steps", [1, 9999], "config.profile_steps=(1, 9999) must be a first and a last step"),
        ("optimizer.learning_rate", 0.0, "config.optimizer.learning_rate=0.0 must be positive"),
        ("optimizer.decay_steps", 5, "config.optimizer.decay_steps=5 goes with schedule='cosine'"),
        ("optimizer.schedule", "cosine", "config.optimizer.decay_steps=None goes with schedule='cosine'"),
    ],
)
def test_on_policy_settings_that_contradict_each_other_are_refused(path, value, message):
    refused(SDPO, path, value, message)


def test_updates_must_divide_into_micro_batches_and_over_devices():
    rollouts = {**ROLLOUTS, "mini_batch_size": 2}
    mini = {**GRPO, "rollouts": rollouts, "micro_batch_size": 4}
    assert parse(AnyTrainConfig, mini).update_size == 8
    name = "rollouts.mini_batch_size × num_samples"
    refused(mini, "micro_batch_size", 16, f"config.micro_batch_size=16 must divide {name} = 8, and itself")
    refused(mini, "mesh.data", 16, f"config.{name} = 8 rows must divide over 16 devices")
    refused(mini, "mesh.data", 8, f"config.micro_batch_size=4 must divide {name} = 8, and itself over 8")


MODEL = {
    "vocab_size": 168,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model", MODEL, "config.model is needed where init_from is None, and has no effect otherwise"),
        ("examples", REMOVE, "missing field config.examples (ExamplesConfig)"),
        ("rollouts", ROLLOUTS, "config.rollouts has no effect with objective='sft'; remove it"),
        ("teacher", TEACHER, "config.teacher has no effect with objective='sft'; remove it"),
        ("attribution", True, "config.attribution has no effect with objective='sft'; remove it"),
        ("mesh.data", 3, "config.examples.batch_size = 4 rows must divide over 3 devices"),
        ("evaluation", EVALUATION, "config.evaluation.datasets: 'trained' needs training problems"),
    ],
)
def test_off_policy_settings_that_contradict_each_other_are_refused(path, value, message):
    refused(SFT, path, value, message)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_key_value_heads", 3, "config.model.num_key_value_heads=3 must divide num_attention_heads=2"),
        ("head_dim", 3, "config.model.head_dim=3 must be even"),
    ],
)
def test_impossible_models_are_refused(name, value, message):
    values = {**SFT, "objective": "pretrain", "init_from": None, "model": MODEL}
    assert parse(AnyTrainConfig, values).model.head_dim == 4
    refused(values, f"model.{name}", value, message)


def test_grpo_has_no_teacher():
    assert parse(AnyTrainConfig, GRPO).teacher is None
    refused(GRPO, "teacher", TEACHER, "config.teacher has no effect with objective='grpo'; remove it")


@pytest.mark.parametrize("fix", ["contrastive_hints", "anti_self_distillation"])
def test_grpo_with_a_fix_has_the_teacher_of_the_fix(fix):
    path = f"loss.{fix}.teacher"
    config = parse(AnyTrainConfig, changed(GRPO, path, TEACHER))
    assert config.teacher.context.kind == "solution" and config.teacher.max_prompt_length == 64
    refused(GRPO, f"loss.{fix}", {}, f"missing field config.{path} (TeacherConfig)")
    trusting = {**TEACHER, "weights": "trust_region", "mix": 0.5}
    refused(GRPO, path, trusting, f"config.loss.{fix}.teacher.weights='trust_region' is for SDPO")


@pytest.mark.parametrize(
    ("fix", "changes", "message"),
    [
        ("contrastive_hints", {"hints": 0}, "hints=0 must be positive"),
        ("contrastive_hints", {"temperature": 0.0}, "temperature=0.0 must be positive"),
        ("contrastive_hints", {"threshold": 0.5}, "threshold=0.5 must be 0 or more and below scale=0.5"),
        (
            "contrastive_hints",
            {"teacher": {**TEACHER, "context": {"kind": "other_problem"}}},
            "teacher.context.kind='other_problem' cannot be right or wrong; use 'solution' or 'answer'",
        ),
        ("anti_self_distillation", {"scale": 0.0}, "scale=0.0 must be positive"),
        ("anti_self_distillation", {"warmup": 0}, "warmup=0 must be positive"),
    ],
)
def test_fixes_without_effect_or_sense_are_refused(fix, changes, message):
    refused(GRPO, f"loss.{fix}", {"teacher": TEACHER, **changes}, f"config.loss.{fix}.{message}")


def test_losses_of_grpo_without_effect_or_sense_are_refused():
    refused(GRPO, "loss.kl_coefficient", 0.0, "config.loss.kl_coefficient=0.0 must be positive, or None")
    both = {fix: {"teacher": TEACHER} for fix in ("contrastive_hints", "anti_self_distillation")}
    message = "config.loss.contrastive_hints and anti_self_distillation each need the one teacher; remove one"
    refused(GRPO, "loss", both, message)


def test_presets_are_what_their_papers_say():
    dr_grpo, dapo = GRPO_PRESETS["dr_grpo"], GRPO_PRESETS["dapo"]
    assert (dr_grpo.divide_by_std, dr_grpo.aggregation) == (False, "seq_mean_token_sum")
    assert (dr_grpo.clip_low, dr_grpo.clip_high) == (0.2, 0.2)
    assert (dapo.divide_by_std, dapo.aggregation) == (True, "token_mean")
    assert (dapo.clip_low, dapo.clip_high) == (0.2, 0.28)
    assert dr_grpo.kl_coefficient is dapo.kl_coefficient is None
