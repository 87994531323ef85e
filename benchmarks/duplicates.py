"""At which cosine altered copies of photographs are found again: `clipglot duplicates` against a known answer.

Copies of the first images of a manifest are altered, each in one way; every copy is compared with all originals.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from clipglot.cache.read.cache import Cache
from clipglot.evals.duplicates import find_duplicates
from clipglot.jobs.cache import cache_images
from clipglot.jobs.settings.cache import CacheSettings
from PIL import Image, ImageEnhance, ImageOps

MARKS = (0.999, 0.99, 0.97, 0.95, 0.9)


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    file = BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def cropped(image: Image.Image, share: float) -> Image.Image:
    width, height = image.size
    x, y = round(width * (1 - share) / 2), round(height * (1 - share) / 2)
    return image.crop((x, y, width - x, height - y))


def shrunk(image: Image.Image, share: float) -> Image.Image:
    small = image.resize((round(image.width * share), round(image.height * share)), Image.Resampling.BICUBIC)
    return small.resize(image.size, Image.Resampling.BICUBIC)


ALTERED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "the same pixels": lambda image: image,
    "JPEG again, quality 90": lambda image: recompressed(image, 90),
    "JPEG again, quality 30": lambda image: recompressed(image, 30),
    "half the size": lambda image: shrunk(image, 0.5),
    "brighter by a fifth": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "grey": lambda image: ImageOps.grayscale(image).convert("RGB"),
    "mirrored": ImageOps.mirror,
    "nine tenths of each side": lambda image: cropped(image, 0.9),
    "three quarters of each side": lambda image: cropped(image, 0.75),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of train.jsonl and images/")
    parser.add_argument("--model", required=True)
    parser.add_argument("--pretrained")
    parser.add_argument("--text-field", default="text")
    parser.add_argument("--pictures", type=int, default=300)
    given = parser.parse_args()
    rows = [json.loads(line) for line in (given.data / "train.jsonl").open(encoding="utf-8")][: given.images]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def cached(manifest: Path) -> Cache:
            return cache_images(
                CacheSettings(
                    source=manifest,
                    output=manifest.with_suffix(".zarr"),
                    model=given.model,
                    pretrained=given.pretrained,
                    image_root=folder,
                )
            ).cache

        def stored(what: str, alter: Callable[[Image.Image], Image.Image]) -> Cache:
            (folder / what).mkdir()
            lines = []
            for i, row in enumerate(rows):
                alter(Image.open(given.data / row["image"]).convert("RGB")).save(folder / what / f"{i}.png")
                lines.append(json.dumps({"image": f"{what}/{i}.png", "text": row[given.text_field]}))
            manifest = folder / f"{what}.jsonl"
            manifest.write_text("\n".join(lines), encoding="utf-8")
            return cached(manifest)

        originals = stored("originals", lambda image: image)
        print(
            "| copy | " + " | ".join(f"≥ {mark:g}" for mark in MARKS) + " | median cosine | nearest is the original |"
        )
        print("|---" + "|--:" * (len(MARKS) + 2) + "|")
        for what, alter in ALTERED.items():
            report = find_duplicates(originals, stored(what, alter), threshold=-1, num_listed=-1)
            cosines = np.array([pair.cosine for pair in report.pairs])
            right = np.mean([Path(pair.key).name == Path(pair.other_key).name for pair in report.pairs])
            shares = " | ".join(f"{np.mean(cosines >= mark):.1%}" for mark in MARKS)
            print(f"| {what} | {shares} | {np.median(cosines):.4f} | {right:.1%} |", flush=True)


if __name__ == "__main__":
    main()
