"""Notebooks run from top to bottom."""

import nbformat
import pytest
from nbclient import NotebookClient

from commands import ROOT


@pytest.mark.filterwarnings("ignore")  # of the notebook machinery, about itself
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.name)
def test_a_notebook_runs(path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    notebook = nbformat.read(path, as_version=4)
    done = NotebookClient(notebook, timeout=200, resources={"metadata": {"path": path.parent}})
    done.execute()
    shown = [o for cell in notebook.cells for o in cell.get("outputs", []) if "data" in o]
    assert sum("image/png" in o["data"] for o in shown) == 4
