"""The report: verdicts, escaping, what happens when parts of a run are missing, determinism."""

import gzip
import io
import json
import random
import re
from pathlib import Path

import pytest
from rich.console import Console

from sdistill import report
from sdistill.analysis import figures
from sdistill.analysis.claims import Comparison, Outcome, difference, judge
from sdistill.analysis.ranking import standings

HOSTILE = "<script>alert(1)</script> <think> maybe 8 -3 & wait </think> + -"


def record(section, condition, dataset, metric, value, *, half=0.02, step=0, seed="all", n=800):
    bounds = (None, None) if half is None or value is None else (value - half, value + half)
    return {
        "section": section, "condition": condition, "seed": seed, "step": step,
        "dataset": dataset, "metric": metric, "value": value, "n": n,
        "ci_low": bounds[0], "ci_high": bounds[1],
    }  # fmt: skip


RICHNESS = {  # condition: bits, accuracy, length, words
    "unguided": (0.0, 0.41, 52.0, 6.1),
    "other_problem": (0.1, 0.40, 50.0, 5.9),
    "partial": (1.0, 0.66, 38.0, 3.9),
    "answer": (2.1, 0.90, 22.0, 0.9),
    "regenerated": (2.6, 0.93, 12.0, 0.4),
    "solution": (2.9, 0.97, 6.0, 0.1),
}
FINAL = {  # accuracy on k3, on k4, length, words
    "base": (0.81, 0.61, 36.0, 3.5),
    "sft_unguided": (0.84, 0.63, 35.0, 3.4),
    "sft_guided": (0.51, 0.50, 17.0, 1.7),
    "sft_guided_solution": (0.30, 0.28, 5.0, 0.1),
    "grpo": (0.91, 0.73, 33.0, 2.9),
    "sdpo_answer_fixed": (0.74, 0.55, 22.0, 1.8),
    "sdpo_answer_ema": (0.66, 0.50, 20.0, 1.5),
    "sdpo_solution_fixed": (0.45, 0.44, 14.0, 0.9),
    "sdpo_solution_ema": (0.35, 0.40, 12.0, 0.7),
}
HALF = {"accuracy": 0.02, "length": 0.8, "words": 0.15}


def outcomes(section, condition, values, step):
    """Accuracy, length and words of a condition, pooled, by seed, and against base."""
    rows = []
    for dataset, accuracy in (("k3", values[0]), ("k4", values[1])):
        metrics = {"accuracy": accuracy, "length": values[2], "words": values[3]}
        base = dict(zip(metrics, (FINAL["base"][dataset == "k4"], *FINAL["base"][2:]), strict=True))
        for metric, value in metrics.items():
            half = HALF[metric]
            minus = f"{metric}_minus:base"
            rows.append(record(section, condition, dataset, metric, value, half=half, step=step))
            for seed in (0, 1):
                by_seed = value * (0.98 + 0.04 * seed)
                rows.append(record(section, condition, dataset, metric, by_seed, step=step, seed=seed))
            if condition != "base":
                change = value - base[metric]
                rows.append(record(section, condition, dataset, minus, change, half=half, step=step))
        rows.append(record(section, condition, dataset, "pass@4", accuracy**0.5, step=step))
        rows.append(record(section, condition, dataset, "finished", 0.998, step=step))
    return rows


def synthetic_records():
    """A run in which everything comes out as the paper says, shaped as a study writes it."""
    rows = []
    for condition, (bits, *values) in RICHNESS.items():
        for metric, value in zip(HALF, values, strict=True):
            rows.append(record("richness", condition, "walk", metric, value, half=HALF[metric], n=808))
        rows.append(record("richness", condition, "walk", "bits_per_response", bits, half=0.1))
    for condition in ("base", "sft_unguided", "sft_guided", "sft_guided_solution"):
        rows += outcomes("sft", condition, FINAL[condition], 0 if condition == "base" else 39)
    rows += outcomes("on_policy", "base", FINAL["base"], 0)
    for condition in list(FINAL)[3:]:
        for step in (10, 20, 40, 60):
            share = 1 - (1 - step / 60) ** 2
            mixed = [b + (v - b) * share for b, v in zip(FINAL["base"], FINAL[condition], strict=True)]
            rows += outcomes("on_policy", condition, mixed, step)
            rows.append(record("on_policy", condition, "train", "entropy", 0.4, half=None, step=step, seed=0))
    difference_row = ("k4", "accuracy_minus:sdpo_answer_fixed", 0.44 - 0.55)
    rows.append(record("on_policy", "sdpo_solution_fixed", *difference_row, step=60))
    return rows + coverage_records()


def coverage_records():
    rows = outcomes("coverage", "base", FINAL["base"], 0)
    for i, size in enumerate(("1", "8", "64", "512", "all")):
        for method, sign in (("sdpo", -1), ("grpo", 1)):
            run = f"{method}_{size}"
            for step in (0, 20, 40, 60):
                t = step / 60
                gain = t * (0.12 - 0.05 * i) * 2 if sign < 0 else t * 0.1
                ood = 0.61 - t * (0.25 - 0.04 * i) if sign < 0 else 0.61 + t * 0.02 * i
                half = 0.0 if size == "1" else 0.02
                metrics = {"accuracy": min(1.0, 0.8 + gain), "length": 36 - 18 * t * (sign < 0)}
                for metric, value in metrics.items():
                    rows.append(record("coverage", run, "trained", metric, value, half=half, step=step))
                for dataset, value in (("k3", ood + 0.2), ("k4", ood)):
                    rows.append(record("coverage", run, dataset, "accuracy", value, step=step))
                rows.append(record("coverage", run, "k4", "accuracy_minus:base", ood - 0.61, step=step))
    return rows


FIXES = {  # accuracy on k4 and k3, minus base and minus SDPO on k4, length, words
    "base": (0.61, 0.81, None, None, 36.0, 3.5),
    "grpo": (0.73, 0.91, 0.12, 0.28, 33.0, 2.9),
    "sdpo": (0.45, 0.70, -0.16, None, 14.0, 0.9),
    "sdpo_marker_mask": (0.60, 0.82, -0.01, 0.15, 30.0, 3.2),
    "sdpo_pass_rate": (0.46, 0.71, -0.15, 0.01, 15.0, 1.0),
    "grpo_contrastive_hints": (0.72, 0.90, 0.11, 0.27, 34.0, 2.8),
}


def fixes_records():
    rows = []
    for condition, (k4, k3, base, sdpo, length, words) in FIXES.items():
        step = 0 if condition == "base" else 40
        for dataset, accuracy in (("k4", k4), ("k3", k3)):
            figures = {"accuracy": accuracy, "length": length, "words": words, "finished": 0.9}
            if dataset == "k4":
                figures |= {"accuracy_minus:base": base, "accuracy_minus:sdpo": sdpo}
            for metric, value in figures.items():
                if value is not None:
                    rows.append(record("fixes", condition, dataset, metric, value, step=step))
            for seed in (0, 1):
                value = accuracy + 0.01 * (2 * seed - 1)
                rows.append(record("fixes", condition, dataset, "accuracy", value, step=step, seed=seed))
    return rows


def write_run(path: Path, rows, generations=True):
    path.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (path / "results.jsonl").write_text(text, encoding="utf-8")
    (path / "config.json").write_text(json.dumps({"name": "<b>tiny</b>", "seeds": [0, 1]}))
    (path / "environment.json").write_text(json.dumps({"python": "3.11", "jax": "0.10"}))
    rng = random.Random(0)
    for section, (conditions, datasets) in report.TRACES.items() if generations else ():
        for condition in conditions:
            for step in (0,) if section == "richness" or condition == "base" else (20, 60):
                folder = path / "runs" / section / condition / "seed0"
                folder.mkdir(parents=True, exist_ok=True)
                with gzip.open(folder / f"{datasets[0]}-{step:06d}.jsonl.gz", "wt") as stream:
                    for problem in range(8):
                        for sample in (1, 0):
                            stream.write(json.dumps(generation(problem, sample, rng)) + "\n")
    return path


def generation(problem, sample, rng):
    work = " ".join(rng.choice(("maybe 8 -3 - 4 1 + 7 -6 wait", "so 8 -3 + 4 -7")) for _ in "abcd")
    question = f"8 4 {problem} = 1"
    return {
        "problem": question, "sample": sample, "prompt": f"{question} solution + - <think>",
        "response": HOSTILE if problem == 0 else f"{work} yes </think> + -",
        "correct": rng.random() < 0.5, "finish": "stop", "length": 40, "answer": "+ -",
    }  # fmt: skip


def verdicts(rows):
    return {claim.text: claim.outcome for claim in judge(rows)}


def verdict(rows, start):
    (found,) = (outcome for text, outcome in verdicts(rows).items() if text.startswith(start))
    return found


def test_run_that_agrees_with_the_paper_reproduces_every_claim():
    found = verdicts(synthetic_records())
    assert set(found.values()) == {Outcome.REPRODUCED}, found


def test_nothing_measured():
    claims = judge([])
    assert {claim.outcome for claim in claims} == {Outcome.NOT_MEASURED}
    assert report.summary(claims) == "Nothing that the paper claims was measured in this run."


@pytest.mark.parametrize(
    ("value", "half", "guided", "unguided"),
    [
        (-0.10, 0.02, Outcome.REPRODUCED, Outcome.NOT_REPRODUCED),
        (-0.02, 0.03, Outcome.INCONCLUSIVE, Outcome.INCONCLUSIVE),
        (-0.01, 0.015, Outcome.INCONCLUSIVE, Outcome.REPRODUCED),  # within the margin of no loss
        (-0.02, 0.005, Outcome.REPRODUCED, Outcome.REPRODUCED),  # certainly below, by less than it
        (0.00, 0.05, Outcome.INCONCLUSIVE, Outcome.REPRODUCED),
        (0.10, 0.02, Outcome.NOT_REPRODUCED, Outcome.REPRODUCED),
        (-0.10, None, Outcome.INCONCLUSIVE, Outcome.INCONCLUSIVE),  # no interval
        (-0.10, 0.0, Outcome.INCONCLUSIVE, Outcome.INCONCLUSIVE),  # that of a single problem
        (None, None, Outcome.NOT_MEASURED, Outcome.NOT_MEASURED),  # undefined
    ],
)
def test_every_verdict_of_a_difference(value, half, guided, unguided):
    rows = [
        record("sft", run, "k3", "accuracy_minus:base", value, half=half)
        for run in ("sft_guided", "sft_unguided")
    ]
    assert verdict(rows, "SFT on guided") is guided
    assert verdict(rows, "SFT on unguided") is unguided


def test_richness_claim_needs_the_fall_and_no_clear_rise():
    def rows(words):
        order = zip(("unguided", "partial", "solution"), words, strict=True)
        for bits, (condition, value) in enumerate(order):
            yield record("richness", condition, "walk", "bits_per_response", float(bits))
            yield record("richness", condition, "walk", "words", value, half=0.1)

    claim = "epistemic words fall"
    assert verdict(list(rows((6.0, 3.0, 1.0))), claim) is Outcome.REPRODUCED
    assert verdict(list(rows((6.0, 1.0, 1.02))), claim) is Outcome.REPRODUCED  # a rise within noise
    assert verdict(list(rows((6.0, 7.0, 1.0))), claim) is Outcome.NOT_REPRODUCED
    assert verdict(list(rows((1.0, 1.0, 1.05))), claim) is Outcome.INCONCLUSIVE
    assert verdict(list(rows((1.0, 3.0, 6.0))), claim) is Outcome.NOT_REPRODUCED


def test_one_contrary_context_refutes_a_claim_about_both():
    def rows(answer):
        for run, change in (("sdpo_solution_fixed", -5.0), ("sdpo_answer_fixed", answer)):
            yield record("on_policy", run, "k3", "length_minus:base", change, step=9)

    assert verdict(list(rows(-4.0)), "SDPO shortens") is Outcome.REPRODUCED
    assert verdict(list(rows(4.0)), "SDPO shortens") is Outcome.NOT_REPRODUCED


def test_step_zero_of_a_training_run_settles_nothing():
    rows = [record("on_policy", "grpo", "k3", "accuracy_minus:base", 0.0)]
    assert verdict(rows, "GRPO raises accuracy out") is Outcome.NOT_MEASURED


def test_difference_prefers_paired_then_mirrored_then_separate_intervals():
    c = Comparison("on_policy", "sdpo_answer_fixed", "sdpo_answer_ema", "k4", "accuracy", "above")
    separate = [
        record("on_policy", "sdpo_answer_fixed", "k4", "accuracy", 0.6, half=0.03, step=5),
        record("on_policy", "sdpo_answer_ema", "k4", "accuracy", 0.5, half=0.04, step=5),
        record("on_policy", "sdpo_answer_ema", "k4", "accuracy", 0.1, half=0.04, step=9),
    ]
    found = difference(separate, c)
    assert not found.paired and found.step == 5  # the last step that both have
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.05, 0.15))

    metric = "accuracy_minus:sdpo_answer_fixed"
    mirrored = [record("on_policy", "sdpo_answer_ema", "k4", metric, -0.2, half=0.1, step=7)]
    found = difference(separate + mirrored, c)
    assert found.paired
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.1, 0.3))

    metric = "accuracy_minus:sdpo_answer_ema"
    paired = [record("on_policy", "sdpo_answer_fixed", "k4", metric, 0.3, step=8)]
    assert difference(separate + mirrored + paired, c).value == 0.3


def test_gain_on_few_problems_is_against_the_runs_own_start_and_skips_a_single_problem():
    (claim,) = (c for c in judge(coverage_records()) if c.text.startswith("SDPO on at most"))
    gain, change = claim.evidence
    assert gain.comparison.condition == "sdpo_8" and gain.step == 60
    assert gain.value == pytest.approx(0.14) and change.value == pytest.approx(-18)


def test_page_is_self_contained_and_escapes_what_comes_from_the_run(tmp_path):
    run = write_run(tmp_path / "run", synthetic_records())
    page = report.write_report(run).read_text(encoding="utf-8")
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?\s*(https?:)?//""", page)
    assert not re.search(r"<(script|think|link|img|iframe|b>tiny)", page)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &lt;think&gt; <mark>maybe</mark>" in page
    assert page.count("<svg") == 4 and str(tmp_path) not in page
    assert "17 of 17 measured directions" in page
    assert "Not measured" not in page


def test_fixes_are_ranked_with_ties_visible():
    places = {s.condition: s.place for s in standings(fixes_records())}
    assert places == {
        "grpo": "1–2", "grpo_contrastive_hints": "1–2", "base": "3–4", "sdpo_marker_mask": "3–4",
        "sdpo_pass_rate": "5–6", "sdpo": "5–6",
    }  # fmt: skip
    assert list(places)[:3] == [
        "grpo",
        "grpo_contrastive_hints",
        "base",
    ]  # of those in a tie the higher first
    (table,) = report.ranking_tables(fixes_records())
    assert table.rows[0][:2] == ["1–2", "grpo"] and table.rows[0][-1] == "0.72, 0.74"
    text = report.fixes_summary(fixes_records())
    assert "Not told apart from base: SDPO + marker mask." in text
    assert "Worse than base: SDPO + pass-rate weight, SDPO." in text
    assert "Not told apart from SDPO: SDPO + pass-rate weight." in text


def test_a_run_of_the_fixes_alone_has_a_page_of_its_own(tmp_path):
    run = write_run(tmp_path, fixes_records(), generations=False)
    page = report.write_report(run).read_text(encoding="utf-8")
    assert "<h2>Which fix keeps reasoning?</h2>" in page and page.count("<svg") == 1
    assert 'id="claims"' not in page and 'id="traces"' not in page and "Not measured" not in page
    assert "SDPO + marker mask" in page and ">3–4<" in page


def test_the_fixes_follow_the_papers_sections_where_a_run_has_both(tmp_path):
    run = write_run(tmp_path, synthetic_records() + fixes_records())
    page = report.write_report(run).read_text(encoding="utf-8")
    assert page.count("<svg") == 5 and "17 of 17 measured directions" in page
    assert page.index('id="coverage"') < page.index('id="fixes"') < page.index('id="traces"')


def test_conditions_of_one_seed_are_not_ranked(tmp_path):
    rows = [r for r in fixes_records() if r["seed"] == 0]
    assert report.ranking_tables(rows) == [] and report.fixes_summary(rows) == ""
    page = report.write_report(write_run(tmp_path, rows, generations=False)).read_text(encoding="utf-8")
    assert "Not pooled over seeds" in page


def test_traces_take_the_first_sample_of_the_first_problems_at_the_last_step(tmp_path):
    run = write_run(tmp_path, [])
    page = report.write_report(run).read_text(encoding="utf-8")
    assert re.findall(r'class="problem">8 4 (\d)', page) == list("012345") * 2
    assert "k4_test-000060" in page and "k4_test-000020" not in page


def test_missing_parts_are_marked(tmp_path):
    rows = [r for r in synthetic_records() if r["section"] in ("richness", "sft")]
    rows = [r for r in rows if r["condition"] not in ("regenerated", "sft_guided")]
    run = write_run(tmp_path, rows, generations=False)
    (run / "environment.json").unlink()
    page = report.write_report(run).read_text(encoding="utf-8")
    assert page.count("Not measured in this run.</p>") == 2
    assert "Not measured in this run: regenerated (ỹ)." in page
    assert "Not measured in this run: SFT on guided (s∖think)." in page
    assert page.count("No generations were kept.") == 2
    assert "No environment.json in this run." in page


def test_empty_and_interrupted_runs(tmp_path):
    run = write_run(tmp_path, [])
    assert "Nothing that the paper claims was measured" in report.write_report(run).read_text()

    one_seed = [r for r in synthetic_records() if r["section"] == "sft" and r["seed"] == 0]
    write_run(tmp_path, one_seed)
    with (run / "results.jsonl").open("a") as stream:
        stream.write('{"section": "sf')
    cut = run / "runs/richness/answer/seed0/walk-000000.jsonl.gz"
    cut.write_bytes(cut.read_bytes()[:-20])
    page = report.write_report(run).read_text(encoding="utf-8")
    assert "Not pooled over seeds" in page

    (run / "results.jsonl").write_text('{"section": "sft"}\n')
    with pytest.raises(ValueError, match=r"results\.jsonl:1: record without ci_high"):
        report.write_report(run)
    with pytest.raises(FileNotFoundError, match="no results.jsonl"):
        report.read_records(tmp_path / "elsewhere")


def test_undefined_values_are_shown_as_such(tmp_path):
    rows = [
        record("sft", "base", "k3", "accuracy", None),
        record("sft", "base", "k3", "words", 1.0),
    ]
    run = write_run(tmp_path, rows, generations=False)
    assert '<td class="number">–<small></small></td>' in report.write_report(run).read_text()


@pytest.mark.parametrize("section", figures.FIGURES)
def test_figures_are_deterministic_and_take_the_pages_ink(section):
    draw, _ = figures.FIGURES[section]
    rows = synthetic_records() + fixes_records()
    first = figures.to_svg(draw(rows))
    assert first == figures.to_svg(draw(rows))
    assert first.startswith("<svg") and "currentColor" in first
    assert figures.INK not in first and "<metadata>" not in first
    assert figures.to_svg(draw([])).count("not measured") >= 3


def test_terminal_tables():
    stream = io.StringIO()
    console = Console(file=stream, width=160)
    report.print_section("sft", synthetic_records(), console)
    assert "sft_guided" in stream.getvalue() and "0.510 ±0.020" in stream.getvalue()
    report.print_section("coverage", [], console)
    report.print_section("fixes", fixes_records(), console)
    assert "0.730 ±0.020" in stream.getvalue() and "3–4" in stream.getvalue()
    report.print_tables(synthetic_records(), console)
    assert stream.getvalue().count("reproduced") == 1 + 17  # the headline and the claims


def test_command_line(tmp_path, capsys):
    run = write_run(tmp_path / "run", synthetic_records(), generations=False)
    report.main([str(run)])
    assert (run / "report.html").is_file()
    with pytest.raises(SystemExit):
        report.main([str(tmp_path)])
    assert "no results.jsonl" in capsys.readouterr().err
