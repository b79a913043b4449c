"""The notebook docs/tour.ipynb: it runs on a finished run, and holds no outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TOUR = Path(__file__).parents[1] / "docs" / "tour.ipynb"


@pytest.fixture
def tour() -> nbformat.NotebookNode:
    return nbformat.read(TOUR, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_no_output_is_stored(tour):
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code_cells(tour))


@pytest.mark.ray
def test_the_tour_runs_on_a_finished_run(tour, finished, tmp_path):
    first, *others = code_cells(tour)
    assert first.source == 'RUN_DIR = "runs/demo"'
    first.source = f"RUN_DIR = {str(finished)!r}"

    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(tour, timeout=300, kernel_name="python3", resources=resources).execute()

    shown = [output for cell in others for output in cell.outputs]
    assert [output for output in shown if output.output_type == "error"] == []
    pictures = [output for output in shown if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
    texts = "".join(output.get("text", "") for output in shown)
    assert "60 examples, 4 checkpoints" in texts and "6 examples, 19 examples" in texts
    assert any(output.get("data", {}).get("text/plain") == "True" for output in shown)
