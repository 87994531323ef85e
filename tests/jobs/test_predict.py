"""`clipglot predict` on files and folders: texts from a file, the best K, CSV, images that cannot be read."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
from support.command_line import run

TEXTS = ["красный шум", "синий шум", 'зелёный, "шум"']


@pytest.fixture
def folder(manifest: Path, tmp_path: Path) -> Path:
    """Two images, one of them in a deeper folder, a broken one, and files that are no images."""
    top = tmp_path / "photos"
    (top / "2024").mkdir(parents=True)
    (top / ".thumbnails").mkdir()
    for number, name in enumerate(["b.png", "2024/a.PNG", ".thumbnails/c.png"]):
        shutil.copy(manifest.parent / "images" / f"{number:04}.png", top / name)
    (top / "broken.jpg").write_bytes(b"no image")
    (top / "notes.txt").write_text("no image")
    return top


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A file of texts as Windows saves it, with a byte order mark and a blank line."""
    file = tmp_path / "texts.txt"
    file.write_bytes("\r\n".join([*TEXTS, ""]).encode("utf-8-sig"))
    return file


def test_a_folder_is_predicted_and_its_broken_image_is_listed(merged: Path, folder: Path, texts: Path) -> None:
    result = run("predict", merged, folder, "--texts", texts, "--json")
    assert result.exit_code == 0, result.output
    predictions = {Path(p["image"]).relative_to(folder).as_posix(): p for p in json.loads(result.stdout)}
    assert list(predictions) == ["2024/a.PNG", "b.png", "broken.jpg"]
    for name in ("2024/a.PNG", "b.png"):
        assert sorted(predictions[name]["texts"]) == sorted(TEXTS)
        assert sum(predictions[name]["probabilities"]) == pytest.approx(1)
        assert predictions[name]["error"] is None
    assert (predictions["broken.jpg"]["texts"], predictions["broken.jpg"]["error"]) == ([], "not a picture")
    printed = run("predict", merged, folder, "--texts", texts)
    assert "1 of 3 images" in printed.stderr
    assert "not a picture" in printed.stdout


def test_the_best_k_keep_the_probabilities_of_all(merged: Path, folder: Path, texts: Path) -> None:
    def predictions(*more: object) -> list[dict[str, list[float]]]:
        return list(json.loads(run("predict", merged, folder / "b.png", "--texts", texts, "--json", *more).stdout))

    (everything,), (best,) = predictions(), predictions("--top", 2)
    for name in ("texts", "cosines", "probabilities"):
        assert best[name] == everything[name][:2]


def test_csv_has_a_row_for_each_text_and_each_error(merged: Path, folder: Path, texts: Path) -> None:
    result = run("predict", merged, folder, "--texts", texts, "--top", 1, "--csv")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    expected = json.loads(run("predict", merged, folder, "--texts", texts, "--top", 1, "--json").stdout)
    assert [row["image"] for row in rows] == [prediction["image"] for prediction in expected]
    for row, prediction in zip(rows, expected, strict=True):
        if prediction["error"]:
            assert (row["text"], row["error"]) == ("", prediction["error"])
        else:
            assert (row["rank"], row["text"], row["error"]) == ("1", prediction["texts"][0], "")
            assert float(row["probability"]) == prediction["probabilities"][0]


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["broken.jpg", "--text", "a"], ["broken.jpg", "not a picture"]),
        (["absent.jpg", "--text", "a"], ["absent.jpg", "no such file"]),
        (["empty", "--text", "a"], ["empty", "no image in it"]),
        (["b.png", "--texts", "absent.txt"], ["absent.txt", "No such file"]),
        (["b.png", "--texts", "latin.txt"], ["latin.txt", "UTF-8"]),
        (["b.png", "--text", "a", "--top", "0"], ["--top 0"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_refusals_name_the_file_or_the_flag(
    merged: Path, folder: Path, arguments: list[str], facts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "empty").mkdir()
    (folder / "latin.txt").write_bytes("\xe9t\xe9".encode("latin-1"))
    monkeypatch.chdir(folder)
    result = run("predict", merged, *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert all(fact in result.stderr for fact in facts), result.stderr
