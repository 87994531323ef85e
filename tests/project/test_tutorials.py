"""Every tutorial runs in a clone, offline, as it stands; what it shows is what is printed, numbers apart."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from support.tutorials import ROOT, blocks_of, environment, missing_lines, run_tutorial

PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
LANGUAGE_MODEL = "intfloat/multilingual-e5-small"


@contextmanager
def served(page: Path, folder: Path) -> Iterator[str]:
    """The URL that the page's `clipglot serve` serves, at a free port; it ends by SIGTERM with exit code 0."""
    (line,) = (code.rstrip() for _, code, _ in blocks_of(page) if "clipglot serve" in code)
    command = ["bash", "-c", f"exec {line} --port 0 --json"]
    with subprocess.Popen(command, cwd=folder, env=environment(folder), stdout=subprocess.PIPE, text=True) as run:
        try:
            assert run.stdout is not None
            printed = ""
            while not printed.rstrip().endswith("}"):
                read = run.stdout.readline()
                assert read, printed
                printed += read
            yield json.loads(printed)["url"]
        finally:
            run.send_signal(signal.SIGTERM)
        assert run.wait(30) == 0


def answer(url: str) -> Any:
    with urlopen(url) as response:
        return json.load(response)


def is_better_than_chance(folder: Path) -> None:
    """The run's last validation is far above chance."""
    (run,) = folder.glob("run")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line for line in lines if line["kind"] == "validation"][-1]["r_at_10"] > 0.5


def queries(folder: Path) -> None:
    is_better_than_chance(folder)
    for name in ("shapes", "pairs"):
        found = json.loads((folder / f"{name} фото {{}}.json").read_text())
        assert found["top1"] > 0.7
        assert found["against"]["report"]["top1"] > 0.7


def evaluation(folder: Path) -> None:
    assert "<svg" in (folder / "shapes.html").read_text()
    probe = json.loads((folder / "shapes.probe.json").read_text())
    assert [point["shots"] for point in probe["points"]] == [1, 2, 3]


def news(folder: Path) -> None:
    kinds = {
        run: [
            line.get("finding") for line in map(json.loads, (folder / run / "metrics.jsonl").read_text().splitlines())
        ]
        for run in ("run", "fixed-run")
    }
    assert "recall_at_chance" in kinds["run"]
    assert not any(kinds["fixed-run"])
    assert "<svg" in (folder / "compared.html").read_text()


def videos(folder: Path) -> None:
    assert "alignment" in (folder / "report.html").read_text()
    with served(PAGES[3], folder) as url:
        hits = answer(f"{url}search?q={quote('노란색 별')}&limit=5&fold=false")["hits"]
        assert len(hits) == 5
        with urlopen(f"{url}image/{hits[0]['row']}") as image:
            assert image.read(4) == b"RIFF"


def muge(folder: Path) -> None:
    is_better_than_chance(folder)
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 200
    assert all(len(json.loads(line)["item_ids"]) == 10 for line in lines)


def index(folder: Path) -> None:
    with served(PAGES[5], folder) as url:
        hits = answer(f"{url}search?q={quote('红色的正方形')}&limit=5&fold=false")["hits"]
        assert sum("红色" in caption["text"] for hit in hits for caption in hit["captions"]) >= 1
        english = answer(f"{url}search?q={quote('a red square')}&limit=5&fold=false&model=1")["hits"]
        assert len(english) == 5
        with urlopen(f"{url}image/{hits[0]['row']}") as image:
            assert image.read(4) == b"RIFF"
        example = [sys.executable, str(ROOT / "examples" / "search_client.py"), "红色的正方形", url.rstrip("/")]
        shown = subprocess.run(example, capture_output=True, text=True, check=True, env=os.environ).stdout.splitlines()
        assert shown[0].split()[0] == f"{hits[0]['score']:.3f}"


CHECKS = [queries, evaluation, news, videos, muge, index]


def test_every_tutorial_has_its_check() -> None:
    assert len(PAGES) == len(CHECKS)


@pytest.mark.slow
@pytest.mark.parametrize(("page", "check"), list(zip(PAGES, CHECKS, strict=False)), ids=[page.stem for page in PAGES])
def test_a_tutorial_runs_and_prints_what_it_shows(page: Path, check: Callable[[Path], None], tmp_path: Path) -> None:
    replaced = {}
    if LANGUAGE_MODEL in page.read_text(encoding="utf-8"):
        from support.tiny_lms import save_tiny_lm

        replaced[LANGUAGE_MODEL] = str(save_tiny_lm(tmp_path / "lm"))
    folder = tmp_path / "clipglot"  # a name that outputs show
    ran = run_tutorial(page, folder, replaced)
    assert all(block.shown is None or block.shown.strip() for block in ran)
    assert [line for block in ran for line in missing_lines(block)] == []
    check(folder)
