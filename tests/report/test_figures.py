import pytest

from sdistill.report import drawing, figures
from sdistill.report.figures import FIGURES
from tests.analysis.synthetic import (
    attribution_records,
    fixes_records,
    probe_records,
    record,
    synthetic_records,
)

PLOTS = {plot.name: plot for plots in FIGURES.values() for plot in plots}


@pytest.fixture(scope="module")
def rows():
    return synthetic_records() + fixes_records() + probe_records() + attribution_records()


@pytest.mark.parametrize("name", PLOTS)
def test_figures_are_deterministic_and_take_the_pages_ink(name, rows):
    first = drawing.to_svg(PLOTS[name].draw(rows))
    assert first == drawing.to_svg(PLOTS[name].draw(rows))
    assert first.startswith("<svg") and "currentColor" in first
    assert drawing.INK not in first and "<metadata>" not in first


def test_files_for_papers_are_deterministic(rows):
    first = drawing.to_pdf(PLOTS["sft"].draw(rows))
    assert first.startswith(b"%PDF") and first == drawing.to_pdf(PLOTS["sft"].draw(rows))


@pytest.mark.parametrize("name", PLOTS)
def test_what_was_not_measured_is_said(name):
    assert drawing.to_svg(PLOTS[name].draw([])).count("not measured") >= 2


def test_the_grid_shows_differences_with_intervals(rows):
    svg = drawing.to_svg(PLOTS["coverage_grid"].draw(rows))
    assert ">−0.25<" in svg and ">[−0.27, −0.23]<" in svg  # one problem, out of distribution
    assert svg.count("|D| = ") == 10


def test_runs_are_told_apart_by_name():
    cells = {run: {("grpo", "k4"): record("on_policy", "grpo", "k4", "accuracy", 0.7)} for run in ("a", "b")}
    svg = drawing.to_svg(figures.runs(cells))
    assert ">a<" in svg and ">b<" in svg and ">GRPO<" in svg
