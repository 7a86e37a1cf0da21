import copy
import json
from dataclasses import FrozenInstanceError, dataclass, field, replace
from typing import Literal

import pytest

from sdistill.config import AnyTrainConfig
from sdistill.settings import ConfigError, fingerprint, parse, require, to_json


@dataclass(frozen=True)
class Inner:
    rate: float
    name: str = "x"

    def __post_init__(self):
        require(self.rate > 0, f"rate={self.rate} must be positive")


@dataclass(frozen=True)
class Outer:
    inner: Inner
    mode: Literal["a", "b", 3] = "a"
    count: int = 1
    flag: bool = False
    maybe: int | None = None
    optional: Inner | None = None
    names: tuple[str, ...] = ()
    default: Inner = field(default_factory=lambda: Inner(1.0))


def test_plain_values_become_typed_ones():
    parsed = parse(
        Outer,
        {
            "inner": {"rate": 2},
            "mode": 3,
            "flag": True,
            "maybe": None,
            "optional": {"rate": 0.5, "name": "y"},
            "names": ["p", "q"],
        },
    )
    assert parsed == Outer(Inner(2.0), 3, 1, True, None, Inner(0.5, "y"), ("p", "q"), Inner(1.0))
    assert type(parsed.inner.rate) is float and type(parsed.names) is tuple
    with pytest.raises(FrozenInstanceError):
        parsed.count = 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "missing field config.inner (Inner)"),
        ({"inner": {}}, "missing field config.inner.rate (float)"),
        ({"inner": {"rate": 1.0}, "cuont": 2}, "unknown field config.cuont; did you mean 'count'?"),
        ({"inner": {"rate": 1.0, "nmae": ""}}, "unknown field config.inner.nmae; did you mean 'name'?"),
        ({"inner": {"rate": 1.0, "zzz": ""}}, "unknown field config.inner.zzz; known fields: rate, name"),
        ({"inner": {"rate": "1"}}, "config.inner.rate='1' must be float, not str"),
        ({"inner": {"rate": True}}, "config.inner.rate=True must be float, not bool"),
        ({"inner": {"rate": None}}, "config.inner.rate=None must be float, not NoneType"),
        ({"inner": 3}, "config.inner=3 must be Inner, not int"),
        ({"inner": {"rate": 1.0}, "count": 1.0}, "config.count=1.0 must be int, not float"),
        ({"inner": {"rate": 1.0}, "count": True}, "config.count=True must be int, not bool"),
        ({"inner": {"rate": 1.0}, "flag": 1}, "config.flag=1 must be bool, not int"),
        ({"inner": {"rate": 1.0}, "maybe": "2"}, "config.maybe='2' must be int, not str"),
        ({"inner": {"rate": 1.0}, "mode": "c"}, "config.mode='c' must be one of 'a', 'b', 3"),
        ({"inner": {"rate": 1.0}, "names": "pq"}, "config.names='pq' must be tuple"),
        ({"inner": {"rate": 1.0}, "names": ["p", 2]}, "config.names[1]=2 must be str, not int"),
        ({"inner": {"rate": -1.0}}, "config.inner.rate=-1.0 must be positive"),
        ({"inner": {"rate": 1.0}, "optional": {"rate": 0}}, "config.optional.rate=0.0 must be positive"),
        ({"inner": {"rate": 1.0}, "optional": {"rte": 0}}, "config.optional.rte; did you mean 'rate'?"),
    ],
)
def test_errors_name_the_field_and_the_way_out(values, message):
    with pytest.raises(ConfigError) as error:
        parse(Outer, values)
    assert message in str(error.value)
    assert str(error.value).count("config.") == 1


@dataclass(frozen=True)
class Shared:
    kind: Literal["x", "y"]
    seed: int


@dataclass(frozen=True)
class Circle(Shared):
    shape: Literal["circle", "disc"]
    radius: float


@dataclass(frozen=True)
class Square(Shared):
    shape: Literal["square"]
    side: float = 1.0


@dataclass(frozen=True)
class Drawing:
    figure: Circle | Square | None = None


@pytest.mark.parametrize(
    ("values", "result"),
    [
        ({"shape": "circle", "radius": 2}, Circle("x", 0, "circle", 2.0)),
        ({"shape": "disc", "radius": 1.0}, Circle("x", 0, "disc", 1.0)),
        ({"shape": "square"}, Square("x", 0, "square", 1.0)),
        ({"radius": 1.0}, "missing field {}.shape (one of 'circle', 'disc', 'square')"),
        ({"shape": "line"}, "{}.shape='line' must be one of 'circle', 'disc', 'square'"),
        ({"shape": "square", "radius": 1.0}, "{}.radius has no effect with shape='square'; remove it"),
        ({"shape": "square", "sise": 1.0}, "unknown field {}.sise; did you mean 'side'?"),
        ({"shape": "circle"}, "missing field {}.radius (float)"),
    ],
)
def test_a_field_with_values_of_its_own_chooses_the_class_of_a_union(values, result):
    values = {"kind": "x", "seed": 0, **values}
    for union, given, path, wrap in (
        (Circle | Square, values, "config", lambda parsed: parsed),
        (Drawing, {"figure": values}, "config.figure", Drawing),
    ):
        if not isinstance(result, str):
            assert parse(union, given) == wrap(result)
            continue
        with pytest.raises(ConfigError) as error:
            parse(union, given)
        assert str(error.value) == result.format(path)


def test_classes_without_such_a_field_make_no_union():
    assert parse(Drawing, {"figure": None}) == Drawing()
    with pytest.raises(TypeError, match="no Literal field tells Inner and Outer apart"):
        parse(Inner | Outer, {})


def test_json_is_canonical_and_reads_back():
    one = Outer(Inner(1.0), names=("p",))
    values = json.loads(to_json(one))
    assert parse(Outer, values) == one
    assert list(values) == sorted(values)
    shuffled = parse(Outer, dict(reversed(values.items())))
    assert to_json(shuffled) == to_json(one) and fingerprint(shuffled) == fingerprint(one)


def test_fingerprints_tell_settings_apart():
    one = Outer(Inner(1.0))
    others = [replace(one, count=2), replace(one, inner=Inner(1.5)), replace(one, names=("p",))]
    assert len({fingerprint(x) for x in [one, *others]}) == 4
    assert len(fingerprint(one)) == 12 and int(fingerprint(one), 16) >= 0


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
        ("rollouts.mini_batch_size", 3, "config.rollouts.mini_batch_size=3 must divide num_prompts=4"),
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
