"""The notebook in examples/ runs from its first cell to its last, in a kernel of its own."""

from pathlib import Path
from typing import Any

import clipglot
import pytest

NOTEBOOK = Path(clipglot.__file__).parent / "examples" / "clip_in_python.ipynb"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_notebook_runs(tmp_path: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # results of a machine are not committed
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output["data"] for output in outputs if output["output_type"] == "execute_result"]
    assert any("image tower" in data.get("text/html", "") for data in shown)
    assert sum("image/png" in data for data in shown) == 2
    (hits,) = (data["text/html"] for data in shown if "score" in data.get("text/html", ""))
    assert hits.count(".png") == 5
