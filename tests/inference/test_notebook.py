"""The notebook in examples/ runs from its first cell to its last, in a kernel of its own."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import clipglot
import pytest

NOTEBOOK = Path(clipglot.__file__).parent / "examples" / "clip_in_python.ipynb"
EXECUTE = """
import sys
import nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": sys.argv[2]}}).execute()
nbformat.write(notebook, sys.argv[3])
"""


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbclient")
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # results of a machine are not committed
    # In a process of its own: the client of the kernel leaves threads and handlers of signals behind.
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, NOTEBOOK, tmp_path, tmp_path / "executed.ipynb"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    executed: Any = nbformat.read(tmp_path / "executed.ipynb", as_version=4)
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    shown = [output["data"] for output in outputs if output["output_type"] == "execute_result"]
    assert any("image tower" in data.get("text/html", "") for data in shown)
    assert sum("image/png" in data for data in shown) == 2
    (hits,) = (data["text/html"] for data in shown if "score" in data.get("text/html", ""))
    assert hits.count(".png") == 5
