"""The whole study in its smallest form, run as users run it: killed, continued, repeated, refused."""

import os
import random
import re
from pathlib import Path

import pytest

from configs.signs import fixes
from sdistill.experiments.config import FixesConfig
from sdistill.settings import ConfigError, parse
from sdistill.storage import read_measurements, read_records, read_responses
from sdistill.types import Condition
from tests.processes import ROOT, Commands, files_below

pytestmark = pytest.mark.slow

SECTIONS = ["richness", "sft", "on_policy", "trained_richness", "coverage"]  # those that compute
GROUPINGS = {"class", "tenth", "fifth"}
WORD_METRICS = {"word_base", "word_change", "word_p", "word_z"}
TINY = "--config=configs/signs/study.py:tiny"


def identity(m):
    return m.section, m.condition, m.seed, m.step, m.dataset, m.metric, m.baseline, m.group


@pytest.fixture(scope="module")
def commands(data_dir) -> Commands:
    return Commands(data_dir)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, commands) -> Path:
    workdir = tmp_path_factory.mktemp("studies") / "uninterrupted"
    commands.succeed("sdistill.study", TINY, f"--workdir={workdir}")
    return workdir


@pytest.mark.long
def test_all_sections_have_results_with_intervals(uninterrupted):
    found = read_measurements(uninterrupted / "results.jsonl")
    assert list(dict.fromkeys(m.section for m in found)) == [*SECTIONS[:3], "attribution", *SECTIONS[3:]]
    for m in found:
        bare = m.dataset == "train" and m.section != "attribution"
        if bare or m.metric in WORD_METRICS - {"word_change"}:
            assert m.ci_low is m.ci_high is None
        else:
            assert m.ci_low <= m.value <= m.ci_high and m.n > 0
    attributed = [m for m in found if m.section == "attribution"]
    assert {m.metric for m in attributed} == {"tokens", "signal", "divergence", *WORD_METRICS}
    grouped = {m.group.partition(":")[0] for m in attributed if m.metric not in WORD_METRICS}
    assert grouped == GROUPINGS
    assert len({identity(m) for m in found}) == len(found)
    labels = {section: {m.condition.label for m in found if m.section == section} for section in SECTIONS}
    contexts = ("none", "partial_50", "partial_solution_50", "answer", "solution")
    others = ("regenerated", "other_problem")
    assert labels["richness"] == {f"base-{context}" for context in (*contexts, *others)}
    assert labels["trained_richness"] == {f"grpo-{context}" for context in contexts}
    assert labels["sft"] == {"base", "sft_none", "sft_answer", "sft_solution"}
    assert labels["on_policy"] == {
        *("base", "grpo", "sdpo_solution_fixed", "sdpo_solution_ema"),
        *("sdpo_answer_fixed", "sdpo_answer_ema"),
    }


@pytest.mark.long
def test_the_report_shows_responses_of_both_sections_that_keep_them(uninterrupted):
    assert "No responses were kept" not in (uninterrupted / "report.html").read_text()


@pytest.mark.long
def test_figures_are_those_of_the_responses_on_disk(uninterrupted):
    """Recomputes accuracies from the files, by the plainest way."""
    found = {identity(m): m for m in read_measurements(uninterrupted / "results.jsonl")}
    compared = 0
    for section, condition, dataset, name in [
        ("on_policy", Condition("base"), "k3_test", "k3"),
        ("on_policy", Condition("grpo"), "k4_test", "k4"),
        ("sft", Condition("sft", "answer"), "k3_test", "k3"),
    ]:
        folder = uninterrupted / "runs" / section / condition.label / "seed0"
        path = max(folder.glob(f"{dataset}-*.jsonl.gz"))
        step = int(path.name.removesuffix(".jsonl.gz").rpartition("-")[2])
        responses = read_responses(path)
        for seed in (0, "all"):
            measured = found[section, condition, seed, step, name, "accuracy", None, None]
            assert measured.value == pytest.approx(sum(r.correct for r in responses) / len(responses))
            assert measured.n == len(responses)
            compared += 1
    assert compared == 6


@pytest.mark.long
def test_guided_training_sets_match_the_unguided_one(uninterrupted):
    """Same problems, as many responses each, all correct, and posed without the context."""
    folder = uninterrupted / "runs" / "sft" / "data" / "seed0"
    sets = [read_records(folder / f"{name}.jsonl.gz") for name in ("sft_none", "sft_answer", "sft_solution")]
    assert len(sets[0]) == 16
    prompts = [[example["prompt"] for example in examples] for examples in sets]
    assert prompts[0] == prompts[1] == prompts[2]
    assert not any("solution" in prompt for prompt in prompts[0])
    assert sets[0] != sets[1] != sets[2]


@pytest.mark.long
def test_a_study_killed_in_every_section_ends_with_the_same_results(uninterrupted, commands, tmp_path):
    """Each kill comes at a random moment of its section."""
    workdir = tmp_path / "study"
    arguments = ("sdistill.study", TINY, f"--workdir={workdir}")
    for section, file in zip(
        SECTIONS, ["*.gz", "config.json", "config.json", "*.gz", "config.json"], strict=True
    ):
        folder = workdir / "runs" / section
        commands.kill(
            *arguments,
            when=lambda folder=folder, file=file: any(folder.rglob(file)),
            after=random.uniform(0, 1),
        )
        assert not (workdir / "report.html").exists()
    commands.succeed(*arguments)
    assert (workdir / "results.jsonl").read_bytes() == (uninterrupted / "results.jsonl").read_bytes()
    ours, theirs = files_below(workdir / "runs"), files_below(uninterrupted / "runs")
    assert sorted(ours) == sorted(theirs)
    assert [name for name in ours if ours[name] != theirs[name] and not name.endswith("config.json")] == []


@pytest.mark.long
def test_a_second_run_computes_nothing_again_wherever_the_directory_is_named_from(uninterrupted, commands):
    def times():
        return {p: p.stat().st_mtime_ns for p in (uninterrupted / "runs").rglob("*") if p.is_file()}

    before, results = times(), (uninterrupted / "results.jsonl").read_bytes()
    assert len(before) > 50
    commands.succeed("sdistill.study", TINY, f"--workdir={os.path.relpath(uninterrupted, ROOT)}")
    made_again = sorted(path.name for path, time in times().items() if before.get(path) != time)
    assert set(made_again) <= {"sft_none.jsonl.gz", "sft_answer.jsonl.gz", "sft_solution.jsonl.gz"}
    assert (uninterrupted / "results.jsonl").read_bytes() == results


@pytest.mark.long
def test_a_directory_of_another_study_is_refused(uninterrupted, commands):
    done = commands.run(
        "sdistill.study", TINY, f"--workdir={uninterrupted}", "--config.richness.walk.min_correct=2"
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "other settings" in done.stderr and "richness.walk.min_correct=1 there, 2 here" in done.stderr


FIXES = "--config=configs/signs/fixes.py:tiny"


@pytest.mark.long
def test_the_study_of_the_fixes_goes_on_after_a_kill_and_ranks_what_it_ran(commands, tmp_path):
    workdir = tmp_path / "fixes"
    arguments = ("sdistill.study", FIXES, f"--workdir={workdir}")
    runs = workdir / "runs" / "fixes"
    commands.kill(
        *arguments, when=(runs / "sdpo" / "seed0" / "config.json").exists, after=random.uniform(0, 3)
    )
    assert not (workdir / "results.jsonl").exists()
    commands.succeed(*arguments)
    on_sdpo = ("pointwise_clip", "marker_mask", "pass_rate", "fork_aware", "other_problem", "partial")
    on_grpo = ("contrastive_hints", "anti_self_distillation")
    base, grpo, sdpo = (Condition(method) for method in ("base", "grpo", "sdpo"))
    conditions = [
        *(base, grpo, sdpo),
        *(Condition("sdpo", fix=fix) for fix in on_sdpo),
        *(Condition("grpo", fix=fix) for fix in on_grpo),
    ]
    found = read_measurements(workdir / "results.jsonl")
    assert list(dict.fromkeys(m.condition for m in found)) == conditions
    computed = {(section, seed) for section in ("fixes", "attribution") for seed in (0, "all")}
    assert {(m.section, m.seed) for m in found} == computed
    final = {(m.condition, m.dataset, m.metric, m.baseline) for m in found if m.ci_low is not None}
    for condition in conditions[1:]:
        for dataset in ("k3", "k4"):
            for metric in ("accuracy", "length", "num_epistemic", "finished"):
                assert (condition, dataset, metric, None) in final
            assert (condition, dataset, "accuracy", base) in final
            assert ((condition, dataset, "accuracy", sdpo) in final) == (condition != sdpo)
    page = (workdir / "report.html").read_text()
    assert "<h2>Which fix keeps reasoning?</h2>" in page and "GRPO + contrastive hints" in page
    times = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()}
    commands.succeed(*arguments)
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()} == times
    assert read_measurements(workdir / "results.jsonl") == found


@pytest.mark.long
def test_the_study_of_the_probes_goes_on_after_a_kill_and_compares_every_arm(commands, tmp_path):
    workdir = tmp_path / "probes"
    arguments = ("sdistill.study", "--config=configs/signs/probes.py:tiny", f"--workdir={workdir}")
    runs = workdir / "runs" / "probes"
    commands.kill(*arguments, when=(runs / "base-plain").exists, after=random.uniform(0, 5))
    times = {path: path.stat().st_mtime_ns for path in runs.rglob("*.jsonl.gz")}
    commands.succeed(*arguments)
    assert times.items() <= {path: path.stat().st_mtime_ns for path in runs.rglob("*.jsonl.gz")}.items()
    measured = read_measurements(workdir / "results.jsonl")
    found = {(m.condition.label, m.baseline.label) for m in measured if m.dataset == "k4" and m.baseline}
    controls = {
        "forbid_words": ("forbid_neutral", "forbid_half", "plain"),
        "doubt_cue": ("doubt_neutral", "doubt_nothing"),
        "extra_cue_1": ("extra_neutral_1", "extra_nothing_1", "plain"),
        "shuffle_words": ("shuffle_nothing",),
    }
    for model in ("base", "grpo", "sdpo"):
        for arm, others in controls.items():
            assert {(f"{model}-{arm}", f"{model}-{other}") for other in others} <= found
    assert ("sdpo_mask_words-plain", "sdpo_mask_others-plain") in found
    page = (workdir / "report.html").read_text()
    assert "<h2>Causal probes</h2>" in page and "Epistemic words forbidden, against" in page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda values: values["fixes"][0]["train"].update(steps=3),
            "sdpo_pointwise_clip has other steps than grpo",
        ),
        (
            lambda values: values["fixes"][1].update(fix="pointwise_clip"),
            "fixes: the conditions must differ",
        ),
        (lambda values: values.update(seeds=[]), "seeds=() must not be empty"),
    ],
)
def test_fixes_that_cannot_be_compared_are_refused(change, message):
    values = fixes.get_config("tiny").to_dict()
    change(values)
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse(FixesConfig, values)


def test_a_filter_that_keeps_no_problem_names_its_fields(commands, tmp_path):
    (tmp_path / "config.py").write_text(
        "from configs.signs import study\n"
        "def get_config():\n"
        "    config = study.get_config('tiny')\n"
        "    config.richness.splits = ['k3_test']\n"
        "    config.richness.walk_samples = 1\n"
        "    config.richness.walk.min_correct = config.richness.walk.max_correct = 2\n"
        "    return config\n"
    )
    done = commands.run(
        "sdistill.study", f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'study'}"
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "richness.walk.min_correct" in done.stderr and "max_correct" in done.stderr
