"""The notebooks of colab/ run from top to bottom in their small form, and show what they say they show."""

import html
import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from sdistill.storage import read_records
from tests.processes import ROOT, Commands

NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))


def execute(name: str, folder: Path, data_dir: Path, then: str = "") -> list[nbformat.NotebookNode]:
    """What a notebook, run in `folder`, puts out, and one cell more; a cell that fails is an error here."""
    notebook = nbformat.read(ROOT / "colab" / name, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(then))
    commands = Commands(data_dir, optimized=True, SIZE="tiny", RUNS=str(folder))
    client = NotebookClient(notebook, timeout=None, resources={"metadata": {"path": folder}})
    client.execute(env=commands.environment)
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def printed(outputs: list[nbformat.NotebookNode]) -> str:
    return "".join(output.text for output in outputs if output.output_type == "stream")


def shown(outputs: list[nbformat.NotebookNode], kind: str) -> list[str]:
    return [output.data[kind] for output in outputs if kind in output.get("data", {})]


@pytest.mark.long
def test_quickstart_ends_with_the_report(tmp_path, data_dir):
    outputs = execute("quickstart.ipynb", tmp_path, data_dir)
    page = (tmp_path / "study_tiny" / "report.html").read_text()
    framed = re.search(r'srcdoc="([^"]*)"', shown(outputs, "text/html")[-1])
    assert html.unescape(framed[1]) == page
    verdicts = re.findall(
        r"^(?:reproduced|not reproduced|inconclusive|not measured) .*", printed(outputs), re.M
    )
    sections = {record["section"] for record in read_records(tmp_path / "study_tiny" / "results.jsonl")}
    assert len(verdicts) > 10
    assert sections >= {"richness", "sft", "on_policy", "coverage"}


@pytest.mark.long
def test_understand_sdpo_shows_what_the_library_computes(tmp_path, data_dir):
    found = """import json
figures = {
    "apart": float(apart),
    "divergence": divergence.tolist(),
    "marked": [float(divergence[which].mean()) for which in (epistemic, ~epistemic)],
    "bits": {name: float(row[0]) for name, row in table.items()},
    "entropy": [float(entropy.mean()) for entropy in (student_entropy, teacher_entropy)],
}
print(json.dumps(figures))"""
    outputs = execute("understand_sdpo.ipynb", tmp_path, data_dir, found)
    figures = json.loads(printed(outputs).splitlines()[-1])
    divergence = np.asarray(figures["divergence"])
    assert figures["apart"] < 1e-5  # from all logits, and by chunks
    assert np.isfinite(divergence).all() and (divergence > -1e-6).all() and divergence.max() <= np.log(2)
    assert abs(figures["bits"]["∅"]) < 1e-3 and figures["bits"]["s"] > figures["bits"]["s∖think"] > 1
    student, teacher = figures["entropy"]
    assert teacher < student
    at_markers, elsewhere = figures["marked"]
    assert at_markers > elsewhere
    assert len(shown(outputs, "image/png")) == 4
    coloured = [text for text in shown(outputs, "text/html") if "nats" in text]
    assert len(coloured) == 3 and all("<u>" in text and "✓" in text for text in coloured)
    metrics = read_records(tmp_path / "understand_sdpo" / "metrics.jsonl")
    assert len(metrics) == 2 and metrics[-1]["teacher_fraction"] > 0


@pytest.mark.long
def test_your_model_measures_contexts_and_trains(tmp_path, data_dir):
    found = """import json
print(json.dumps({step: [float(figure) for figure in figures] for step, figures in richness.items()}))"""
    outputs = execute("your_model.ipynb", tmp_path, data_dir, found)
    bits = {step: np.asarray(of) for step, of in json.loads(printed(outputs).splitlines()[-1]).items()}
    assert list(bits) == ["unguided", "answer", "solution"]
    assert np.abs(bits["unguided"]).max() < 1e-3 and bits["solution"].mean() > bits["answer"].mean() > 1
    metrics = read_records(tmp_path / "your_model" / "sdpo" / "metrics.jsonl")
    assert len(metrics) == 2 and all(np.isfinite(list(record.values())).all() for record in metrics)
    assert (tmp_path / "your_model" / "sdpo" / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    assert path.stat().st_size < 100_000
