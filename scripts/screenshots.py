"""Pictures of the search page and of the report for README, on the demo.

    python scripts/screenshots.py [--demo DIR] [--out docs]

Runs `clipglot demo` unless the folder of one is given, serves its drawings with the new tower beside the English one,
and photographs both pages in Chromium: OUT/images/search.png and OUT/report.webp.
"""

import argparse
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from clipglot.demo.run import ENGLISH_CLIP, run_demo
from clipglot.demo.settings import DemoSettings
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from search_page import CHROMIUM, serving  # noqa: E402

QUERY = {"q": "две розовые звезды", "q1": "two pink stars", "size": "s"}
COLOURS = 128  # of the palette: a third of the bytes
REPORT_SIZE = (1180, 1616)  # of its beginning, in pixels


def photograph(browser: Browser, url: str) -> Image.Image:
    """The page with the results of both towers."""
    page = browser.new_page(viewport={"width": 1200, "height": 640}, device_scale_factor=1.5)
    page.goto(url)
    page.keyboard.type(QUERY["q"])
    page.check(f"[name=size][value={QUERY['size']}]", force=True)
    page.fill(".column >> nth=1 >> .prompt", QUERY["q1"])
    page.wait_for_load_state("networkidle")
    page.focus("#q")
    return Image.open(BytesIO(page.screenshot())).convert("RGB")


def photograph_report(browser: Browser, report: Path) -> Image.Image:
    """The beginning of the report of a demo."""
    width, height = REPORT_SIZE
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(report.absolute().as_uri())
    page.wait_for_load_state("networkidle")
    return Image.open(BytesIO(page.screenshot())).convert("RGB")


def main() -> None:
    """Run, serve, photograph and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, help="folder of `clipglot demo -o`")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        own = Path(temporary) / "demo"  # the report shows this name
        own.mkdir()
        demo = args.demo or run_demo(DemoSettings(), own).folder
        arguments = [demo / "merged", demo / "train.zarr", "--against", ENGLISH_CLIP]
        with serving(arguments, Path(temporary) / "thumbnails") as url, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            search, report = photograph(browser, url), photograph_report(browser, demo / "report.html")
            browser.close()
    files = args.out / "images" / "search.png", args.out / "report.webp"
    files[0].parent.mkdir(parents=True, exist_ok=True)
    search.quantize(COLOURS, dither=Image.Dither.NONE).save(files[0], optimize=True)
    report.save(files[1], quality=80, method=6)
    for file in files:
        print(f"{file}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
