"""README.md is short, its commands print what it shows, its Python runs, its links lead to files."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from clipglot.distill.recipes import RECIPES
from support.drawings import draw_images

README = Path(__file__).parents[2] / "README.md"
MOST_WORDS = 900  # beside code and its output


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_readme_is_short() -> None:
    prose = re.sub(r"^```.*?^```", "", README.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert len(prose.split()) <= MOST_WORDS


@pytest.mark.slow
def test_the_readmes_commands_print_what_it_shows() -> None:
    done = subprocess.run(
        [sys.executable, README.parent / "scripts" / "readme", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readmes_python_runs(
    merged: Path, tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "merged").symlink_to(merged)
    (tmp_path / "train.zarr").symlink_to(tiny_cache)
    draw_images(tmp_path, 1)
    (tmp_path / "try" / "train" / "images").mkdir(parents=True)
    shutil.copy(tmp_path / "images" / "0000.png", tmp_path / "try" / "train" / "images" / "00000.png")
    assert blocks("python")
    for code in blocks("python"):
        exec(code, {})


def test_the_readme_leads_to_files_that_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not link.startswith("http") and not (README.parent / link).exists()] == []
    assert "make demo\n" in blocks("bash")


def test_the_recipes_are_listed_as_they_are() -> None:
    docs = (README.parent / "docs" / "text-towers.md").read_text(encoding="utf-8")
    for recipe, values in RECIPES.items():
        flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in values.items())
        assert re.search(rf"^{recipe} +{re.escape(flags)}$", docs, re.MULTILINE), recipe
