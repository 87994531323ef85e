"""The site builds without a warning, holds every page, and needs no network; its list of commands is complete."""

import html
import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType

import click
import pytest
from clipglot.jobs.functions import FUNCTIONS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    """The hook that makes pages."""
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "scripts" / "site_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site") / "site"
    done = subprocess.run([ROOT / "scripts" / "site", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.mark.slow
def test_every_page_of_the_docs_is_on_the_site_and_in_its_navigation(site: Path) -> None:
    docs = {file.relative_to(ROOT / "docs") for file in (ROOT / "docs").rglob("*.md")}
    docs |= {file.relative_to(ROOT) for file in (ROOT / "benchmarks").glob("*.md")}
    built = {
        str(page.with_name("index.html") if page.name == "README.md" else page.with_suffix(".html")) for page in docs
    }
    index = (site / "index.html").read_text(encoding="utf-8")
    sections = set(re.findall(r'<a href="([^"#:]+\.html)" class="md-(?:tabs|nav)__link', index))
    listed = {"index.html", *sections}
    for section in sections:  # a page shows the navigation of its own section
        page = site / section
        links = re.findall(r'href="([^"#:]+\.html)" class="md-nav__link', page.read_text(encoding="utf-8"))
        listed |= {str((page.parent / link).resolve().relative_to(site)) for link in links}
    assert built - listed == set()
    assert [page for page in built if not (site / page).is_file()] == []


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere_and_leads_nowhere_local(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]* src="?([^" >]+)', text)
        loaded += re.findall(r'<link[^>]* rel="?stylesheet"?[^>]* href="?([^" >]+)|<link[^>]* href="([^"]+)"', text)
        flat = [one for found in loaded for one in ([found] if isinstance(found, str) else found) if one]
        assert flat
        assert [url for url in flat if re.match(r"(https?:)?//", url)] == [], page
        assert str(ROOT) not in text, page


def test_the_page_of_commands_has_every_command_and_option(pages: ModuleType) -> None:
    page = html.unescape(pages.commands_page())
    names = []
    for name, command, _ in pages.commands():
        names.append(name)
        (section,) = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
        options = [o for o in command.params if isinstance(o, click.Option) and not o.hidden]
        assert [option.opts for option in options if not all(flag in section for flag in option.opts)] == []
    assert {"clipglot train", "clipglot eval retrieval"} <= set(names)


def test_the_page_of_functions_has_every_function(pages: ModuleType) -> None:
    page = pages.functions_page()
    assert [name for name in FUNCTIONS if f"\nclipglot.{name}(" not in page] == []
