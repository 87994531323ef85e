"""Docs name only files, headings and flags that exist. Dated results in benchmarks/*.md are left out."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from clipglot.cli.main import main

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "SECURITY.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        ROOT / "benchmarks" / "README.md",
        *(ROOT / "docs").rglob("*.md"),
    ]
)
PACKAGES = sorted(file.parent.name for file in ROOT.glob("[a-z]*/__init__.py"))
FOLDERS = [*PACKAGES, "benchmarks", "docs", "examples", "scripts", "tests"]
CODE = re.compile(r"`([^`\s]+)`")
LINK = re.compile(r"\]\(([^()\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
# Of click, torchrun, open_clip_train, scripts/check, SLURM, aws, tar; of CLIP_benchmark up to their underscore.
FOREIGN_FLAGS = {"--help", "--nproc-per-node", "--lock-image", "--fix", "--array", "--gpus", "--cpus-per-task"}
FOREIGN_FLAGS |= {"--scheduler-file", "--nthreads", "--resources"}  # of Dask
FOREIGN_FLAGS |= {"--requeue", "--recursive", "--sort", "--task", "--annotation", "--recall", "--no"}


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


def flags_of(command: click.Command, context: click.Context) -> Iterator[str]:
    """Flags of a command and its subcommands, without those of the past."""
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            subcommand = command.get_command(context, name)
            assert subcommand is not None
            yield from flags_of(subcommand, context)
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            yield from (*option.opts, *option.secondary_opts)


@pytest.fixture(scope="module")
def python_files() -> set[str]:
    return {file.name for name in FOLDERS for file in (ROOT / name).rglob("*.py")}


@pytest.fixture(scope="module")
def flags() -> set[str]:
    return {*flags_of(main, click.Context(main, **main.context_settings)), *FOREIGN_FLAGS}


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_names_only_flags_that_exist(page: Path, flags: set[str]) -> None:
    if page.name == "CHANGELOG.md":
        return  # it names those of the past, too
    assert set(FLAG.findall(page.read_text(encoding="utf-8"))) - flags == set()


def test_the_map_names_files_of_every_folder() -> None:
    paths = set(named_paths((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")))
    folders = {file.parent.relative_to(ROOT) for package in PACKAGES for file in (ROOT / package).rglob("__init__.py")}
    assert [folder for folder in sorted(folders) if not any(Path(path).is_relative_to(folder) for path in paths)] == []


def test_the_table_of_benchmarks_names_every_file() -> None:
    table = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    files = {file.name for file in (ROOT / "benchmarks").glob("*_*.md")}
    assert files
    assert files - set(LINK.findall(table)) == set()
