"""The search page in a real browser, before a real server that finds drawings by texts in four languages."""

import base64
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from clipglot.demo.captions import LANGUAGES, class_prompt
from clipglot.demo.run import ENGLISH_CLIP
from clipglot.jobs.cache import cache_images
from clipglot.jobs.settings.cache import CacheSettings
from support.browser import chromium
from support.four_languages import NUM_IMAGES, PER_PAIR, cache_drawings, draw_pairs, train_on
from support.launcher import Launcher
from support.search_site import Site, serving

pytestmark = pytest.mark.slow

HOSTILE_NAME = "<img src=x onerror=alert(1)>\u202egnp.png"
HOSTILE_CAPTION = "<script>alert(1)</script><img src=x onerror=alert(2)> \u202eright to left"
ARABIC = "دائرة حمراء كبيرة على خلفية سوداء"
NUM_ODD = 5
FIRST_KEY = ".grid a >> nth=0"


@dataclass(frozen=True)
class Data:
    """Folder of the drawings, their cache, a cache of odd images, and a CLIP that reads four languages."""

    folder: Path
    drawings: Path
    odd: Path
    merged: Path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """384 drawings with captions in four languages, and five odd images, one of which is no longer there."""
    folder = tmp_path_factory.mktemp("search")
    drawings = cache_drawings(draw_pairs(folder), folder / "drawings.zarr")
    odd = folder / "odd"
    odd.mkdir()
    rows = [
        (HOSTILE_NAME, HOSTILE_CAPTION, "en", "green-star-0"),
        ("arabic.png", ARABIC, "ar", "red-circle-0"),
        ("lost.png", "an image that was deleted", "en", "blue-square-0"),
        ("twin a.png", "a pink heart", "en", "pink-heart-0"),
        ("twin b.png", "the same pink heart", "en", "pink-heart-0"),
    ]
    with open(odd / "odd.jsonl", "w", encoding="utf-8") as table:
        for name, caption, language, of in rows:
            (odd / name).write_bytes((folder / "images" / f"{of}.png").read_bytes())
            table.write(json.dumps({"image": name, "text": caption, "language": language}) + "\n")
    settings = CacheSettings(
        source=odd / "odd.jsonl",
        output=folder / "odd.zarr",
        model=f"local-dir:{ENGLISH_CLIP}",
        language_field="language",
        device="cpu",
        num_workers=1,
    )
    cache_images(settings)
    (odd / "lost.png").unlink()
    return Data(folder, drawings, folder / "odd.zarr", train_on(drawings, folder))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium."""
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def site(browser: Any, data: Data, launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server of both caches."""
    with serving(launcher, tmp_path_factory.mktemp("site"), data.merged, data.drawings, data.odd) as site:
        yield site


@pytest.fixture(scope="module")
def two_models(
    browser: Any, data: Data, launcher: Launcher, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """A server of the drawings with the English CLIP beside the new one."""
    folder = tmp_path_factory.mktemp("two")
    with serving(launcher, folder, data.merged, data.drawings, "--against", ENGLISH_CLIP) as site:
        yield site


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """`open_page(url, width=1400, scheme="light", quiet=True)`: a page; at the end nothing must have gone wrong in it.

    Whatever happens, no request leaves the server. Unless `quiet` is false, the console stays empty.
    """
    opened: list[tuple[Any, list[str]]] = []

    def open_one(url: str, *, width: int = 1400, scheme: str = "light", quiet: bool = True, **context: Any) -> Any:
        window = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **context)
        page, wrong = window.new_page(), list[str]()
        page.set_default_timeout(5_000)
        origin = "/".join(url.split("/")[:3]) + "/"
        if quiet:
            page.on("console", lambda message: None if is_of_lost(message) else wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("request", lambda asked: wrong.append(asked.url) if not is_own(asked.url, origin) else None)
        opened.append((window, wrong))
        page.goto(url)
        return page

    yield open_one
    for window, wrong in opened:
        window.close()
        assert wrong == []


def is_of_lost(message: Any) -> bool:
    """Whether the browser tells of the answer 404 for the image that was deleted: no page can keep it from that."""
    return f"/image/{NUM_IMAGES + 2}?" in message.location["url"]


def is_own(url: str, origin: str) -> bool:
    return url.startswith((origin, f"blob:{origin}"))


def keys(page: Any, column: int = 0) -> list[str]:
    """Keys of the images in a column, in their order."""
    grids = page.locator(".grid")
    return list(grids.nth(column).locator("a").evaluate_all("links => links.map(link => link.title)"))


def wait_for_first(page: Any, part: str) -> None:
    """Wait until the first image is one whose key has this part."""
    page.wait_for_function("part => document.querySelector('.grid a')?.title.includes(part)", arg=part)


def wait_for_images(page: Any) -> None:
    """Wait until all images in the window are there."""
    page.wait_for_function(
        "() => [...document.querySelectorAll('.grid img')]"
        ".filter(image => image.getBoundingClientRect().top < innerHeight)"
        ".every(image => image.complete && image.naturalWidth)"
    )


def type_text(page: Any, text: str, **pace: float) -> None:
    """Type into the field that has the focus, and wait until the images of the whole text are shown."""
    with page.expect_response(lambda answer: parse_qs(urlsplit(answer.url).query).get("q") == [text]):
        page.keyboard.type(text, **pace)
    page.locator(".column:not([aria-busy])").first.wait_for()


def query(page: Any) -> str:
    return str(page.evaluate("location.search"))


def send_image(page: Any, file: Path, event: str) -> None:
    """Paste or drop a file."""
    page.evaluate(
        """([event, content, name]) => {
            const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type: "image/png" }));
            const given = { bubbles: true, cancelable: true };
            document.body.dispatchEvent(event === "paste"
                ? new ClipboardEvent("paste", { ...given, clipboardData: transfer })
                : new DragEvent(event, { ...given, dataTransfer: transfer }));
        }""",
        [event, base64.b64encode(file.read_bytes()).decode(), file.name],
    )


@pytest.mark.parametrize("language", LANGUAGES)
def test_typing_in_four_scripts_finds_the_drawing(open_page: Any, site: Site, language: Any) -> None:
    page = open_page(site.url)
    type_text(page, class_prompt("green", "star", language))  # the field has the focus
    wait_for_first(page, "green-star")
    wait_for_images(page)
    assert sum("green-star" in key for key in keys(page)[:PER_PAIR]) >= PER_PAIR - 1
    assert f"of {NUM_IMAGES + NUM_ODD} images" in page.inner_text(".status")
    tile = page.locator(FIRST_KEY)
    assert re.fullmatch(r"-?[01]\.\d{3}", tile.locator(".score").text_content())
    assert tile.locator(".caption").text_content() == "a green star"


def test_the_images_stay_until_others_come_and_a_late_answer_is_dropped(open_page: Any, site: Site) -> None:
    page = open_page(f"{site.url}?q=a+red+circle")
    wait_for_first(page, "red-circle")
    held: list[Any] = []
    page.route("**/search?*q=a+pink+heart*", lambda route: held.append(route))
    page.fill("#q", "a pink heart")
    page.wait_for_timeout(150)
    assert "red-circle" in keys(page)[0]
    page.fill("#q", "a blue cross")
    wait_for_first(page, "blue-cross")
    for route in held:
        route.abort()
    page.wait_for_timeout(100)
    assert "blue-cross" in keys(page)[0]


def test_a_text_in_the_making_is_not_searched(open_page: Any, site: Site) -> None:
    """Chinese is typed as Latin letters, which the keyboard turns into a text at the end."""
    page = open_page(site.url)
    asked: list[str] = []
    page.locator("#start .strip img").first.wait_for()  # the examples search, too
    page.wait_for_load_state("networkidle")
    page.on("request", lambda request: asked.append(request.url) if "/search?" in request.url else None)
    keyboard = page.context.new_cdp_session(page)
    keyboard.send("Input.imeSetComposition", {"text": "hongse", "selectionStart": 6, "selectionEnd": 6})
    page.wait_for_timeout(200)
    assert asked == []
    keyboard.send("Input.insertText", {"text": "一个红色的圆形"})
    wait_for_first(page, "red-circle")
    assert [parse_qs(urlsplit(url).query)["q"] for url in asked][:1] == [["一个红色的圆形"]]


def test_typing_is_one_entry_of_the_history_and_back_restores_it(open_page: Any, site: Site) -> None:
    page = open_page(site.url)
    type_text(page, "a red circle", delay=5)
    wait_for_first(page, "red-circle")
    page.keyboard.press("Enter")
    page.keyboard.press("Control+a")
    type_text(page, "파란색 별", delay=5)
    wait_for_first(page, "blue-star")
    page.evaluate("window.scrollTo(0, 700)")
    page.uncheck("#fold")
    page.go_back()
    assert page.is_checked("#fold")
    page.go_back()
    wait_for_first(page, "red-circle")
    assert page.input_value("#q") == "a red circle"
    page.go_forward()
    wait_for_first(page, "blue-star")
    page.go_back()
    page.go_back()
    page.locator("#start").wait_for()
    assert page.input_value("#q") == ""


def test_a_shared_url_shows_the_same(open_page: Any, site: Site) -> None:
    url = f"{site.url}?q=a+yellow+ring&text=yellow&language=en&cache=0&fold=false&size=l"
    page = open_page(url)
    wait_for_first(page, "yellow-ring")
    assert page.input_value("#q") == "a yellow ring"
    assert page.input_value("#text") == "yellow"
    assert page.locator("#language option:checked").inner_text().startswith("English")
    assert page.locator("#cache option:checked").inner_text().startswith("drawings.zarr")
    assert not page.is_checked("#fold")
    assert page.is_checked("[name=size][value=l]")
    assert f"of {8 * PER_PAIR} images" in page.inner_text(".status")
    page.locator(FIRST_KEY).click()
    shown = page.locator("dialog .key").inner_text()
    page.reload()
    page.locator("dialog .key", has_text=shown).wait_for()
    assert page.locator("dialog .captions li").count() == len(LANGUAGES)


def test_an_image_of_a_shared_url_need_not_be_among_the_results(open_page: Any, site: Site) -> None:
    page = open_page(f"{site.url}?q=a+red+circle&image={NUM_IMAGES - 1}")
    page.locator("dialog .key", has_text="pink-crescent").wait_for()


@pytest.mark.parametrize("way", ["paste", "drop", "choose"])
def test_an_image_finds_itself(open_page: Any, site: Site, data: Data, way: str) -> None:
    page = open_page(f"{site.url}?q=a+red+circle")
    wait_for_first(page, "red-circle")
    file = data.folder / "images" / "purple-cross-3.png"
    if way == "choose":
        page.set_input_files("#file", file)
    elif way == "drop":
        send_image(page, file, "dragenter")
        assert page.locator("#drop").is_visible()
        send_image(page, file, "drop")
        assert not page.locator("#drop").is_visible()
    else:
        send_image(page, file, "paste")
    wait_for_first(page, file.name)
    assert file.name in page.inner_text("#chip")
    assert page.evaluate("document.querySelector('#chip img').naturalWidth") == 128
    assert page.input_value("#q") == ""
    # Its labels, then back to the text.
    page.click("#chip .what")
    page.fill("#labels", "фиолетовый крест, 파란색 별, 一个红色的圆形")
    page.locator(".bars li").first.wait_for()
    assert page.locator(".bars li span").first.inner_text() == "фиолетовый крест"
    page.keyboard.press("Escape")
    page.click("#chip [aria-label='remove the image']")
    page.locator("#start").wait_for()
    page.go_back()
    wait_for_first(page, file.name)


def test_what_is_no_image_says_so(open_page: Any, site: Site, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG and no more")
    page = open_page(site.url, quiet=False)  # the browser reports 400 on the console
    page.set_input_files("#file", tmp_path / "broken.png")
    page.locator(".column .notice").wait_for()
    assert "image" in page.inner_text(".column .notice")


def test_more_like_this_and_back(open_page: Any, site: Site) -> None:
    page = open_page(f"{site.url}?q=一个红色的圆形&cache=0")
    wait_for_first(page, "red-circle")
    page.fill("#q", "a green ring")
    wait_for_first(page, "green-ring")
    page.locator(FIRST_KEY).click()
    page.click("text=More like this")
    page.wait_for_function("() => location.search.includes('similar=')")
    page.locator("#chip").wait_for()
    assert not page.locator("dialog").is_visible()
    assert "green-ring" in keys(page)[0]
    page.reload()
    wait_for_first(page, "green-ring")
    page.go_back()
    page.locator("dialog").wait_for()
    page.go_back()
    page.locator("dialog").wait_for(state="hidden")
    assert page.input_value("#q") == "a green ring"


def test_filters_narrow_the_search(open_page: Any, site: Site) -> None:
    page = open_page(f"{site.url}?q=a+star")
    page.locator(FIRST_KEY).wait_for()
    page.fill("#text", "별")
    page.locator(".status", has_text=f"of {8 * PER_PAIR} images").wait_for()
    assert "별" in page.locator(".caption").first.text_content()  # the caption that passes
    page.fill("#text", "")
    page.locator(".status", has_text=f"of {NUM_IMAGES + NUM_ODD} images").wait_for()
    page.select_option("#language", "=ar")
    page.locator(".status", has_text="1 of 1 image").wait_for()
    page.select_option("#language", "any")
    page.select_option("#cache", "1")
    page.locator(".status", has_text=f"of {NUM_ODD} images").wait_for()
    page.fill("#text", "nothing has this")
    page.click("text=Clear the filters")
    page.locator(".status", has_text=f"of {NUM_IMAGES + NUM_ODD} images").wait_for()
    assert query(page) == "?q=a+star"


def test_near_duplicates_are_folded(open_page: Any, site: Site) -> None:
    page = open_page(f"{site.url}?q=a+pink+heart&cache=1&text=heart")
    wait_for_first(page, "twin a")
    assert len(keys(page)) == 1
    assert page.locator(".alike").text_content() == "+1"
    page.locator(FIRST_KEY).click()
    page.click(".folded button")
    page.locator("dialog .key", has_text="twin b").wait_for()
    page.go_back()
    page.locator("dialog .key", has_text="twin a").wait_for()
    page.go_forward()
    page.locator("dialog .key", has_text="twin b").wait_for()
    page.keyboard.press("Escape")
    page.locator("dialog").wait_for(state="hidden")
    page.uncheck("#fold")
    page.locator(".status", has_text="2 of 2").wait_for()
    assert page.locator(".alike").count() == 0


def test_the_keyboard_is_enough(open_page: Any, site: Site) -> None:
    page = open_page(site.url)
    type_text(page, "синяя звезда")
    wait_for_first(page, "blue-star")
    names = keys(page)

    def focused() -> str:
        return str(page.evaluate("document.activeElement.title"))

    page.keyboard.press("ArrowDown")
    assert focused() == names[0]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    columns = page.evaluate("getComputedStyle(document.querySelector('.grid')).gridTemplateColumns.split(' ').length")
    assert focused() == names[1 + columns]
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    assert page.locator("dialog .key").inner_text() == f"{names[0]} in drawings.zarr"
    page.keyboard.press("ArrowRight")
    assert page.locator("dialog .key").inner_text() == f"{names[1]} in drawings.zarr"
    page.keyboard.press("Escape")
    page.locator("dialog").wait_for(state="hidden")
    assert focused() == names[1]
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "q"
    page.keyboard.press("Tab")  # to the button of images, and out of the field
    assert page.evaluate("document.activeElement.id") == "choose"


def test_hostile_captions_and_keys_are_text(open_page: Any, site: Site) -> None:
    page = open_page(f"{site.url}?q=a+green+star&cache=1&text=script")
    tile = page.locator(FIRST_KEY)
    assert tile.locator(".caption").text_content() == HOSTILE_CAPTION
    assert tile.get_attribute("title") == HOSTILE_NAME.replace("\u202e", r"\u202e")
    tile.click()
    assert page.locator("dialog .key").inner_text() == HOSTILE_NAME.replace("\u202e", r"\u202e") + " in odd.zarr"
    assert page.locator("dialog .captions p").inner_text() == HOSTILE_CAPTION
    assert page.evaluate("document.querySelectorAll('script:not([src]), img[src=x]').length") == 0
    assert page.evaluate("getComputedStyle(document.querySelector('dialog .captions p')).unicodeBidi") == "isolate"


def test_an_image_that_cannot_be_read_shows_its_key_and_the_reason(open_page: Any, site: Site) -> None:
    page = open_page(f"{site.url}?q=a+blue+square&cache=1&text=deleted")
    shown = page.locator(".grid .unreadable")
    shown.wait_for()
    assert "lost.png" in shown.inner_text()
    assert "missing" in shown.inner_text() or "not" in shown.inner_text()
    page.locator(FIRST_KEY).click()
    page.locator("dialog .unreadable", has_text="lost.png").wait_for()


def test_a_server_that_is_gone_and_comes_back(open_page: Any, data: Data, launcher: Launcher, tmp_path: Path) -> None:
    with serving(launcher, tmp_path / "first", data.merged, data.drawings) as site:
        page = open_page(f"{site.url}?q=a+red+circle", quiet=False)
        wait_for_first(page, "red-circle")
    page.fill("#q", "a green star")
    page.locator(".notice", has_text="does not answer").wait_for()
    assert "red-circle" in keys(page)[0]
    page.locator(FIRST_KEY).click()  # what is shown stays of use
    page.keyboard.press("Escape")
    with serving(launcher, tmp_path / "second", data.merged, data.drawings, "--port", site.port):
        page.click("text=Try again")
        wait_for_first(page, "green-star")
        assert not page.locator(".notice").first.is_visible()


def test_a_page_without_its_token_says_what_to_do(
    open_page: Any, data: Data, launcher: Launcher, tmp_path: Path
) -> None:
    with serving(launcher, tmp_path / "site", data.merged, data.drawings, "--token", "a-secret-token") as site:
        page = open_page(site.url, quiet=False)
        type_text(page, "a red circle")
        wait_for_first(page, "red-circle")
        assert "token" not in page.url
        page.context.clear_cookies()
        page.fill("#q", "a green star")
        page.locator(".notice", has_text="token").wait_for()


def test_two_models_stand_side_by_side_with_prompts_of_their_own(open_page: Any, two_models: Site) -> None:
    page = open_page(f"{two_models.url}?q=жёлтое+сердце")
    page.locator(".column >> nth=1 >> .grid a >> nth=0").wait_for()
    wait_for_first(page, "yellow-heart")
    assert "yellow-heart" not in keys(page, 1)[0]  # the English tower reads no Russian
    page.fill(".column >> nth=1 >> .prompt", "a yellow heart")
    page.wait_for_function(
        "() => document.querySelectorAll('.grid')[1].querySelector('a').title.includes('yellow-heart')"
    )
    boxes = [page.locator(".column").nth(i).bounding_box() for i in range(2)]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] < boxes[1]["x"]
    page.reload()
    page.wait_for_function(
        "() => document.querySelectorAll('.grid')[1]?.querySelector('a')?.title.includes('yellow-heart')"
    )
    assert page.input_value(".column >> nth=1 >> .prompt") == "a yellow heart"
    page.uncheck("[name=model][value='0']")
    page.locator(".column").nth(1).wait_for(state="detached")
    assert "model=1" in query(page)
    assert page.is_disabled("[name=model][value='1']")  # one remains


def test_labels_have_probabilities(open_page: Any, site: Site) -> None:
    page = open_page(f"{site.url}?q=a+red+circle&cache=0")
    wait_for_first(page, "red-circle")
    page.locator(FIRST_KEY).click()
    page.fill("#labels", "красный круг, 一颗绿色的星星, 파란색 원")
    page.locator(".bars li").nth(2).wait_for()
    assert page.locator(".bars li span").first.inner_text() == "красный круг"
    shares = [float(text.rstrip(" %")) for text in page.locator(".bars b").all_inner_texts()]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.locator(".bars li").nth(2).wait_for()  # the labels stay for the next image


def test_results_are_copied_as_json(open_page: Any, site: Site) -> None:
    page = open_page(f"{site.url}?q=a+red+circle", permissions=["clipboard-read", "clipboard-write"])
    wait_for_first(page, "red-circle")
    page.click(".head >> text=Copy as JSON")
    page.locator(".head >> text=Copied").wait_for()
    copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert copied["query"] == "a red circle"
    assert [hit["key"] for hit in copied["hits"]][:3] == keys(page)[:3]
    page.locator(FIRST_KEY).click()
    page.click("dialog >> text=Copy as JSON")
    page.locator("dialog >> text=Copied").wait_for()
    assert json.loads(page.evaluate("navigator.clipboard.readText()")) == copied["hits"][0]


def test_the_grid_grows_as_it_is_scrolled_to_the_last_image(open_page: Any, site: Site) -> None:
    num = 2 * 8 * PER_PAIR  # blue and light blue ones
    page = open_page(f"{site.url}?q=a+blue+star&text=blue&cache=0&fold=false&size=l")
    wait_for_first(page, "blue-star")
    page.wait_for_timeout(300)
    assert len(keys(page)) < num  # a screen and what follows it
    for _ in range(30):
        page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        page.wait_for_timeout(60)
        if len(keys(page)) == num:
            break
    names = keys(page)
    assert len(names) == len(set(names)) == num
    wait_for_images(page)


def test_the_size_is_remembered(open_page: Any, site: Site) -> None:
    page = open_page(f"{site.url}?q=a+red+circle")
    wait_for_first(page, "red-circle")
    widths = []
    for size in "sml":
        page.check(f"[name=size][value={size}]", force=True)
        widths.append(page.locator(FIRST_KEY).bounding_box()["width"])
    assert widths == sorted(set(widths))
    page.goto(site.url)
    assert page.is_checked("[name=size][value=l]")


@pytest.mark.parametrize(
    "view",
    ["", "?q=a+green+star&cache=1&fold=false", "?q=a+green+star&image=3", "?q=-star", "two models"],
)
def test_every_view_is_as_wide_as_the_window(open_page: Any, site: Site, two_models: Site, view: str) -> None:
    url = f"{two_models.url}?q=a+green+star" if view == "two models" else f"{site.url}{view}"
    page = open_page(url, quiet=False)
    page.wait_for_load_state("networkidle")
    for width in (1400, 400):
        page.set_viewport_size({"width": width, "height": 900})
        if width == 400 and "image=" not in url:
            assert not page.locator("#text").is_visible()
            page.click("#show-filters")
            assert page.locator("#text").is_visible()
        sizes = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert max(sizes) == width
        sticking_out = page.evaluate(
            "[...document.querySelectorAll('main *, header *, dialog *')]"
            ".filter(each => each.offsetParent && each.getBoundingClientRect().right > innerWidth + 1"
            " && !each.closest('.unseen')).map(each => each.outerHTML.slice(0, 100))"
        )
        assert sticking_out == []


def test_the_page_is_dark_where_the_system_is(open_page: Any, site: Site) -> None:
    page = open_page(site.url)
    for scheme, colour in (("light", "rgb(252, 252, 250)"), ("dark", "rgb(22, 23, 26)")):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == colour


def test_models_are_stacked_on_a_phone(open_page: Any, two_models: Site) -> None:
    page = open_page(f"{two_models.url}?q=a+green+star", width=400)
    page.locator(".column >> nth=1 >> .grid a >> nth=0").wait_for()
    boxes = [page.locator(".column").nth(i).bounding_box() for i in range(2)]
    assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]
    before = len(keys(page))
    page.locator("text=Show more").first.click()
    page.wait_for_function("before => document.querySelector('.grid').children.length > before", arg=before)


def test_details_begin_with_the_image_on_a_phone(open_page: Any, site: Site) -> None:
    page = open_page(f"{site.url}?q=a+green+star", width=400)
    page.locator(FIRST_KEY).click()
    page.locator("dialog img").wait_for()
    assert page.locator("dialog figure").bounding_box()["y"] == 0
    page.click("dialog [aria-label='next image']")
    assert page.locator("dialog figure").bounding_box()["y"] == 0
    page.click("dialog [aria-label=close]")
    page.locator("dialog").wait_for(state="hidden")


def test_right_to_left_texts(open_page: Any, site: Site) -> None:
    page = open_page(f"{site.url}?q=" + ARABIC.replace(" ", "+") + "&language=ar")
    wait_for_first(page, "arabic.png")
    assert page.evaluate("document.querySelector('#q').matches(':dir(rtl)')")
    assert page.evaluate("document.querySelector('.caption').matches(':dir(rtl)')")
    page.locator(FIRST_KEY).click()
    caption = page.locator("dialog .captions p")
    assert caption.inner_text() == ARABIC
    assert caption.get_attribute("lang") == "ar"
    assert page.locator("dialog .captions small").inner_text() == "Arabic"


def test_a_query_that_only_takes_away_is_explained_in_place(open_page: Any, site: Site) -> None:
    page = open_page(f"{site.url}?q=a+red+circle", quiet=False)
    wait_for_first(page, "red-circle")
    page.fill("#q", "-red")
    page.locator(".column .notice").wait_for()
    assert "red-circle" in keys(page)[0]
    page.fill("#q", "a circle -red +blue")
    page.locator(".column .notice").wait_for(state="hidden")
    wait_for_first(page, "blue-circle")


def test_the_time_from_a_key_to_the_images_is_measured(open_page: Any, site: Site) -> None:
    page = open_page(site.url)
    type_text(page, "a red circle", delay=20)
    wait_for_first(page, "red-circle")
    page.wait_for_function("() => performance.getEntriesByName('typed-to-images').length > 0")
    assert page.evaluate("performance.getEntriesByName('typed-to-images').every(each => each.duration > 0)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", ["", "&image=3&labels=a+star,a+ring", "&text=nothing+has+this", "two models"])
def test_axe_finds_nothing_serious(open_page: Any, site: Site, two_models: Site, scheme: str, view: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    two = view == "two models"
    page = open_page(f"{two_models.url}?q=a+star" if two else f"{site.url}?q=a+star{view}", scheme=scheme)
    page.wait_for_load_state("networkidle")
    found = axe.Axe().run(page).response["violations"]
    serious = [
        (each["id"], node["html"][:200], node["failureSummary"])
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]
    assert serious == []


def test_the_page_carries_no_script_or_style_of_its_own() -> None:
    """The policy of the server forbids them, and images as data."""
    static = Path(__file__).parents[2] / "serve" / "static"
    page = (static / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|data:|https?://", page)
    for file in static.glob("*.js"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), file
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "").replace("https?", ""), file
