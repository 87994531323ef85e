"""Docs name only files and headings that exist. Results in benchmarks/*.md are dated records and are left out."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
PACKAGES = sorted(file.parent.name for file in ROOT.glob("[a-z]*/__init__.py"))
FOLDERS = [*PACKAGES, "benchmarks", "docs", "scripts", "tests"]
CODE = re.compile(r"`([^`\s]+)`")
LINK = re.compile(r"\]\(([^()\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def named_paths(text: str) -> Iterator[str]:
    """Paths in `code` that begin with a folder of the repository, and names of Python files."""
    for code in CODE.findall(text):
        folder, slash, _ = code.partition("/")
        if (slash and folder in FOLDERS and re.fullmatch(r"[\w./-]+", code)) or re.fullmatch(r"\w+\.py", code):
            yield code


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def python_files() -> set[str]:
    return {file.name for name in FOLDERS for file in (ROOT / name).rglob("*.py")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_names_only_files_that_exist(page: Path, python_files: set[str]) -> None:
    paths = set(named_paths(page.read_text(encoding="utf-8")))
    assert [path for path in sorted(paths) if not (path in python_files or (ROOT / path).exists())] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        path, _, anchor = link.partition("#")
        if not re.match(r"\w+:", path):
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_the_map_names_files_of_every_folder() -> None:
    paths = set(named_paths((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")))
    folders = {file.parent.relative_to(ROOT) for package in PACKAGES for file in (ROOT / package).rglob("__init__.py")}
    assert [folder for folder in sorted(folders) if not any(Path(path).is_relative_to(folder) for path in paths)] == []
