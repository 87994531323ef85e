"""Picture of the search page for README, docs/images/search.png: the new tower beside the English one, on the demo.

    python scripts/screenshots.py [--demo DIR] [--out docs/images/search.png]

Runs `clipglot demo` unless the folder of one is given, serves its drawings, and photographs the page in Chromium.
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


def main() -> None:
    """Run, serve, photograph and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, help="folder of `clipglot demo -o`")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "search.png")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        demo = args.demo or run_demo(DemoSettings(), Path(temporary)).folder
        arguments = [demo / "merged", demo / "train.zarr", "--against", ENGLISH_CLIP]
        with serving(arguments, Path(temporary) / "thumbnails") as url, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            image = photograph(browser, url)
            browser.close()
    args.out.parent.mkdir(exist_ok=True)
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(args.out, optimize=True)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
