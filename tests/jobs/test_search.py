"""`clipglot search` against open_clip's embeddings and a search in plain numpy; filters, files of queries, refusals."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clipglot
import numpy as np
import open_clip
import pytest
import torch
from clipglot.cache.read.cache import Cache
from clipglot.distill.errors import DistillError
from clipglot.jobs.export import export_run
from clipglot.jobs.settings.export import ExportSettings
from clipglot.jobs.settings.search import SearchSettings
from clipglot.search import hits
from support.command_line import run
from support.drawings import draw_images
from support.metadata_edits import edit


def by_open_clip(folder: Path, texts: list[str]) -> np.ndarray:
    """Unit embeddings of texts as open_clip computes them."""
    clip, tokenizer = open_clip.create_model(f"local-dir:{folder}"), open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.inference_mode():
        emb: np.ndarray = clip.eval().encode_text(tokenizer(texts), normalize=True).numpy().astype(np.float64)
    return emb


def brute_force(path: Path, query: np.ndarray, k: int, allowed: np.ndarray | None = None) -> list[tuple[int, float]]:
    """Rows and cosines of the best images."""
    cache = Cache(path)
    cosines = cache.image_emb().astype(np.float64) @ (query / np.linalg.norm(query))
    chosen = (cache.status() == 1) & (True if allowed is None else allowed)
    order = [row for row in np.argsort(-cosines, kind="stable").tolist() if chosen[row]]
    return [(row, float(cosines[row])) for row in order[:k]]


def found(*arguments: object) -> list[dict[str, Any]]:
    """The JSON of a search."""
    done = run("search", *arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def rows_and_scores(result: dict[str, Any]) -> list[tuple[int, Any]]:
    return [(hit["row"], pytest.approx(hit["score"], abs=1e-5)) for hit in result["hits"]]


def test_texts_sums_and_differences_find_what_numpy_finds(
    merged: Path, tiny_cache: Path, manifest: Path, tmp_path: Path
) -> None:
    red, noise, number = by_open_clip(merged, ["красный", "шум", "номер 3"])
    file = tmp_path / "queries.txt"
    file.write_bytes("\ufeffшум\r\n\r\n+красный -номер 3\r\n".encode())
    results = found(merged, tiny_cache, "красный", "шум -красный +номер 3", "--queries", file, "--top", 7)
    assert [result["query"] for result in results] == ["красный", "шум -красный +номер 3", "шум", "+красный -номер 3"]
    expected = [red, noise - red + number, noise, red - number]
    for result, query in zip(results, expected, strict=True):
        assert rows_and_scores(result) == brute_force(tiny_cache, query, 7)
    lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    for hit in results[0]["hits"]:
        assert (hit["key"], hit["captions"]) == (lines[hit["row"]]["image"], lines[hit["row"]]["text"])
        assert hit["languages"] == [""] * len(hit["captions"])


def test_images_are_queries_and_find_themselves(merged: Path, tiny_cache: Path, manifest: Path) -> None:
    files = [manifest.parent / "images" / f"{number:04}.png" for number in (5, 0)]
    results = found(merged, tiny_cache, "--image", files[0], "--image", files[1], "шум", "--top", 1)
    assert [result["query"] for result in results] == ["шум", *map(str, files)]  # texts come first
    assert [result["hits"][0]["key"] for result in results[1:]] == ["images/0005.png", "images/0000.png"]
    assert [result["hits"][0]["score"] for result in results[1:]] == pytest.approx([1, 1], abs=1e-3)


def test_a_clip_of_another_language_on_the_same_image_tower(
    tiny_cache: Path, make_cache: Callable[..., Any], make_run: Callable[..., Path], tmp_path: Path
) -> None:
    table = draw_images(tmp_path, 16, seed=1)
    table.write_text(table.read_text(encoding="utf-8").replace("шум", "noise"), encoding="utf-8")
    trained = make_run(make_cache(table, tmp_path / "en.zarr").cache.path, tmp_path / "run", epochs=1)
    export_run(ExportSettings(run=trained, output=tmp_path / "en"))
    (query,) = by_open_clip(tmp_path / "en", ["noise"])
    (result,) = found(tmp_path / "en", tiny_cache, "noise", "--top", 3)
    assert rows_and_scores(result) == brute_force(tiny_cache, query, 3)


def test_filters_choose_the_images(
    merged: Path, make_cache: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = draw_images(tmp_path, 30)
    lines = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    for number, line in enumerate(lines):
        line["lang"] = ["ru", "uk", "ru"][number % 3]
    lines[4]["image"] = "absent.png"
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = make_cache(table, tmp_path / "c.zarr", language_field="lang").cache.path
    (query,) = by_open_clip(merged, ["шум"])
    monkeypatch.setattr(hits, "MOST_BETWEEN", 2)  # several reads
    for options, allowed in (
        (["--caption", "СИНИЙ"], ["синий" in str(line["text"]) for line in lines]),
        (["--language", "uk"], [line["lang"] == "uk" for line in lines]),
        (
            ["--language", "uk", "--caption", "номер 1"],
            ["номер 1" in str(x["text"]) * (x["lang"] == "uk") for x in lines],
        ),
        ([], [True] * 30),
    ):
        (result,) = found(merged, path, "шум", "--top", 30, *options)
        assert rows_and_scores(result) == brute_force(path, query, 30, np.array(allowed))
        for hit in result["hits"]:
            line = lines[hit["row"]]
            assert (hit["captions"], set(hit["languages"])) == (line["text"], {line["lang"]})
    assert found(merged, path, "шум", "--caption", "слон") == [{"query": "шум", "hits": []}]
    assert "none has such a caption" in run("search", merged, path, "шум", "--caption", "слон").stdout


def test_python_has_the_same(merged: Path, tiny_cache: Path) -> None:
    (result,) = clipglot.search_images(merged, cache=tiny_cache, query="шум -красный", top=2)
    (told,) = found(merged, tiny_cache, "шум -красный", "--top", 2)
    assert [hit.row for hit in result.hits] == [hit["row"] for hit in told["hits"]]
    with pytest.raises(DistillError, match="nothing to search for"):
        SearchSettings(merged=merged, cache=tiny_cache)


def test_an_export_in_onnx_searches_without_torch(
    merged: Path, tiny_cache: Path, manifest: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "onnx"
    export_run(ExportSettings(run=merged, output=folder, format=("onnx",)))
    given = [tiny_cache, "шум -красный", "--image", manifest.parent / "images" / "0003.png", "--top", 5]
    script = (
        "import sys\nfrom clipglot.cli.main import main\n"
        "try:\n    main()\nfinally:\n    assert not {'torch', 'open_clip'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", script, "search", folder, *given, "--json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for alone, beside in zip(json.loads(done.stdout), found(merged, *given), strict=True):
        assert rows_and_scores(alone) == [(hit["row"], hit["score"]) for hit in beside["hits"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that are refused."""
    top = tmp_path_factory.mktemp("refused")
    (top / "broken.jpg").write_bytes(b"no image")
    (top / "empty.txt").write_text("\n \n")
    (top / "latin.txt").write_bytes("\xe9t\xe9".encode("latin-1"))
    (top / "minus.txt").write_text("a dog\n-снег\n")
    return top


@pytest.mark.parametrize(
    ("arguments", "code", "facts"),
    [
        ([], 2, ["--queries", "--image"]),
        (["-снег +собака"], 2, ["Write -- before a query"]),
        (["a", "--topp", "3"], 2, ["--topp", "--top"]),
        (["a", "--top", "0"], 2, ["--top 0"]),
        (["a", "--caption", " "], 2, ["--caption is empty"]),
        (["a", "--json", "--thumbnails"], 2, ["--json", "--thumbnails"]),
        ([""], 1, ["an empty query"]),
        (["--", "-снег"], 1, ["'-снег' only takes away"]),
        (["--queries", "minus.txt"], 1, ["minus.txt:2: '-снег' only takes away"]),
        (["a", "шум -шум"], 1, ["'шум -шум' takes away what it adds"]),
        (["--queries", "absent.txt"], 1, ["absent.txt", "No such file"]),
        (["--queries", "empty.txt"], 1, ["empty.txt has no query"]),
        (["--queries", "latin.txt"], 1, ["latin.txt", "UTF-8"]),
        (["--image", "absent.jpg"], 1, ["--image absent.jpg", "no such file"]),
        (["--image", "broken.jpg"], 1, ["--image broken.jpg", "not a picture", "pass an image"]),
        (["--image", "."], 1, ["--image . is a folder"]),
        (["a", "--language", "fr"], 1, ["'fr'", "none of its captions has a language"]),
    ],
)
def test_refusals_name_what_is_wrong(
    merged: Path,
    tiny_cache: Path,
    folder: Path,
    arguments: list[str],
    code: int,
    facts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    result = run("search", merged, tiny_cache, *arguments)
    assert result.exit_code == code, result.output
    assert all(fact in result.stderr for fact in facts), result.stderr
    assert (result.stdout, "Traceback" in result.stderr) == ("", False)


def test_caches_that_cannot_be_searched(
    merged: Path,
    tiny_cache: Path,
    other_clip: Path,
    manifest: Path,
    make_cache: Callable[..., Any],
    tmp_path: Path,
) -> None:
    other = make_cache(manifest, tmp_path / "other.zarr", model=f"local-dir:{other_clip}", limit=4).cache.path
    refused = run("search", merged, other, "шум")
    assert (refused.exit_code, f"local-dir:{merged}" in refused.stderr) == (1, True)
    part = Path(shutil.copytree(tiny_cache, tmp_path / "part.zarr"))
    edit(part, state="planned")
    (part / "images" / "status" / "c" / "1").unlink()
    refused = run("search", merged, part, "шум")
    assert (refused.exit_code, "is not complete" in refused.stderr) == (1, True)
    for absent in ((merged, tmp_path / "no.zarr"), (tmp_path / "no", other)):
        refused = run("search", *absent, "шум")
        assert (refused.exit_code, "no " in refused.stderr) == (1, True)
