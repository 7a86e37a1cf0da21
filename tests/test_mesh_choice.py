"""The mesh of a run whose config names none."""

import dataclasses

import pytest

from configs.paper import section5_sdpo
from configs.paper.common import MODELS
from configs.paper.shapes import SHAPES
from configs.signs import grpo
from launch import compile_table
from launch.compile_check import workload_of
from sdistill.config import GRPOConfig, SamplerConfig, SDPOConfig
from sdistill.distributed.mesh import AXES, MeshConfig
from sdistill.mesh_choice import (
    GIB,
    all_meshes,
    choose_mesh,
    sampling_workload,
    training_mesh,
    training_workload,
)
from sdistill.model.folders import SIGNS_BASE
from sdistill.model.hugging_face import from_hugging_face
from sdistill.settings import ConfigError, parse

TINY = parse(SDPOConfig, section5_sdpo.get_config("qwen3_8b:tiny").to_dict())
MEMORY = {"v5p": 95.74 * GIB, "v6e": 31.25 * GIB, "v5e": 15.75 * GIB}
EVERYWHERE = [
    (name, where) for name in MODELS if name != "qwen3_8b_nothink" for where in MODELS[name].layouts
]


def tiny_run(micro_batch_size, slots=8):
    rollouts = dataclasses.replace(TINY.rollouts, slots=slots)
    return dataclasses.replace(TINY, micro_batch_size=micro_batch_size, rollouts=rollouts)


def paper_run(model, where):
    run = parse(SDPOConfig, section5_sdpo.get_config(f"{model}:{where}").to_dict())
    return run, training_workload(run, SHAPES[run.init_from])


def test_one_device_is_a_mesh_of_one():
    assert choose_mesh(training_workload(TINY, TINY.model), 1, GIB) == MeshConfig()
    mesh = training_mesh(dataclasses.replace(TINY, mesh=None))
    assert mesh.axis_names == AXES and mesh.size == 1


def test_all_meshes_over_some_devices_come_with_the_plainest_first():
    found = list(all_meshes(4))
    assert found[:4] == [MeshConfig(4), MeshConfig(2, 2), MeshConfig(1, 4), MeshConfig(2, 1, 1, 2)]
    assert found[-1] == MeshConfig(tensor=4) and len(set(found)) == len(found) == 10


def test_what_fits_everywhere_is_split_by_rows_only():
    run = tiny_run(micro_batch_size=8, slots=16)
    assert choose_mesh(training_workload(run, run.model), 8, GIB) == MeshConfig(data=8)


@pytest.mark.parametrize(
    ("changes", "mesh"),
    [
        ({"micro_batch_size": 4}, MeshConfig(data=4, context=2)),
        ({"micro_batch_size": 8, "slots": 4}, MeshConfig(data=4, context=2)),
        ({"micro_batch_size": 2, "slots": 2}, None),
    ],
)
def test_what_rows_cannot_split_is_split_by_columns_as_far_as_the_model_allows(changes, mesh):
    """The tiny model has two key heads."""
    run = tiny_run(**changes)
    if mesh is not None:
        assert choose_mesh(training_workload(run, run.model), 8, GIB) == mesh
        return
    with pytest.raises(ConfigError) as error:
        choose_mesh(training_workload(run, run.model), 8, GIB)
    assert str(error.value) == (
        "mesh=None: no mesh over 8 devices divides model and rows: data=8 × fsdp=1 × tensor=1 × context=1 "
        "cannot split micro_batch_size=2 over data × fsdp = 8"
    )


@pytest.mark.parametrize(("model", "where"), EVERYWHERE)
def test_the_paper_s_layouts_are_what_would_be_chosen(model, where):
    run, work = paper_run(model, where)
    version, chips = where.split("_")
    assert choose_mesh(work, int(chips), MEMORY[version]) == run.mesh


def test_where_nothing_fits_the_closest_is_named_and_what_takes_the_memory():
    _, work = paper_run("qwen3_8b", "v5e_16")
    with pytest.raises(ConfigError) as error:
        choose_mesh(work, 8, MEMORY["v5e"])
    message = str(error.value)
    assert "no mesh over 8 devices fits; data=1 × fsdp=2 × tensor=1 × context=4 comes closest with" in message
    assert "GiB of 14.5 a device" in message and "state 11.4" in message and "micro_batch_size" in message


@pytest.mark.parametrize("where", ["v5e_8", "v5e_4"])
def test_a_generation_s_layout_is_what_would_be_chosen(where):
    """`context` and `tensor` split the same while tokens are sampled."""
    run = compile_table.settings_of(f"section3.py:walk:{where}")
    chosen = choose_mesh(workload_of(run), int(where[-1]), MEMORY["v5e"])
    assert dataclasses.replace(chosen, tensor=chosen.context, context=1) == run.mesh


def test_the_initial_weights_of_a_kl_term_are_counted():
    settings = grpo.get_config("tiny").to_dict()
    plain, penalised = (
        parse(GRPOConfig, settings | {"loss": loss}) for loss in ({}, {"kl_coefficient": 0.1})
    )
    model = from_hugging_face(SIGNS_BASE / "config.json")
    bytes_of = [training_workload(config, model).state_bytes for config in (plain, penalised)]
    assert bytes_of[1] - bytes_of[0] == 4


def test_a_generation_s_model_that_fits_is_not_split():
    sampler = SamplerConfig(num_samples=1, max_prompt_length=8, max_response_length=8, slots=16)
    work = sampling_workload(TINY.model, sampler)
    assert choose_mesh(work, 8, GIB) == MeshConfig(data=8)


def test_the_estimate_is_near_what_the_compiler_says():
    lines = compile_table.read_lines()
    near = {("decode", "section3"), ("decode", "section4_sft"), ("decode", "section5_sdpo")}
    near |= {("gradient", "section5_sdpo")}
    lines = [line for line in lines if (line["program"], line["run"].split(".py")[0]) in near]
    assert len(lines) == 26
    for line in lines:
        run = compile_table.settings_of(line["run"])
        stage = {"gradient": "gradient", "decode": "decoding"}[line["program"]]
        estimate = sum(workload_of(run).estimate(run.mesh)[stage].values())
        assert estimate == pytest.approx(line["total"], rel=0.1), (line["run"], line["program"])
