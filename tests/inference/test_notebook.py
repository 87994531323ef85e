"""The notebook in examples/ runs from its first cell to its last, in a kernel of its own."""

import re
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


@pytest.mark.slow
def test_a_call_in_a_notebook_shows_bars_and_epochs_without_widgets(tiny_cache: Path, tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbclient")
    sizes = "width=16, heads=2, layers=1, vocab_size=300, context_length=16, batch_size=8, epochs=2, device='cpu'"
    call = f"import clipglot\nclipglot.train({str(tiny_cache)!r}, output='run', val={str(tiny_cache)!r}, {sizes}).step"
    notebook: Any = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(call)])
    nbformat.write(notebook, tmp_path / "call.ipynb")
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, tmp_path / "call.ipynb", tmp_path, tmp_path / "executed.ipynb"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    outputs = nbformat.read(tmp_path / "executed.ipynb", as_version=4).cells[0].outputs
    (shown,) = (output for output in outputs if output["output_type"] == "display_data")  # updated, not repeated
    page = shown["data"]["text/html"]
    assert re.search(r"train</td><td><progress max='10' value='10'></progress></td><td>10/10<", page)
    assert re.search(r"epoch 2 of 2: loss [\d.]+ \(\d+% of chance\), R@1 ", page)
    assert "epoch 2 of 2" in shown["data"]["text/plain"]
    assert not any("widgets" in str(output) for output in outputs)
    (result,) = (output for output in outputs if output["output_type"] == "execute_result")
    assert result["data"]["text/plain"] == "10"
