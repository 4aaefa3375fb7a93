"""The notebooks run and print their expected results."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from commands import ROOT

# Patterns that the printed text must contain.
EXPECTED = {
    "01_quickstart.ipynb": ("best on val", r"agreement_top1 1\.0000", "largest difference:"),
    "02_views.ipynb": (),
    "03_sweep.ipynb": (
        r"1500 epochs  function_matching  accuracy 0\.(8[89]|9)",  # by the kind of CPU
        r"calibration error 0\.",
    ),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the notebook machinery, about itself
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "notebooks").glob("*.ipynb")))
def test_notebook_runs_and_shows_its_results(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 4
    text = "".join(o["text"] for o in outputs if o["output_type"] == "stream")
    for pattern in EXPECTED[name]:
        assert re.search(pattern, text), text
    assert "error:" not in text
