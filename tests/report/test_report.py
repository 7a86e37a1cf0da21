"""The report: escaping, missing parts of a run, tables, files, several runs."""

import base64
import collections
import csv
import gzip
import io
import json
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sdistill.analysis.measure import BASE
from sdistill.analysis.statistics import minimum_detectable
from sdistill.report import build as report
from sdistill.report import drawing, figures, page, traces
from sdistill.report.__main__ import main
from sdistill.report.lookup import ANSWER, GRPO, ON_POLICY, SFT, SOLUTION, Index, Point
from sdistill.report.runs import read_run, read_runs
from sdistill.report.tables import Table, section_tables
from sdistill.types import Condition
from tests.report.synthetic import (
    HOSTILE,
    attribution_measurements,
    fixes_measurements,
    measured,
    paper_measurements,
    probe_measurements,
    response,
    shown,
    write_rows,
    write_run,
)

PLOTS = {plot.__name__: plot for plots in figures.FIGURES.values() for plot in plots}
FAST = ("richness", "coverage_grid", "fixes")  # what holds for these holds for all, and is quickly drawn
TO_PDF = drawing.to_pdf


def made_up(problem, **fields):
    return {"problem": f"p{problem}", "text": "wait 1", "correct": True, "length": 2, **fields}


def by_token(tokens, divergence):
    return {"tokens": tokens, "divergence": divergence}


def page_of(run):
    """The page of a run without its figures, which take long to draw."""
    run = read_run(run)
    return page.run_page(run, traces.embed([run]), collections.defaultdict(str))


def data_of(page):
    """What the viewer unpacks."""
    packed = re.search(r'id="data">([^<]*)<', page)[1]
    return json.loads(gzip.decompress(base64.b64decode(packed)))


@pytest.fixture(scope="module", autouse=True)
def cheap_pdfs():
    """Fonts in PDF files take as long as all else. One test makes them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "to_pdf", lambda figure: b"%PDF")
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that has everything, and its page."""
    measurements = [
        *(paper_measurements() + fixes_measurements()),
        *(attribution_measurements() + probe_measurements()),
    ]
    run = write_run(tmp_path_factory.mktemp("runs") / "whole", measurements)
    return run, report.write_report(read_run(run)).read_text(encoding="utf-8")


def test_page_is_self_contained_and_escapes_what_comes_from_the_run(whole):
    run, page = whole
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?\s*(https?:)?//""", page)
    assert not re.search(r"<(link|img|iframe|think|b>tiny)", page)
    assert len(re.findall("<script", page)) == 2  # the data and the viewer, whatever the run says
    assert "&lt;b&gt;tiny&lt;/b&gt;" in page and str(run) not in page
    assert "default-src 'none'" in page


def test_names_that_are_markup_are_text_everywhere(tmp_path):
    bad = '"><img src=x onerror=alert(1)>$x^{'
    unknown, sdpo = Condition(bad, intervention=bad), Condition("sdpo", fix=bad)
    rows = [
        *(measured(section, unknown, bad, "accuracy", 0.5) for section in ("sft", "coverage")),
        *(measured("fixes", c, "k4", "accuracy", 0.5, step=40) for c in (BASE, unknown, sdpo)),
        measured("fixes", unknown, "k4", "accuracy", 0.1, baseline=unknown),
        measured("coverage", replace(sdpo, num_problems=8), "k4", bad, 0.5, group=bad),
    ]
    runs = [write_run(tmp_path / name, rows, responses=False) for name in ("a&<img>$", "c$")]
    for run in runs:
        write_rows(run / "runs/fixes/base/seed0/<i>-000000.jsonl.gz", [made_up(bad)])
        write_rows(run / "runs/fixes/<img>/seed0/k4-000000.jsonl.gz", [made_up(bad)])
    assert "<img" not in report.write_report(read_run(runs[0])).read_text(encoding="utf-8")
    out = tmp_path / "both"
    text = report.write_comparison(read_runs(runs), out).read_text(encoding="utf-8")
    assert "<img" not in text and "a&amp;&lt;img&gt;$" in text
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
    macros = page.TEMPLATES.get_template("macros.html").module
    shown.feed(macros.table(Table(title, ["a"], [[cell]])))
    assert "".join(shown.text) == f"{title}a{cell}"
    assert shown.tags == {"h3", "div", "table", "thead", "tbody", "tr", "th", "td"}


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_any_text_of_a_trace_comes_out_as_it_was(texts):
    source = traces.Source("run", "sft", "base", "k3_test", 0, 0, Path("file"))
    rows = [made_up(i, text=text, prompt=text, context=text) for i, text in enumerate(texts)]
    data = json.loads(json.dumps(traces.pack([(source, rows)])))
    assert data["traces"]["text"] == texts
    for column in ("prompt", "context"):
        found = ["" if i < 0 else data["texts"][i] for i in data["traces"][column]]
        assert found == texts


def test_every_claim_is_stated_with_what_it_rests_on(whole):
    _, page = whole
    assert "Of 17 measured claims of the paper, 17 are reproduced on this run, 0 are not" in page
    row = re.search(r"<tr>(?:(?!<tr>).)*SDPO on the full set falls below.*?</tr>", page, re.DOTALL)[0]
    assert 'class="badge reproduced"' in row
    assert "accuracy on harder problems (k4), step 60: SDPO c = s∖think minus base" in row
    assert "<b>−0.090 [−0.110, −0.070]</b>" in row and "would find ±0.029" in row
    assert "Not measured" not in page


@pytest.mark.parametrize("name", PLOTS)
def test_figures_take_the_pages_ink(name, whole):
    svg = (whole[0] / f"report/{name}.svg").read_text(encoding="utf-8")
    assert "<svg" in svg and "currentColor" in svg
    assert drawing.INK not in svg and "<metadata>" not in svg


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.long) for n in PLOTS])
def test_figures_are_deterministic(name, whole):
    svg = drawing.to_svg(PLOTS[name](read_run(whole[0]).index))
    assert (whole[0] / f"report/{name}.svg").read_text(encoding="utf-8").endswith(svg)


def test_files_for_papers_are_deterministic(monkeypatch):
    index = Index([m for m in paper_measurements() if m.section == "sft"])
    monkeypatch.setattr(drawing, "to_pdf", TO_PDF)
    first = drawing.to_pdf(figures.sft(index))
    assert first.startswith(b"%PDF") and first == drawing.to_pdf(figures.sft(index))


@pytest.mark.parametrize("name", PLOTS)
def test_panels_without_data_say_so(name):
    texts = [text.get_text() for axes in PLOTS[name](Index([])).axes for text in axes.texts]
    assert texts.count("not measured") >= 2


def test_the_grid_shows_differences_with_intervals(whole):
    svg = (whole[0] / "report/coverage_grid.svg").read_text(encoding="utf-8")
    assert ">−0.25<" in svg and ">[−0.27, −0.23]<" in svg  # one problem, out of distribution
    assert svg.count("|D| = ") == 10


def test_runs_are_told_apart_by_name():
    figure = figures.runs({run: {(GRPO, "k4"): Point(0, 0.7, 0.6, 0.8)} for run in ("a", "b")})
    svg = drawing.to_svg(figure)
    assert ">a<" in svg and ">b<" in svg and ">GRPO<" in svg


ORDER = ("claims", "coverage", "attribution", "fixes")


def test_sections_are_in_order_each_with_its_figures(whole):
    _, page = whole
    places = [page.index(f'<section id="{part}"') for part in (*ORDER, "traces")]
    assert places == sorted(places)
    assert page.count('<figure role="group">') == 10 and page.count("<tfoot>") > 5


def test_traces_are_those_of_the_last_step_with_markup_as_text(whole):
    _, page = whole
    data = data_of(page)
    assert [(g["condition"], g["dataset"]) for g in data["groups"]] == [
        *((shown(prompt).label, "walk") for prompt in ("none", "answer", "solution")),
        *((c.label, "k4") for c in (BASE, GRPO, ANSWER, SOLUTION)),
    ]
    assert [g["role"] for g in data["groups"]] == ["none", "guided", "solution", "base", "", "", ""]
    assert set(data["traces"]["step"]) == {0, 60} and len(data["traces"]["group"]) == 7 * 16
    assert data["traces"]["text"].count(HOSTILE) == 7 * 2
    assert HOSTILE not in page
    assert data["texts"][data["traces"]["problem"][2]] == "8 4 1 = 1"


def test_a_run_of_the_fixes_alone_has_a_page_of_its_own(tmp_path):
    page = page_of(write_run(tmp_path, fixes_measurements(), responses=False))
    assert "<h2>Which fix keeps reasoning?</h2>" in page and page.count('<figure role="group">') == 1
    assert 'id="claims"' not in page and "Not measured" not in page
    assert "SDPO + marker mask" in page and ">3–4<" in page
    assert "Not told apart from base: SDPO + marker mask." in page
    assert "Worse than base: SDPO + pass-rate weight, SDPO." in page


def test_missing_parts_are_marked(tmp_path):
    rows = [m for m in paper_measurements() if m.section in ("richness", "sft")]
    rows = [m for m in rows if m.condition not in (shown("regenerated"), SFT[1])]
    run = write_run(tmp_path, rows, responses=False)
    (run / "environment.json").unlink()
    (run / "config.json").write_text("[1]")
    page = page_of(run)
    assert page.count("Not measured in this run.</p>") == 4
    assert "Not measured in this run: regenerated (ỹ)." in page
    assert "Not measured in this run: SFT on guided (s∖think)." in page
    assert page.count("No responses were kept.") == 1
    assert "No environment.json in this run." in page and "config.json could not be read" in page


def test_an_interrupted_run_is_reported_as_far_as_it_got(tmp_path):
    one_seed = [m for m in paper_measurements() if m.section == "sft" and m.seed == 0]
    run = write_run(tmp_path, one_seed)
    with (run / "results.jsonl").open("a") as stream:
        stream.write('{"section": "sf')
    cut = run / "runs/richness/base-answer/seed0/walk-000000.jsonl.gz"
    cut.write_bytes(cut.read_bytes()[:-20])
    page = page_of(run)
    assert "Not pooled over seeds" in page
    assert "The last line of results.jsonl was cut short" in page
    assert "runs/richness/base-answer/seed0/walk-000000.jsonl.gz" in page
    (run / "results.jsonl").unlink()
    page = page_of(run)
    assert "interrupted before its first section was complete" in page
    assert "Nothing that the paper claims was measured" in page and data_of(page)["groups"]


def test_responses_of_other_versions_are_read_as_far_as_they_are_understood(tmp_path):
    rows = [made_up(0), {"text": "of another version"}, made_up(1)]
    found = embedded(tmp_path, rows)
    assert found.count == 2 and "of another version, and read as far" in found.notes[0]


def test_measurements_of_other_versions(tmp_path):
    new = measured("sft", BASE, "k3", "accuracy", 0.5)
    run = write_run(tmp_path, [measured("elsewhere", GRPO, "y", "z", 1.0)], responses=False)
    lines = [new.to_json() | {"unit": "share"}, new.to_json() | {"seed": "median"}]
    with (run / "results.jsonl").open("a") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines)
    assert read_run(run).index.sections["sft"] == [new]
    page = page_of(run)
    assert "Measurements of seed median were left out" in page
    assert "does not know, and does not show: elsewhere" in page


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"section": "sft"}', r"results\.jsonl:1: not a measurement: .*condition"),
        ("[1]", r"results\.jsonl:1: not a measurement"),
        ("{", r"results\.jsonl:1: not a measurement: Expecting"),
    ],
)
def test_a_line_that_is_no_measurement_is_an_error_that_names_it(tmp_path, line, message):
    (tmp_path / "results.jsonl").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=message):
        read_run(tmp_path)


def test_undefined_values_are_shown_as_such(tmp_path):
    rows = [measured("sft", BASE, "k3", "accuracy", None), measured("sft", BASE, "k3", "num_epistemic", 1.0)]
    run = write_run(tmp_path, rows, responses=False)
    with (run / "results.jsonl").open("a") as stream:
        stream.write(json.dumps(measured("sft", BASE, "k3", "length", float("nan")).to_json()) + "\n")
    assert page_of(run).count('<td class="number">–<small></small></td>') == 2


def test_tables_show_what_they_could_have_found():
    rows = [
        measured("sft", BASE, "k3", "accuracy", 0.5, half=0.03),
        measured("sft", SFT[1], "k3", "accuracy", 0.4, half=0.04, step=9),
        measured("sft", SFT[0], "k3", "accuracy", 0.6, half=0.01, step=9),
        measured("sft", SFT[1], "k3", "accuracy", -0.1, half=0.02, step=9, baseline=BASE),
        measured("sft", SFT[1], "k3", "accuracy", -0.1, half=0.05, step=9, baseline=BASE, seed="any"),
        *(measured("sft", BASE, "k3", "accuracy", 0.5, seed=seed) for seed in (0, 1)),
    ]
    values, minus = section_tables("sft", Index(rows))
    (found,) = (row[values.columns.index("accuracy")] for row in values.foot)
    assert found.value == pytest.approx(minimum_detectable(0, 0.10))  # widths of 0.06 and 0.08
    assert len(minus.rows) == 1 and minus.rows[0][3].high == pytest.approx(-0.05)  # about other seeds
    assert minus.rows[0][-1] == "0, 1 and others" and values.rows[0][-1] == "0, 1"
    assert minus.foot[0][3].value == pytest.approx(minimum_detectable(0, 0.10))


def test_words_that_moved_beyond_chance_are_named_and_the_rest_is_in_the_tables(whole):
    run, page = whole
    assert "GRPO, k4: rise: so +0.90; fall: wait* −1.80." in page
    change = ON_POLICY.index(SOLUTION) + 1
    assert f"SDPO c = s, k4: rise: so +{0.9 * change:.2f}; fall: wait* −{1.8 * change:.2f}." in page
    with open(run / "report" / "attribution-words_that_rise_and_fall.csv", newline="") as file:
        rows = {(r["condition"], r["word"]): r for r in csv.DictReader(file)}
    assert len(rows) == 5 * 3 and rows["grpo", "yes"]["from"] == "data"
    assert float(rows["grpo", "wait"]["adjusted p"]) == 0.0004 and rows["grpo", "wait"]["from"] == "list"
    with open(run / "report" / "attribution-by_class_of_token_at_the_last_steps.csv", newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["condition"] == "grpo"]
    assert [r["group"] for r in rows] == ["epistemic", "digits", "other"]
    assert float(rows[0]["share of signal"]) == 0.3 and rows[0]["divergence"] == ""


def test_words_of_runs_that_kept_no_tokens_are_shown_and_the_rest_marked(tmp_path):
    rows = [m for m in attribution_measurements([SOLUTION]) if m.dataset != "train"]
    page = page_of(write_run(tmp_path, fixes_measurements() + rows, responses=False))
    assert "Signal by token not measured (run without" in page and ": SDPO c = s.</p>" in page
    assert "SDPO c = s, k4: rise: so +0.90; fall: wait* −1.80." in page
    assert 'id="claims"' not in page


def test_terminal_tables(whole):
    stream = io.StringIO()
    report.print_tables(read_run(whole[0]), Console(file=stream, width=160))
    text = stream.getvalue()
    assert SFT[1].label in text and "0.510 ±0.020" in text and "detectable difference" in text
    assert "0.730 ±0.020" in text and "3–4" in text
    assert text.count("reproduced") == 1 + 17  # the headline and the claims


def test_figures_and_tables_are_files_too(whole):
    folder = whole[0] / "report"
    names = {path.name for path in folder.iterdir()}
    assert {"sft.svg", "sft.pdf", "coverage_grid.svg", "fixes.pdf", "claims.csv"} <= names
    with open(folder / "sft-minus_base_paired_by_problem.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    (row,) = (r for r in rows if (r["condition"], r["data"]) == (SFT[1].label, "k3"))
    assert float(row["accuracy"]) == pytest.approx(-0.30)
    assert float(row["accuracy low"]) == pytest.approx(-0.32)
    assert rows[-1]["condition"] == "detectable difference" and float(rows[-1]["accuracy"]) > 0
    with open(folder / "claims.csv", newline="") as file:
        assert {r["verdict"] for r in csv.DictReader(file)} == {"reproduced"}


def embedded(tmp_path, rows, **limits):
    write_rows(tmp_path / "runs/on_policy/base/seed0/k3_test-000000.jsonl.gz", rows)
    write_rows(tmp_path / "runs/on_policy/grpo/seed0/k3_test-000040.jsonl.gz", rows)
    return traces.embed([read_run(tmp_path)])


def test_of_too_many_traces_the_first_problems_of_every_file_stay(tmp_path, monkeypatch):
    rows = [made_up(problem, sample=sample) for problem in range(50) for sample in (0, 1)]
    monkeypatch.setattr(traces, "MAX_TRACES", 100)
    found = embedded(tmp_path, rows)
    assert 80 <= found.count <= 100 and found.count == 4 * found.problems
    data = json.loads(gzip.decompress(base64.b64decode(found.data)))
    assert [data["traces"]["group"].count(g) for g in (0, 1)] == [found.count // 2] * 2


def test_rollouts_of_one_problem_leave_room_for_evaluations_of_many(tmp_path, monkeypatch):
    rows = [made_up(problem, sample=sample) for problem in range(20) for sample in (0, 1)]
    rollouts = [{**made_up(0, sample=sample), "step": 31 + sample // 10} for sample in range(200)]
    write_rows(tmp_path / "runs/coverage/grpo_1/seed0/train-000040.jsonl.gz", rollouts)
    monkeypatch.setattr(traces, "MAX_TRACES", 100)
    found = embedded(tmp_path, rows)
    assert 80 <= found.count <= 100 and found.problems > 5


@pytest.mark.parametrize("limit", ["MAX_BYTES", "MAX_CHARACTERS"])
def test_long_traces_are_fewer(tmp_path, monkeypatch, limit):
    rows = [made_up(p, text=" ".join(str((p * 7919 + i) ** 3) for i in range(400))) for p in range(40)]
    monkeypatch.setattr(traces, limit, 100_000)
    found = embedded(tmp_path, rows)
    assert 1 <= found.problems < 40 and len(found.data) < 150_000


def test_an_enormous_response_keeps_its_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(traces, "MAX_RESPONSE", 300)
    found = embedded(tmp_path, [made_up(0, text="a" * 5000 + "z" * 1000)])
    (text, _) = json.loads(gzip.decompress(base64.b64decode(found.data)))["traces"]["text"]
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
    assert data["traces"]["text"][:2] == ["", "wait 1"]
    assert [data["texts"][data["traces"][k][0]] for k in ("context", "feedback")] == ["shown", "no"]


def test_one_large_divergence_does_not_wash_out_all_others(tmp_path):
    rows = [made_up(0, attribution=by_token(["a"] * 200, [50.0] + [-0.1] * 199))]
    assert json.loads(gzip.decompress(base64.b64decode(embedded(tmp_path, rows).data)))["scale"] == 0.1


def test_several_runs_in_one_page(tmp_path, capsys):
    rows = [m for m in paper_measurements() if m.section == "sft"]
    better = [replace(m, value=m.value + 0.1) if m.metric == "accuracy" else m for m in rows]
    first, second = write_run(tmp_path / "x" / "run", rows), write_run(tmp_path / "y" / "run", better)
    config = {"name": "<b>tiny</b>", "seeds": [0, 1], "optimizer": {"lr": 2}}
    (second / "config.json").write_text(json.dumps(config))
    main([str(first), str(second), "--out", str(tmp_path / "both")])
    page = (tmp_path / "both" / "report.html").read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() == str(tmp_path / "both" / "report.html")
    assert "2 runs compared" in page and "y/run minus x/run" in page and "optimizer.lr" in page
    assert {g["run"] for g in data_of(page)["groups"]} == {"x/run", "y/run"}
    with open(tmp_path / "both" / "report" / "sft-accuracy.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = [r for r in rows if r["condition"] != "detectable difference"]
    assert {round(float(r["y/run minus x/run"]), 9) for r in found} == {0.1}
    assert {r["paired"] for r in found} == {"no"}
    assert len(rows) == len(found) + 2  # for each data set a detectable difference


def test_runs_are_named_apart_and_once(tmp_path):
    for name in ("a/run", "b/run", "b/other"):
        write_run(tmp_path / name, [], responses=False)
    names = [run.name for run in read_runs([tmp_path / "a/run", tmp_path / "b/run", tmp_path / "b/other"])]
    assert names == ["a/run", "b/run", "b/other"]
    with pytest.raises(ValueError, match="name each study once"):
        read_runs([tmp_path / "a/run", tmp_path / "b/../a/run"])


def test_command_line(tmp_path, capsys):
    run = write_run(tmp_path / "run", fixes_measurements(), responses=False)
    (tmp_path / "sdpo" / "checkpoints").mkdir(parents=True)
    main([str(run)])
    assert (run / "report.html").is_file()
    for arguments, message in [
        ([str(tmp_path)], "neither results.jsonl nor runs/"),
        ([str(tmp_path / "sdpo")], f"sdistill.evaluate --model {tmp_path}/sdpo/model` measures its model"),
        ([str(run), "--out", str(tmp_path)], "--out goes with several studies"),
        ([str(run), str(run)], "--out goes with several studies"),
    ]:
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err


def test_the_same_run_gives_the_same_page(tmp_path):
    runs = [read_run(write_run(tmp_path / name / "run", fixes_measurements())) for name in "ab"]
    first, second = (report.write_report(run).read_bytes() for run in runs)
    assert first == second


def test_traces_of_other_seeds_and_steps_are_left_out(tmp_path):
    rng = random.Random(0)
    for seed, step in ((0, 20), (0, 40), (1, 40)):
        path = tmp_path / f"runs/sft/{SFT[1].label}/seed{seed}/k3_test-{step:06d}.jsonl.gz"
        write_rows(path, [response(p, 0, rng) for p in range(3)])
    write_rows(tmp_path / "runs/sft/data/seed0/answer.jsonl.gz", [{"prompt": "x"}])
    (found,) = traces.sources(read_run(tmp_path))
    assert (found.seed, found.step, found.dataset, found.condition) == (0, 40, "k3_test", SFT[1])
