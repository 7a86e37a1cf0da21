"""The configs of the paper's sections: its settings for real runs, and a tiny form of each that trains."""

import dataclasses
import importlib
import json
import math

import pytest

from configs.paper import common, section3
from configs.paper.shapes import SHAPES
from launch.compile_check import CHIPS
from sdistill.config import AnyTrainConfig
from sdistill.divergence.definition import DivergenceConfig
from sdistill.generate import GenerateConfig
from sdistill.model.hugging_face import from_hugging_face
from sdistill.settings import parse
from sdistill.train import train
from tests.public_files import FOLDER

PUBLISHED = FOLDER / "hf"
"""The published `config.json` files, where somebody has put them."""

FILES = {
    "Qwen/Qwen3-8B": "Qwen3-8B/config.json",
    "Qwen/Qwen3-1.7B": "Qwen3-1.7B/config.json",
    "Qwen/Qwen3-0.6B": "Qwen3-0.6B/config.json",
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": "DeepSeek-R1-Distill-Qwen-7B/config.json",
    "allenai/Olmo-3-7B-Instruct": "Olmo-3-7B-Instruct/config.assembled.json",
}


def recipe(section: str, arg: str):
    return importlib.import_module(f"configs.paper.{section}").get_config(arg)


def config(section: str, arg: str) -> AnyTrainConfig:
    return parse(AnyTrainConfig, recipe(section, arg).to_dict())


EVERYWHERE = [f"{name}:{where}" for name, model in common.MODELS.items() for where in model.layouts]


@pytest.mark.parametrize("arg", [*common.MODELS, *EVERYWHERE])
def test_section_5_is_the_papers(arg):
    sdpo, grpo = config("section5_sdpo", arg), config("section5_grpo", arg)
    for run, rate in ((sdpo, 1e-5), (grpo, 1e-6)):
        assert run.optimizer.learning_rate == rate and run.optimizer.warmup_steps == 10
        assert run.steps == 100 and run.evaluation.every == 10
        assert run.rollouts.num_prompts * run.rollouts.num_samples == 2 * run.update_size == 2048
        assert run.rollouts.sampling.temperature == 1 and run.rollouts.sampling.top_p == 1
        assert run.evaluation.datasets == ("aime24", "aime25", "amc23", "math500")
        assert run.evaluation.num_samples == 16
        lengths = run.evaluation.max_prompt_length, run.evaluation.max_response_length
        assert lengths == (2048, 38_912)
        top_p = {0.6: 0.95, 0.7: 0.8}[run.evaluation.sampling.temperature]
        assert run.evaluation.sampling.top_p == top_p == (0.95 if run.rollouts.thinking else 0.8)
    lengths = sdpo.rollouts.max_prompt_length, sdpo.rollouts.max_response_length
    assert (*lengths, sdpo.teacher.max_prompt_length) == (2048, 20_480, 22_528)
    assert sdpo.loss.divergence == DivergenceConfig(alpha=0.5, support="topk", top_k=100, tail="bucket")
    assert sdpo.loss.importance_cap == 2 and sdpo.teacher.weights == "fixed"
    assert not grpo.loss.divide_by_std and (grpo.loss.clip_low, grpo.loss.clip_high) == (0.2, 0.28)
    assert grpo.loss.kl_coefficient is None
    assert sdpo.init_from in SHAPES and sdpo.teacher.context.thinking == sdpo.rollouts.thinking


def test_only_the_objective_tells_the_two_apart():
    sdpo, grpo = config("section5_sdpo", "qwen3_8b"), config("section5_grpo", "qwen3_8b")
    optimizer = dataclasses.replace(sdpo.optimizer, learning_rate=1e-6)
    ours = dataclasses.asdict(dataclasses.replace(sdpo, optimizer=optimizer))
    theirs = dataclasses.asdict(grpo)
    assert {name for name in ours if ours[name] != theirs.get(name)} == {"objective", "teacher", "loss"}
    assert ours.keys() - theirs.keys() == {"teacher"}


@pytest.mark.parametrize("size", ["1", "8", "64", "128", "512", "all"])
def test_section_6_is_the_papers(size):
    for objective in ("sdpo", "grpo"):
        run = config("section6", f"{objective}_{size}")
        assert run.objective == objective and run.init_from == "Qwen/Qwen3-8B"
        assert run.rollouts.num_prompts == 64 and run.rollouts.mini_batch_size == 32
        assert not run.rollouts.thinking
        assert run.rollouts.split == "dapo_math_17k" + ("" if size == "all" else f"_seen_{size}")


def test_the_teachers_turn_is_the_released_one():
    shown = common.TEMPLATE.format(prompt="What is 1 + 1?", solution="It is 2.")
    assert shown == (
        "What is 1 + 1?\nCorrect solution:\n\nIt is 2.\n\n\n\nCorrectly solve the original question.\n"
    )


SECTIONS = [
    *(("section5_sdpo", arg) for arg in EVERYWHERE),
    *(("section4_sft", f"guided:{where}") for where in common.MODELS["deepseek_7b"].layouts),
    *(("section3", f"{step}:{where}") for step in ("walk", "solution") for where in section3.SLICES),
    *(("section4", f"{step}:{where}") for step in ("unguided", "guided") for where in section3.SLICES),
]


@pytest.mark.parametrize(("section", "arg"), SECTIONS)
def test_a_run_covers_its_slice_and_its_rows_divide_over_it(section, arg):
    values = recipe(section, arg).to_dict()
    run = parse(AnyTrainConfig if "objective" in values else GenerateConfig, values)
    version, chips = arg.split(":")[1].split("_")
    topology = common.TOPOLOGIES[f"{version}_{chips}"]
    shape = topology.removeprefix(f"{version}:")
    assert shape in CHIPS[version].slices
    assert math.prod(map(int, shape.split("x"))) == math.prod(dataclasses.astuple(run.mesh)) == int(chips)
    num_shards = run.mesh.data * run.mesh.fsdp
    samplers = [run] if isinstance(run, GenerateConfig) else [getattr(run, "rollouts", None), run.evaluation]
    assert any(samplers) and all(sampler.slots % num_shards == 0 for sampler in samplers if sampler)


@pytest.mark.parametrize("arg", EVERYWHERE)
def test_an_evaluation_has_no_larger_cache_than_the_rollouts(arg):
    """So it fits where those do, which is what is compiled for the slice."""
    run = config("section5_sdpo", arg)
    rollouts, evaluation = (
        x.slots * (x.max_prompt_length + x.max_response_length) for x in (run.rollouts, run.evaluation)
    )
    assert evaluation <= rollouts


def test_without_thinking_and_with_fewer_problems_the_programs_are_the_same():
    """What differs is how prompts are made and drawn from, and how many there are."""

    def programs_of(section, arg):
        run = config(section, arg)
        drawn = dict(split="", thinking=True, num_prompts=256, mini_batch_size=128)
        context = dataclasses.replace(run.teacher.context, thinking=True)
        return dataclasses.replace(
            run,
            rollouts=dataclasses.replace(run.rollouts, **drawn),
            teacher=dataclasses.replace(run.teacher, context=context),
            evaluation=None,
        )

    for where in common.MODELS["qwen3_8b"].layouts:
        expected = programs_of("section5_sdpo", f"qwen3_8b:{where}")
        assert programs_of("section5_sdpo", f"qwen3_8b_nothink:{where}") == expected
        assert programs_of("section6", f"sdpo_64:{where}") == expected


@pytest.mark.parametrize("arg", ["qwen", "qwen3:tiny", ""])
def test_other_models_are_refused(arg):
    with pytest.raises(ValueError, match=f"unknown argument '{arg}'; give WHAT or WHAT:WHERE.*deepseek_7b"):
        recipe("section5_sdpo", arg)


@pytest.mark.parametrize(
    ("section", "arg", "known"),
    [
        ("section5_sdpo", "qwen3_8b:v5p", "v5p_8, v5p_4, v6e_16, v5e_16, tiny"),
        ("section5_sdpo", "qwen3_8b:tiny:tiny", "v5p_8, v5p_4, v6e_16, v5e_16, tiny"),
        ("section6", "grpo_8:v6e_4", "v5p_8, v5p_4, v6e_16, v5e_16, tiny"),
        ("section4_sft", "guided:v5p_8", "v5p_4, v6e_8, tiny"),
        ("section3", "walk:v5e_16", "v5e_8, v5e_4, tiny"),
        ("section4", "guided:v5e_16", "v5e_8, v5e_4, tiny"),
    ],
)
def test_slices_on_which_a_model_has_no_layout_are_refused(section, arg, known):
    what, _, where = arg.partition(":")
    with pytest.raises(ValueError, match=f"unknown argument :{where}; give one of {known}"):
        recipe(section, arg)


@pytest.mark.parametrize("section", ["section5_sdpo", "section5_grpo"])
@pytest.mark.parametrize("model", common.MODELS)
def test_every_tiny_form_can_be_parsed(section, model):
    run = config(section, f"{model}:tiny")
    assert run.init_from is None and run.steps == 2 and run.update_size * 2 == 16


ON_POLICY = [
    *(f"section5_{objective}.py:{model}" for objective in ("sdpo", "grpo") for model in common.MODELS),
    *(f"section6.py:{objective}_64" for objective in ("sdpo", "grpo")),
]


@pytest.mark.long
@pytest.mark.parametrize("run", [r for r in ON_POLICY if not r.endswith("nothink")])  # as section 6 does
def test_tiny_forms_train_two_steps(run, tmp_path, data_dir):
    """Those of sections 3 and 4 are run by tests/test_protocols.py."""
    section, _, arg = run.partition(".py:")
    run = dataclasses.replace(config(section, f"{arg}:tiny"), data_dir=str(data_dir))
    train(run, tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2]
    assert all(math.isfinite(value) for record in records for value in record.values())


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_those_of_the_published_files(name):
    path = PUBLISHED / FILES[name]
    if not path.exists():
        pytest.skip(f"{path} is not here: the published files are no part of the project")
    assert SHAPES[name] == from_hugging_face(path)
