import pytest

from sdistill.report import drawing, figures
from sdistill.report.figures import FIGURES
from sdistill.report.lookup import GRPO, Index, Point
from tests.report.synthetic import (
    attribution_measurements,
    fixes_measurements,
    paper_measurements,
    probe_measurements,
)

PLOTS = {plot.__name__: plot for plots in FIGURES.values() for plot in plots}


@pytest.fixture(scope="module")
def index():
    rows = [paper_measurements(), fixes_measurements(), probe_measurements(), attribution_measurements()]
    return Index(sum(rows, []))


@pytest.mark.parametrize("name", PLOTS)
def test_figures_are_deterministic_and_take_the_pages_ink(name, index):
    first = drawing.to_svg(PLOTS[name](index))
    assert first == drawing.to_svg(PLOTS[name](index))
    assert first.startswith("<svg") and "currentColor" in first
    assert drawing.INK not in first and "<metadata>" not in first
    if name == "coverage_grid":  # differences with intervals: one problem, out of distribution
        assert ">−0.25<" in first and ">[−0.27, −0.23]<" in first
        assert first.count("|D| = ") == 10


def test_files_for_papers_are_deterministic(index):
    first = drawing.to_pdf(PLOTS["sft"](index))
    assert first.startswith(b"%PDF") and first == drawing.to_pdf(PLOTS["sft"](index))


@pytest.mark.parametrize("name", PLOTS)
def test_panels_without_data_say_so(name):
    texts = [text.get_text() for axes in PLOTS[name](Index([])).axes for text in axes.texts]
    assert texts.count("not measured") >= 2


def test_runs_are_told_apart_by_name():
    figure = figures.runs({run: {(GRPO, "k4"): Point(0, 0.7, 0.6, 0.8)} for run in ("a", "b")})
    svg = drawing.to_svg(figure)
    assert ">a<" in svg and ">b<" in svg and ">GRPO<" in svg
