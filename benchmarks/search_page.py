"""Time from a key to the images on the page of `clipglot serve`, in Chromium, with real key presses.

    scripts/bench search_page [MERGED CACHE] [--draw 6000] [--queries 50]

Each query is a caption of the cache, typed at `--delay` milliseconds a key. Measured is the time from its last key
until all images in the window are loaded, thumbnails made for the first time (cold) and again in a browser that has
none (warm). Without a cache, drawings of the demo are cached, with its English CLIP.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from clipglot.cache.read.cache import Cache
from clipglot.demo.captions import caption
from clipglot.demo.run import ENGLISH_CLIP
from clipglot.demo.scenes import draw, training_scenes
from clipglot.jobs.cache import cache_images
from clipglot.jobs.settings.cache import CacheSettings
from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium"
WINDOW = {"width": 1400, "height": 900}
# Of the newest measure: its length, and the part of it until the answer to the search was there.
NEWEST = """key => {
    const measures = performance.getEntriesByName("typed-to-images").filter((each) => each.detail.key === key);
    const measure = measures.at(-1);
    if (!measure) return null;
    const answers = performance.getEntriesByType("resource").filter((each) => each.name.includes("/search?"));
    const onScreen = [...document.querySelectorAll(".grid img")]
        .filter((each) => each.getBoundingClientRect().top < innerHeight);
    return {
        images: measure.duration,
        answer: Math.max(0, answers.at(-1).responseEnd - measure.startTime),
        num: onScreen.length,
        loaded: onScreen.every((each) => each.complete),
    };
}"""


def cache_drawings(folder: Path, num: int) -> Path:
    """A cache of scenes of the demo with an English caption each."""
    (folder / "images").mkdir()
    rng = random.Random(0)
    with open(folder / "drawings.jsonl", "w", encoding="utf-8") as table:
        for i, scene in enumerate(training_scenes(num, seed=0)):
            draw(scene).save(folder / "images" / f"{i:06}.png", compress_level=1)
            table.write(json.dumps({"image": f"images/{i:06}.png", "text": caption(scene, "en", rng)}) + "\n")
    settings = CacheSettings(
        source=folder / "drawings.jsonl",
        output=folder / "drawings.zarr",
        model=f"local-dir:{ENGLISH_CLIP}",
        device="cpu",
    )
    cache_images(settings)
    return folder / "drawings.zarr"


@contextmanager
def serving(arguments: Sequence[str | Path], thumbnails: Path) -> Iterator[str]:
    """URL of a server with some arguments, until the end of the block."""
    options = ["--port", "0", "--json", "--thumbnail-folder", thumbnails]
    command = [sys.executable, "-m", "clipglot", "serve", *arguments, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            told = ""
            while not told.endswith("}\n"):
                line = process.stdout.readline()
                if not line:
                    raise SystemExit("the server did not start")
                told += line
            yield json.loads(told)["url"]
        finally:
            process.terminate()


def measure(browser: Any, url: str, queries: Sequence[str], delay: float) -> list[dict[str, float]]:
    """Type each query into a new page of a browser without images; returns the milliseconds of each."""
    results = []
    for query in queries:
        context = browser.new_context(viewport=WINDOW)
        page = context.new_page()
        page.goto(url)
        page.locator("#start").wait_for()
        page.wait_for_load_state("networkidle")  # the examples have their images
        page.evaluate("performance.setResourceTimingBufferSize(10_000)")
        page.keyboard.type(query, delay=delay)
        key = page.evaluate("q => `search?${new URLSearchParams({ model: 0, fold: true, q })}`", query)
        page.wait_for_function(NEWEST, arg=key, timeout=30_000)
        results.append(page.evaluate(NEWEST, key))
        context.close()
    return results


def main() -> None:
    """Serve, type and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("merged", type=Path, nargs="?", default=ENGLISH_CLIP)
    parser.add_argument("cache", type=Path, nargs="?")
    parser.add_argument("--draw", type=int, default=6_000, help="drawings to cache if no cache is given")
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--delay", type=float, default=80, help="milliseconds between keys")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        cache = args.cache or cache_drawings(Path(temporary), args.draw)
        opened = Cache(cache)
        captions = list(dict.fromkeys(opened.captions()))
        queries = random.Random(1).sample(captions, min(args.queries, len(captions)))
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {len(queries)} queries\n")
        print("| images | thumbnails | images on screen | p50 (ms) | p95 (ms) | until the answer, p50 | p95 |")
        print("|--:|---|--:|--:|--:|--:|--:|")
        with serving([args.merged, cache], Path(temporary) / "thumbnails") as url, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            for state in ("cold", "warm"):
                results = measure(browser, url, queries, args.delay)
                assert all(each["loaded"] for each in results)
                figures = [
                    np.percentile([each[what] for each in results], share)
                    for what in ("images", "answer")
                    for share in (50, 95)
                ]
                num = np.median([each["num"] for each in results])
                cells = " | ".join(f"{figure:.0f}" for figure in figures)
                print(f"| {len(opened):,} | {state} | {num:.0f} | {cells} |", flush=True)
            browser.close()


if __name__ == "__main__":
    main()
