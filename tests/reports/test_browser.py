"""The page in a real browser: nothing requested, no message, no sideways scroll on a phone, in light and dark."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clipglot.jobs.report import report
from clipglot.jobs.settings.report import ReportSettings
from support.browser import chromium

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium."""
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tiny_run: Path, merged: Path, tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Reports of a run, and of a run and a merged CLIP side by side."""
    folder = tmp_path_factory.mktemp("pages")
    report(ReportSettings(runs=(tiny_run,), output=folder / "one.html"))
    report(ReportSettings(runs=(tiny_run, merged), output=folder / "two.html", cache=(tiny_cache,)))
    return sorted(folder.iterdir())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_a_page_is_quiet_and_as_wide_as_the_window(browser: Any, pages: list[Path], scheme: str, width: int) -> None:
    for file in pages:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))  # noqa: B023
        page.on("pageerror", lambda error: said.append(str(error)))  # noqa: B023
        page.on("request", lambda request: said.append(request.url))  # noqa: B023
        page.goto(file.as_uri())
        assert [each for each in said if not each.startswith(("data:", file.as_uri()))] == []
        sizes = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert sizes == [width, width]
        dark = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert (dark == "rgb(22, 23, 26)") == (scheme == "dark")
        assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        # Nothing sticks out of its box: charts, cards, cells.
        assert page.evaluate(
            "[...document.querySelectorAll('.chart svg, .card, .keys, .facts, .origin')]"
            ".every(each => each.getBoundingClientRect().right <= innerWidth)"
        )
        page.close()


def test_a_page_prints(browser: Any, pages: list[Path], tmp_path: Path) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto(pages[0].as_uri())
    page.pdf(path=str(tmp_path / "page.pdf"), format="A4")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    page.close()
