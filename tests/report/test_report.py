"""The report: escaping, what happens when parts of a run are missing, tables, files, several runs."""

import base64
import csv
import gzip
import io
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sdistill.analysis.statistics import minimum_detectable
from sdistill.report import build as report
from sdistill.report import markup, traces
from sdistill.report.runs import read_run, read_runs
from sdistill.report.tables import Table, section_tables
from sdistill.report.terminal import print_tables
from tests.analysis.synthetic import (
    HOSTILE,
    attribution_records,
    fixes_records,
    generation,
    record,
    synthetic_records,
    write_generations,
    write_run,
)


def made_up(problem, **fields):
    return {"problem": f"p{problem}", "text": "wait 1", "correct": True, "length": 2, **fields}


def by_token(tokens, divergence):
    return {"tokens": tokens, "divergence": divergence}


def page_of(run):
    return report.write_report(read_run(run)).read_text(encoding="utf-8")


def data_of(page):
    """What the viewer unpacks."""
    packed = re.search(r'id="data">([^<]*)<', page)[1]
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def whole_records():
    return synthetic_records() + fixes_records() + attribution_records()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that has everything, and its page."""
    run = write_run(tmp_path_factory.mktemp("runs") / "whole", whole_records())
    return run, page_of(run)


def test_page_is_self_contained_and_escapes_what_comes_from_the_run(whole):
    run, page = whole
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?\s*(https?:)?//""", page)
    assert not re.search(r"<(link|img|iframe|think|b>tiny)", page)
    assert len(re.findall("<script", page)) == 2  # the data and the viewer, whatever the run says
    assert "&lt;b&gt;tiny&lt;/b&gt;" in page and str(run) not in page
    assert "default-src 'none'" in page


def test_names_that_are_markup_are_text_everywhere(tmp_path):
    bad = '"><img src=x onerror=alert(1)>$x^{'
    rows = [
        *(record(section, bad, bad, "accuracy", 0.5) for section in ("sft", "coverage")),
        *(record("fixes", c, "k4", "accuracy", 0.5, step=40) for c in ("base", bad, f"sdpo_{bad}")),
        record("fixes", bad, "k4", f"accuracy_minus:{bad}", 0.1),
        record("coverage", f"sdpo_{bad}", "k4", bad, 0.5),
    ]
    runs = [write_run(tmp_path / name, rows, generations=False) for name in ("a&<img>$", "c$")]
    for run in runs:
        write_generations(run / "runs/fixes/base/seed0/<i>-000000.jsonl.gz", [made_up(bad)])
        assert "<img" not in page_of(run)
    out = tmp_path / "both"
    page = report.write_comparison(read_runs(runs), out).read_text(encoding="utf-8")
    assert "<img" not in page and "a&amp;&lt;img&gt;$" in page
    assert {path.parent for path in out.rglob("*.csv")} == {out / "report"}


class Texts(HTMLParser):
    """The text of a page, as a browser would show it, and the names of its elements."""

    def __init__(self):
        super().__init__()
        self.text, self.tags = [], set()

    def handle_data(self, data):
        self.text.append(data)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)


@given(st.text(min_size=1), st.text(min_size=1))
def test_any_text_in_a_table_is_shown_as_it_is(title, cell):
    shown = Texts()
    shown.feed(markup.table(Table(title, ["a"], [[cell]])))
    assert "".join(shown.text) == f"{title}a{cell}"
    assert shown.tags == {"h3", "div", "table", "thead", "tbody", "tr", "th", "td"}


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_any_text_of_a_trace_comes_out_as_it_was(texts):
    source = traces.Source("run", "sft", "base", "k3_test", 0, 0, Path("file"))
    rows = [made_up(i, response=text, prompt=text, context=text) for i, text in enumerate(texts)]
    data = json.loads(json.dumps(traces.pack([(source, rows)])))
    assert data["traces"]["response"] == texts
    for column in ("prompt", "context"):
        found = ["" if i < 0 else data["texts"][i] for i in data["traces"][column]]
        assert found == texts


def test_every_claim_is_stated_with_what_it_rests_on(whole):
    _, page = whole
    assert "Of 17 measured claims of the paper, 17 are reproduced on this run, 0 are not" in page
    row = re.search(r"<tr>(?:(?!<tr>).)*SDPO on the full set falls below.*?</tr>", page, re.DOTALL)[0]
    assert 'class="badge reproduced"' in row
    assert "accuracy on harder problems (k4), step 60: SDPO |D| = all minus base" in row
    assert "<b>−0.090 [−0.110, −0.070]</b>" in row and "would find ±0.029" in row
    assert "Not measured" not in page


ORDER = ("claims", "coverage", "attribution", "fixes")


def test_sections_are_in_order_each_with_its_figures(whole):
    _, page = whole
    places = [page.index(f'<section id="{part}"') for part in (*ORDER, "traces")]
    assert places == sorted(places)
    assert page.count('<figure role="group">') == 9 and page.count("<tfoot>") > 5


def test_traces_are_those_of_the_last_step_with_markup_as_text(whole):
    _, page = whole
    data = data_of(page)
    assert [(g["condition"], g["dataset"]) for g in data["groups"]] == [
        *((condition, "walk") for condition in ("unguided", "answer", "solution")),
        *((c, "k4") for c in ("base", "grpo", "sdpo_solution_fixed", "sdpo_answer_fixed")),
    ]
    assert set(data["traces"]["step"]) == {0, 60} and len(data["traces"]["group"]) == 7 * 16
    assert data["traces"]["response"].count(HOSTILE) == 7 * 2
    assert HOSTILE not in page
    assert data["texts"][data["traces"]["problem"][2]] == "8 4 1 = 1"


def test_a_run_of_the_fixes_alone_has_a_page_of_its_own(tmp_path):
    page = page_of(write_run(tmp_path, fixes_records(), generations=False))
    assert "<h2>Which fix keeps reasoning?</h2>" in page and page.count('<figure role="group">') == 1
    assert 'id="claims"' not in page and "Not measured" not in page
    assert "SDPO + marker mask" in page and ">3–4<" in page
    assert "Not told apart from base: SDPO + marker mask." in page
    assert "Worse than base: SDPO + pass-rate weight, SDPO." in page


def test_missing_parts_are_marked(tmp_path):
    rows = [r for r in synthetic_records() if r["section"] in ("richness", "sft")]
    rows = [r for r in rows if r["condition"] not in ("regenerated", "sft_guided")]
    run = write_run(tmp_path, rows, generations=False)
    (run / "environment.json").unlink()
    (run / "config.json").write_text("[1]")
    page = page_of(run)
    assert page.count("Not measured in this run.</p>") == 4
    assert "Not measured in this run: regenerated (ỹ)." in page
    assert "Not measured in this run: SFT on guided (s∖think)." in page
    assert page.count("No generations were kept.") == 1
    assert "No environment.json in this run." in page and "config.json could not be read" in page


def test_an_interrupted_run_is_reported_as_far_as_it_got(tmp_path):
    one_seed = [r for r in synthetic_records() if r["section"] == "sft" and r["seed"] == 0]
    run = write_run(tmp_path, one_seed)
    with (run / "results.jsonl").open("a") as stream:
        stream.write('{"section": "sf')
    cut = run / "runs/richness/answer/seed0/walk-000000.jsonl.gz"
    cut.write_bytes(cut.read_bytes()[:-20])
    page = page_of(run)
    assert "Not pooled over seeds" in page
    assert "The last line of results.jsonl was cut short" in page
    assert "runs/richness/answer/seed0/walk-000000.jsonl.gz" in page
    (run / "results.jsonl").unlink()
    page = page_of(run)
    assert "interrupted before its first section was complete" in page
    assert "Nothing that the paper claims was measured" in page and data_of(page)["groups"]


def test_responses_of_other_versions_are_read_as_far_as_they_are_understood(tmp_path):
    rows = [made_up(0), {"text": "of another version"}, made_up(1)]
    found = embedded(tmp_path, rows)
    assert found.traces == 2 and "of another version, and read as far" in found.notes[0]


def test_records_of_other_versions(tmp_path):
    old = {k: v for k, v in record("sft", "base", "k3", "accuracy", 0.5).items() if k not in ("n", "ci_low")}
    new = record("sft", "base", "k3", "accuracy", 0.5) | {"seed": "median", "unit": "share"}
    run = write_run(tmp_path, [old, new, record("elsewhere", "x", "y", "z", 1.0)], generations=False)
    page = page_of(run)
    assert "1 records of results.jsonl have no interval" in page
    assert "Records of seed median were left out" in page
    assert "does not know, and does not show: elsewhere" in page


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"section": "sft"}', r"results\.jsonl:1: record without condition, seed"),
        ("[1]", r"results\.jsonl:1: record without keys"),
        ("{", r"results\.jsonl:1: not JSON"),
    ],
)
def test_what_is_no_record_is_an_error_that_names_the_line(tmp_path, line, message):
    (tmp_path / "results.jsonl").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=message):
        read_run(tmp_path)


def test_undefined_values_are_shown_as_such(tmp_path):
    rows = [record("sft", "base", "k3", "accuracy", None), record("sft", "base", "k3", "words", 1.0)]
    run = write_run(tmp_path, rows, generations=False)
    with (run / "results.jsonl").open("a") as stream:
        stream.write(json.dumps(record("sft", "base", "k3", "length", float("nan"))) + "\n")
    assert page_of(run).count('<td class="number">–<small></small></td>') == 2


def test_tables_show_what_they_could_have_found():
    rows = [
        record("sft", "base", "k3", "accuracy", 0.5, half=0.03),
        record("sft", "sft_guided", "k3", "accuracy", 0.4, half=0.04, step=9),
        record("sft", "sft_unguided", "k3", "accuracy", 0.6, half=0.01, step=9),
        record("sft", "sft_guided", "k3", "accuracy_minus:base", -0.1, half=0.02, step=9),
        record("sft", "sft_guided", "k3", "accuracy_minus:base", -0.1, half=0.05, step=9, seed="any"),
        *(record("sft", "base", "k3", "accuracy", 0.5, seed=seed) for seed in (0, 1)),
    ]
    values, minus = section_tables("sft", rows)
    (found,) = (row[values.columns.index("accuracy")] for row in values.foot)
    assert found.value == pytest.approx(minimum_detectable(0, 0.10))  # widths of 0.06 and 0.08
    assert len(minus.rows) == 1 and minus.rows[0][3].high == pytest.approx(-0.05)  # about other seeds
    assert minus.rows[0][-1] == "0, 1 and others" and values.rows[0][-1] == "0, 1"
    assert minus.foot[0][3].value == pytest.approx(minimum_detectable(0, 0.10))


def test_words_that_moved_beyond_chance_are_named_and_the_rest_is_in_the_tables(whole):
    run, page = whole
    assert "GRPO, k4: rise: so +0.90; fall: wait* −1.80." in page
    assert "SDPO c = s, k4: rise: so +3.60; fall: wait* −7.20." in page
    with open(run / "report" / "attribution-words_that_rise_and_fall.csv", newline="") as file:
        rows = {(r["condition"], r["word"]): r for r in csv.DictReader(file)}
    assert len(rows) == 5 * 3 and rows["grpo", "yes"]["from"] == "data"
    assert float(rows["grpo", "wait"]["adjusted p"]) == 0.0004 and rows["grpo", "wait"]["from"] == "list"
    with open(run / "report" / "attribution-by_class_of_token.csv", newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["condition"] == "grpo"]
    assert [r["group"] for r in rows] == ["epistemic", "digits", "other"]
    assert float(rows[0]["share of signal"]) == 0.3 and rows[0]["divergence"] == ""


def test_words_of_runs_that_kept_no_tokens_are_shown_and_the_rest_marked(tmp_path):
    rows = [r for r in attribution_records(("sdpo",)) if r["dataset"] != "train"]
    page = page_of(write_run(tmp_path, fixes_records() + rows, generations=False))
    assert "Signal by token not measured (run without" in page and ": SDPO.</p>" in page
    assert "SDPO, k4: rise: so +0.90; fall: wait* −1.80." in page
    assert 'id="claims"' not in page


def test_terminal_tables(whole):
    stream = io.StringIO()
    print_tables(read_run(whole[0]), Console(file=stream, width=160))
    text = stream.getvalue()
    assert "sft_guided" in text and "0.510 ±0.020" in text and "detectable difference" in text
    assert "0.730 ±0.020" in text and "3–4" in text
    assert text.count("reproduced") == 1 + 17  # the headline and the claims


def test_figures_and_tables_are_files_too(whole):
    folder = whole[0] / "report"
    names = {path.name for path in folder.iterdir()}
    assert {"sft.svg", "sft.pdf", "coverage_grid.svg", "fixes.pdf", "claims.csv"} <= names
    with open(folder / "sft-minus_base.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    (row,) = (r for r in rows if (r["condition"], r["data"]) == ("sft_guided", "k3"))
    assert float(row["accuracy"]) == pytest.approx(-0.30)
    assert float(row["accuracy low"]) == pytest.approx(-0.32)
    assert rows[-1]["condition"] == "detectable difference" and float(rows[-1]["accuracy"]) > 0
    with open(folder / "claims.csv", newline="") as file:
        assert {r["verdict"] for r in csv.DictReader(file)} == {"reproduced"}


def embedded(tmp_path, rows, **limits):
    write_generations(tmp_path / "runs/on_policy/base/seed0/k3_test-000000.jsonl.gz", rows)
    write_generations(tmp_path / "runs/on_policy/grpo/seed0/k3_test-000040.jsonl.gz", rows)
    return traces.embed([read_run(tmp_path)])


def test_of_too_many_traces_the_first_problems_of_every_file_stay(tmp_path, monkeypatch):
    rows = [made_up(problem, sample=sample) for problem in range(50) for sample in (0, 1)]
    monkeypatch.setattr(traces, "TRACES", 100)
    found = embedded(tmp_path, rows)
    assert 80 <= found.traces <= 100 and found.traces == 4 * found.problems
    data = json.loads(gzip.decompress(base64.b64decode(found.data)))
    assert [data["traces"]["group"].count(g) for g in (0, 1)] == [found.traces // 2] * 2


def test_rollouts_of_one_problem_leave_room_for_evaluations_of_many(tmp_path, monkeypatch):
    rows = [made_up(problem, sample=sample) for problem in range(20) for sample in (0, 1)]
    rollouts = [{**made_up(0, sample=sample), "step": 31 + sample // 10} for sample in range(200)]
    write_generations(tmp_path / "runs/coverage/grpo_1/seed0/train-000040.jsonl.gz", rollouts)
    monkeypatch.setattr(traces, "TRACES", 100)
    found = embedded(tmp_path, rows)
    assert 80 <= found.traces <= 100 and found.problems > 5


@pytest.mark.parametrize("limit", ["COMPRESSED", "CHARACTERS"])
def test_long_traces_are_fewer(tmp_path, monkeypatch, limit):
    rows = [made_up(p, text=" ".join(str((p * 7919 + i) ** 3) for i in range(400))) for p in range(40)]
    monkeypatch.setattr(traces, limit, 100_000)
    found = embedded(tmp_path, rows)
    assert 1 <= found.problems < 40 and len(found.data) < 150_000


def test_an_enormous_response_keeps_its_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(traces, "LONGEST", 300)
    found = embedded(tmp_path, [made_up(0, text="a" * 5000 + "z" * 1000)])
    (text, _) = json.loads(gzip.decompress(base64.b64decode(found.data)))["traces"]["response"]
    assert text.startswith("a" * 200) and text.endswith("z" * 100)
    assert "5700 characters left out" in text


def test_values_by_token_are_kept_where_they_fit(tmp_path):
    rows = [
        made_up(0, attribution=by_token(["wait", " 1"], [0.123456, -2.0]), context="shown", feedback="no"),
        made_up(1, attribution=by_token(["wait", " 1"], [1.0])),
    ]
    data = json.loads(gzip.decompress(base64.b64decode(embedded(tmp_path, rows).data)))
    assert data["traces"]["divergence"][:2] == [[0.123, -2.0], None]
    assert data["traces"]["tokens"][:2] == [["wait", " 1"], None]
    assert data["traces"]["response"][:2] == ["", "wait 1"]
    assert [data["texts"][data["traces"][k][0]] for k in ("context", "feedback")] == ["shown", "no"]


def test_one_large_divergence_does_not_wash_out_all_others(tmp_path):
    rows = [made_up(0, tokens=["a"] * 200, divergence=[50.0] + [-0.1] * 199)]
    assert json.loads(gzip.decompress(base64.b64decode(embedded(tmp_path, rows).data)))["scale"] == 0.1


def test_several_runs_in_one_page(tmp_path, capsys):
    first = write_run(tmp_path / "x" / "run", synthetic_records())
    better = [
        r | {"value": r["value"] + 0.1} if r["metric"] == "accuracy" else r for r in synthetic_records()
    ]
    second = write_run(tmp_path / "y" / "run", better)
    (second / "config.json").write_text(
        json.dumps({"name": "<b>tiny</b>", "seeds": [0, 1], "optimizer": {"lr": 2}})
    )
    report.main([str(first), str(second), "--out", str(tmp_path / "both")])
    page = (tmp_path / "both" / "report.html").read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() == str(tmp_path / "both" / "report.html")
    assert "2 runs compared" in page and "y/run minus x/run" in page and "optimizer.lr" in page
    assert {g["run"] for g in data_of(page)["groups"]} == {"x/run", "y/run"}
    with open(tmp_path / "both" / "report" / "sft-accuracy.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = [r for r in rows if r["condition"] != "detectable difference"]
    assert {round(float(r["y/run minus x/run"]), 9) for r in found} == {0.1}
    assert {r["paired"] for r in found} == {"no"}
    assert len(rows) == len(found) + 2  # for each data set what could have been found


def test_runs_are_named_apart_and_once(tmp_path):
    for name in ("a/run", "b/run", "b/other"):
        write_run(tmp_path / name, [], generations=False)
    names = [run.name for run in read_runs([tmp_path / "a/run", tmp_path / "b/run", tmp_path / "b/other"])]
    assert names == ["a/run", "b/run", "b/other"]
    with pytest.raises(ValueError, match="name each run once"):
        read_runs([tmp_path / "a/run", tmp_path / "b/../a/run"])


def test_command_line(tmp_path, capsys):
    run = write_run(tmp_path / "run", fixes_records(), generations=False)
    report.main([str(run)])
    assert (run / "report.html").is_file()
    for arguments, message in [
        ([str(tmp_path)], "neither results.jsonl nor runs/"),
        ([str(run), "--out", str(tmp_path)], "--out goes with several runs"),
        ([str(run), str(run)], "--out goes with several runs"),
    ]:
        with pytest.raises(SystemExit):
            report.main(arguments)
        assert message in capsys.readouterr().err


def test_the_same_run_gives_the_same_page(tmp_path):
    first, second = (write_run(tmp_path / name / "run", fixes_records()) for name in "ab")
    assert page_of(first) == page_of(second)


def test_traces_of_other_seeds_and_steps_are_left_out(tmp_path):
    rng = random.Random(0)
    for seed, step in ((0, 20), (0, 40), (1, 40)):
        path = tmp_path / f"runs/sft/sft_guided/seed{seed}/k3_test-{step:06d}.jsonl.gz"
        write_generations(path, [generation(p, 0, rng) for p in range(3)])
    write_generations(tmp_path / "runs/sft/data/seed0/answer.jsonl.gz", [{"prompt": "x"}])
    (found,) = traces.sources(read_run(tmp_path))
    assert (found.seed, found.step, found.dataset) == (0, 40, "k3_test")
