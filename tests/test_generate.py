"""Generations: what is kept, that an interruption changes nothing, and contexts from an earlier one."""

import dataclasses

import jax.numpy as jnp
import pytest

from configs.signs import generate as recipe
from sdistill.data.catalogue import open_problems
from sdistill.generate import (
    DONE,
    PASSED_OVER,
    GenerateConfig,
    generate,
    responses_by_problem,
)
from sdistill.model.weights import load_model, save_pretrained
from sdistill.settings import ConfigError, parse
from sdistill.storage import read_responses, write_responses
from tests.processes import Commands, assert_same_files

OWN_JOURNAL = "journal-0.jsonl"
SIZES = {"split": "k3_pool", "max_prompt_length": 128, "max_response_length": 48, "slots": 4}
"""Of all generations here, so that they share one program."""


@pytest.fixture(scope="module")
def config_of(data_dir):
    """Settings of a step of configs/signs/generate.py, with changes."""

    def make(step="tiny", **changes):
        values = recipe.get_config(step).to_dict() | SIZES | {"data_dir": str(data_dir)} | changes
        return parse(GenerateConfig, values)

    return make


@pytest.fixture(scope="module")
def plain(tmp_path_factory, config_of):
    folder = tmp_path_factory.mktemp("plain")
    generate(config_of(), folder)
    return folder


def test_there_is_a_record_for_every_sample_in_order(plain):
    records = read_responses(plain / DONE)
    problems = list(dict.fromkeys(r.problem for r in records))
    assert len(problems) == 8
    assert [(r.problem, r.sample) for r in records] == [(p, i) for p in problems for i in range(2)]
    assert 0 < sum(r.correct for r in records) <= 16
    assert {path.name for path in plain.iterdir()} == {"config.json", DONE}


def test_a_generation_that_is_complete_is_only_read(plain, config_of):
    before = (plain / DONE).stat().st_mtime_ns
    assert generate(config_of(), plain) == read_responses(plain / DONE)
    assert (plain / DONE).stat().st_mtime_ns == before


@pytest.mark.parametrize("torn", [b"", b'{"problem": "1 2'])
def test_what_was_kept_before_an_interruption_is_not_sampled_again(plain, config_of, tmp_path, torn):
    """Not even where a record was cut in the middle: that one is sampled again."""
    records = read_responses(plain / DONE)
    marked = [dataclasses.replace(record, text="kept") for record in records[::3]]
    (tmp_path / "config.json").write_bytes((plain / "config.json").read_bytes())
    write_responses(tmp_path / OWN_JOURNAL, marked)
    with open(tmp_path / OWN_JOURNAL, "ab") as file:
        file.write(torn)
    found = generate(config_of(), tmp_path)
    for i, (ours, whole) in enumerate(zip(found, records, strict=True)):
        assert ours == (whole if i % 3 else dataclasses.replace(whole, text="kept"))


@pytest.mark.long
def test_a_killed_generation_continues_to_the_same_bytes(tmp_path, data_dir):
    commands = Commands(data_dir)
    config = ["--config", "configs/signs/generate.py:tiny", "--config.slots=2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run = ["sdistill.generate", *config, "--workdir"]
    assert "16 responses" in commands.succeed(*run, whole)
    running = killed / OWN_JOURNAL
    commands.kill(*run, killed, when=lambda: running.exists() and running.read_bytes().count(b"\n") > 3)
    assert 3 < running.read_bytes().count(b"\n") < 16
    commands.succeed(*run, killed)
    assert_same_files(killed, whole)


@pytest.mark.parametrize("kind", ["solution", "other_problem"])
def test_a_context_shows_a_correct_response_of_an_earlier_generation(plain, config_of, tmp_path, kind):
    found = generate(config_of(kind, after=str(plain), num_samples=1, num_problems=8), tmp_path)
    shown = {r.problem: r.text for r in reversed(read_responses(plain / DONE)) if r.correct}
    assert {r.problem for r in found} == shown.keys()
    for record in found:
        sources = [p for p, text in shown.items() if f"solution {text}" in record.prompt]
        assert (record.problem in sources) == (kind == "solution") and sources


WALK = {"num_problems": 5, "min_correct": 1, "max_correct": 3, "stride": 8}


@pytest.fixture(scope="module")
def walked(tmp_path_factory, config_of):
    folder = tmp_path_factory.mktemp("walked")
    generate(config_of("walk", num_samples=4, walk=WALK), folder)
    return folder


def test_a_walk_keeps_the_first_problems_that_are_half_known(walked, data_dir):
    """And says what it passed over: together, these are the data from its beginning."""
    kept, passed_over = (responses_by_problem(walked, name) for name in (DONE, PASSED_OVER))
    order = [p.id for p in open_problems("k3_pool", str(data_dir))]
    count = len(kept) + len(passed_over)
    assert kept.keys() | passed_over.keys() == set(order[:count]) and count % 8 == 0
    fitting = [name for name in order[:count] if 1 <= correct((kept | passed_over)[name]) <= 3]
    assert list(kept) == fitting[:5] and len(kept) == 5
    assert count > 8 and sum(1 <= correct(passed_over.get(name, [])) <= 3 for name in order[: count - 8]) == 0


def correct(group):
    return sum(record.correct for record in group)


def test_an_interrupted_walk_ends_with_the_same_files(walked, config_of, tmp_path):
    records = read_responses(walked / PASSED_OVER) + read_responses(walked / DONE)
    (tmp_path / "config.json").write_bytes((walked / "config.json").read_bytes())
    write_responses(tmp_path / OWN_JOURNAL, records[::3])
    generate(config_of("walk", num_samples=4, walk=WALK), tmp_path)
    assert_same_files(tmp_path, walked)


def test_a_walk_that_keeps_nothing_says_so(config_of, tmp_path):
    config = config_of("walk", num_samples=4, walk=WALK, init_from=str(tmp_path / "random"), num_problems=8)
    model = load_model("signs_base")
    model.norm_D[...] = jnp.zeros_like(model.norm_D[...])  # all words are equally likely
    save_pretrained(model, tmp_path / "random")
    with pytest.raises(ConfigError, match="none of the 8 problems of split='k3_pool' had walk.min_correct"):
        generate(config, tmp_path / "walk")


def test_rounds_are_chained_by_the_first_correct_response_or_the_first(walked, config_of, tmp_path):
    """The second round shows responses of the first one, and loses no problem."""
    first = config_of("solution", after=str(walked), num_samples=1)
    responses = generate(first, tmp_path / "first")
    assert [r.problem for r in responses] == list(responses_by_problem(walked))
    second = config_of("regenerated", after=str(tmp_path / "first"), num_samples=1)
    again = generate(second, tmp_path / "second")
    for before, record in zip(responses, again, strict=True):
        assert f"solution {before.text}" in record.prompt


def test_the_problems_of_an_earlier_generation_are_answered_again_without_a_context(
    walked, config_of, tmp_path
):
    found = generate(config_of("unguided", after=str(walked), num_samples=1), tmp_path)
    assert [r.problem for r in found] == list(responses_by_problem(walked))
    assert all("solution" not in r.prompt for r in found)


def test_settings_that_do_not_go_together_are_refused(plain, config_of, tmp_path):
    with pytest.raises(ConfigError, match="context needs after, where solutions are from"):
        config_of(context={"kind": "answer"})
    with pytest.raises(ConfigError, match="num_samples=0 must be positive"):
        config_of(num_samples=0)
    with pytest.raises(ConfigError, match="stop string 'xyz' can never come: word 'xyz'"):
        generate(config_of(stop=("xyz",)), tmp_path / "stopped")
    with pytest.raises(ConfigError, match="holds a run with other settings"):
        generate(config_of(seed=1), plain)
    with pytest.raises(ConfigError, match=r"max_prompt_length=5: the prompt of '.*' has 6 tokens"):
        generate(config_of(max_prompt_length=5), tmp_path / "long")
    with pytest.raises(ConfigError, match=r"has no responses.jsonl.gz; finish that generation first"):
        generate(config_of("solution", after=str(tmp_path)), tmp_path / "guided")
    assert not any(tmp_path.rglob("config.json"))


def test_logits_that_are_no_numbers_stop_a_generation_or_are_counted(config_of, tmp_path):
    """The shipped model with a final norm that is no number."""
    model = load_model("signs_base")
    model.norm_D[...] = jnp.full_like(model.norm_D[...], jnp.nan)
    save_pretrained(model, tmp_path / "broken")
    config = config_of(init_from=str(tmp_path / "broken"))
    with pytest.raises(FloatingPointError, match=r"sample \d are not finite after 0 tokens"):
        generate(config, tmp_path / "stopped")
    found = generate(dataclasses.replace(config, stop_on_error=False), tmp_path / "counted")
    assert {r.finish for r in found} == {"error"}
    assert not any(r.correct for r in found)
