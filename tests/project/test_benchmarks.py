"""Benchmark scripts run from the command to the table, at tiny sizes."""

import ast
import importlib
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import Ridge
from support.browser import CHROMIUM

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = Path(__file__).parents[2] / "scripts"


def cells(printed: str) -> list[list[str]]:
    """Cells of each line of a Markdown table, the head first."""
    lines = [line for line in printed.splitlines() if line.startswith("|") and not line.startswith("|-")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[list[str]]]:
    """`table(script, *arguments)` runs a script in this process, which has imported torch, and returns its table."""

    def run(script: str, *arguments: object) -> list[list[str]]:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
        return cells(capsys.readouterr().out)

    return run


@pytest.mark.parametrize(
    "script", sorted([*BENCHMARKS.glob("*.py"), *SCRIPTS.glob("*.py")]), ids=lambda path: path.name
)
def test_scripts_import_only_names_that_exist(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("clipglot"):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


def test_the_closed_form_baseline_equals_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from baseline import ridge
    from scipy.sparse import random as random_sparse

    x = random_sparse(80, 30, density=0.2, rng=np.random.default_rng(0), format="csr")
    y = np.random.default_rng(1).normal(size=(80, 5)) + 3
    theirs = Ridge(alpha=0.5).fit(x.toarray(), y)
    weights, intercept = ridge(x, y, 0.5, tolerance=1e-10)
    np.testing.assert_allclose(weights.T, theirs.coef_, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(intercept, theirs.intercept_, rtol=1e-8)


@pytest.mark.slow
def test_the_gpu_script_runs_but_for_what_needs_a_gpu(tmp_path: Path, table: Any) -> None:
    _, *lines = table("gpu.py", "--tiny", "--device", "cpu", "--out", tmp_path / "gpu.json")
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["what"] for row in rows] == [line[0] for line in lines]
    assert [row["what"] for row in rows if row["note"].startswith("failed")] == ["varlen"]
    speeds = {row["what"]: row["pairs_per_s"] for row in rows if row["pairs_per_s"]}
    assert {"pass, ViT-S-32-alt, B=2", "head step on features, B=32"} <= speeds.keys()
    with_ratio = [row for row in rows if row["pairs_per_s"] and row["to"]]
    assert len(with_ratio) >= 10
    for row in with_ratio:
        assert row["ratio"] == pytest.approx(row["pairs_per_s"] / speeds[row["to"]])


@pytest.mark.slow
def test_a_spent_budget_is_reported_in_the_rows_left_out(table: Any) -> None:
    _, *lines = table("gpu.py", "--tiny", "--device", "cpu", "--budget-s", 0)
    assert len(lines) == 12
    assert all("left out: 0 s" in line[-1] for line in lines)


@pytest.mark.slow
def test_the_losses_agree_with_their_peers(table: Any) -> None:
    _, *lines = table("loss.py", "--batch-size", 256, "--dim", 32, "--rounds", 1, "--threads", 1)
    assert [line[0] for line in lines] == ["InfoNCE", "SigLIP"]
    for line in lines:
        differences = [float(word) for word in line[-1].replace(",", "").split() if word[0].isdigit()]
        assert len(differences) == 3
        assert max(differences) < 1e-4


@pytest.mark.slow
def test_the_step_is_compared_with_the_tower(table: Any) -> None:
    _, *lines = table("step.py", "--steps", 1, "--layers", 1, "--batch-size", 4)
    assert [line[2] for line in lines if line[0] == "step"] == ["tower alone"]


@pytest.mark.slow
def test_runs_on_one_and_on_several_views_are_compared(
    make_cache: Callable[..., Any], manifest: Path, tiny_cache: Path, tmp_path: Path, table: Any
) -> None:
    make_cache(manifest, tmp_path / "views.zarr", views=2)
    small = "--width 16 --heads 2 --layers 1 --vocab-size 300 --context-length 24 --batch-size 8 --device cpu"
    where = ("--train", tmp_path / "views.zarr", "--val", tiny_cache, "--work", tmp_path)
    head, *lines = table("views.py", *where, "--epochs", 2, "--seeds", 0, "--settings", small)
    assert head[0] == "40 images, 2 stored views"
    assert [line[:2] for line in lines] == [["--views 1", "2"], ["--views all", "2"]]
    assert lines[0][2:] != lines[1][2:]


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--in-memory", "--precision", "bf16"]])
def test_the_pass_is_compared_with_the_slower_of_decoding_and_tower(options: list[str], manifest: Path) -> None:
    small = ("--num", 24, "--rounds", 1, "--workers", 1, "--batch-size", 8, "--towers", "DeiT-Tiny/16", "nothing")
    # A process of its own: the decoding processes import the script as their main module.
    command = [sys.executable, BENCHMARKS / "caching_pass.py", "--data", manifest.parent, "--device", "cpu"]
    printed = subprocess.run(
        [*map(str, [*command, *small, *options])], check=True, capture_output=True, text=True
    ).stdout
    head, line, without = cells(printed)
    assert head[-2] == "pass / the lower one"
    assert (without[0], without[2].split()[0]) == ("nothing", "inf")
    decode, tower, whole, ratio = (float(cell.split()[0].replace(",", "")) for cell in line[1:5])
    assert ratio == pytest.approx(whole / min(decode, tower), rel=0.15)


@pytest.mark.slow
def test_kept_memory_costs_fewer_page_faults(table: Any) -> None:
    head, line = table("memory.py", "--towers", "text", "--rounds", 1, "--batches", 1, "--batch-size", 4)
    row = dict(zip(head, line, strict=True))
    assert int(row["kept"].replace(",", "")) < int(row["pages a row, given back"].replace(",", ""))
    assert float(row["kept / given back"].split()[0]) > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")  # torchvision's, a peer
def test_decoders_are_compared_with_pillow(tmp_path: Path, table: Any) -> None:
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (600, 500, 3), np.uint8)
        Image.fromarray(pixels).resize((1000, 1200)).save(tmp_path / f"{i}.jpg")
    _, *lines = table("decoding.py", "--pictures", tmp_path, "--rounds", 1)
    same = {line[0]: line[-1] for line in lines if len(line) > 4}
    assert same["--decoding exact"] == same["plain calls of Pillow"] == "4 of 4"
    assert same["--decoding scaled"] == "0 of 4"


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_planning_is_measured_with_its_stages(suffix: str, tmp_path: Path, table: Any) -> None:
    where = "similarity > 0.3 and lang == 'zh'"
    few = ("--rows", 3000, "--lines-per-picture", 3, "--rounds", 1, "--folder", tmp_path)
    head, line = table("planning.py", "--format", suffix, *few, "--where", where)
    row = dict(zip(head, line, strict=True))
    assert float(row["to it"]) > 0
    assert 0 < int(row["images"]) < 1000
    assert sum(float(row[stage].rstrip("%")) for stage in ("parse", "digest", "write", "merge")) == pytest.approx(
        100, abs=3
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_searches_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--rows", 3000, "--dim", 24, "--concepts", 50, "--queries", 30, "--rounds", 2, "--folder", tmp_path)
    monkeypatch.setattr(sys, "argv", ["search.py", *map(str, few)])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(BENCHMARKS / "search.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.count("ratio") == 4
    # Of both kinds: so few rows are compared one by one.
    assert re.findall(r"texts: recall@10 (\S+),", printed) == ["1.000"] * 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_onnxruntime_is_compared_with_torch_and_smaller_models_with_the_whole_one(
    merged: Path, tiny_cache: Path, tmp_path: Path, table: Any
) -> None:
    texts = [json.dumps({"en": ["a red circle", "a blue square"], "ru": "красный шум"}, ensure_ascii=False)]
    (tmp_path / "texts.jsonl").write_text("\n".join(texts))
    fields = ("--text-field", "en", "--text-field", "ru", "--cache", tiny_cache)
    few = ("--rounds", 1, "--num-latency", 2)
    _, *lines = table("onnx_exports.py", merged, "--texts", tmp_path / "texts.jsonl", *fields, *few)
    ways = [line for line in lines if line[0] in (merged.name, "ViT-B/32")]
    assert [line[2] for line in ways] == 2 * [
        "torch eager",
        "onnxruntime",
        "clipglot (torch)",
        "torch eager",
        "onnxruntime",
    ]
    whole, *smaller = lines[-3:]
    assert (whole[0], whole[2]) == ("float32", "1.00")
    assert [line[0] for line in smaller] == ["int8-embeddings", "int8"]
    assert float(whole[3].split()[1].rstrip(",")) == pytest.approx(1, abs=1e-4)
    assert all(float(line[2]) < 1 for line in smaller)


@pytest.mark.slow
def test_the_search_page_is_measured_with_cold_and_warm_thumbnails(table: Any) -> None:
    pytest.importorskip("playwright", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip("no /usr/bin/chromium: apt-get install chromium")
    head, *lines = table("search_page.py", "--draw", 64, "--queries", 1, "--delay", 20)
    assert [line[:2] for line in lines] == [["64", "cold"], ["64", "warm"]]
    for line in lines:
        row = dict(zip(head, line, strict=True))
        assert float(row["p50 (ms)"]) > 0
        assert int(row["images on screen"]) > 0
