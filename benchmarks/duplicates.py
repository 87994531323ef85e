"""Cosine between photographs and altered copies of them, by `clipglot duplicates` with the answer known.

    scripts/bench duplicates --data DIR --model MODEL [--pretrained FILE] [--pictures 300]

Copies of the first images of a manifest are altered in one way at a time; each copy is compared with all originals.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from clipglot.cache.read.cache import Cache
from clipglot.evals.duplicates import find_near_duplicates
from clipglot.jobs.cache import cache_images
from clipglot.jobs.settings.cache import CacheSettings
from PIL import Image, ImageEnhance, ImageOps

THRESHOLDS = (0.999, 0.99, 0.97, 0.95, 0.9)


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    """The image after a round trip through JPEG."""
    file = BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def cropped(image: Image.Image, fraction: float) -> Image.Image:
    """The centre of the image, with this fraction of each side."""
    width, height = image.size
    x, y = round(width * (1 - fraction) / 2), round(height * (1 - fraction) / 2)
    return image.crop((x, y, width - x, height - y))


def shrunk(image: Image.Image, fraction: float) -> Image.Image:
    """The image at a fraction of its resolution, enlarged again."""
    small = image.resize((round(image.width * fraction), round(image.height * fraction)), Image.Resampling.BICUBIC)
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
    """Cache originals and copies, compare them and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of train.jsonl and images/")
    parser.add_argument("--model", required=True)
    parser.add_argument("--pretrained")
    parser.add_argument("--text-field", default="text")
    parser.add_argument("--pictures", dest="images", type=int, default=300)
    args = parser.parse_args()
    rows = [json.loads(line) for line in (args.data / "train.jsonl").open(encoding="utf-8")][: args.images]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        def cached(manifest: Path) -> Cache:
            return cache_images(
                CacheSettings(
                    source=manifest,
                    output=manifest.with_suffix(".zarr"),
                    model=args.model,
                    pretrained=args.pretrained,
                    image_root=folder,
                )
            ).cache

        def cache_altered(name: str, alter: Callable[[Image.Image], Image.Image]) -> Cache:
            (folder / name).mkdir()
            lines = []
            for i, row in enumerate(rows):
                alter(Image.open(args.data / row["image"]).convert("RGB")).save(folder / name / f"{i}.png")
                lines.append(json.dumps({"image": f"{name}/{i}.png", "text": row[args.text_field]}))
            manifest = folder / f"{name}.jsonl"
            manifest.write_text("\n".join(lines), encoding="utf-8")
            return cached(manifest)

        originals = cache_altered("originals", lambda image: image)
        print(
            "| copy | "
            + " | ".join(f"≥ {threshold:g}" for threshold in THRESHOLDS)
            + " | median cosine | nearest is the original |"
        )
        print("|---" + "|--:" * (len(THRESHOLDS) + 2) + "|")
        for name, alter in ALTERED.items():
            report = find_near_duplicates(originals, cache_altered(name, alter), threshold=-1, num_listed=-1)
            cosines = np.array([pair.cosine for pair in report.pairs])
            correct = np.mean([Path(pair.key).name == Path(pair.other_key).name for pair in report.pairs])
            shares = " | ".join(f"{np.mean(cosines >= threshold):.1%}" for threshold in THRESHOLDS)
            print(f"| {name} | {shares} | {np.median(cosines):.4f} | {correct:.1%} |", flush=True)


if __name__ == "__main__":
    main()
