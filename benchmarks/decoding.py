"""Speed of JPEG decoding on one core: other libraries against Pillow, scaled decoding against exact.

    scripts/bench decoding --pictures DIR [--num 400] [--rounds 5] [--weights deit_tiny.safetensors]

The first table decodes files in memory to RGB arrays of full size with each installed library (simplejpeg, torchvision,
opencv-python-headless) and counts the arrays equal to Pillow's, byte for byte. The second goes on to the 224 × 224
pixels that a tower sees, as the caching pass does, beside plain calls of Pillow and the fastest library; with
--weights (of timm's deit_tiny_patch16_224) it also reports how far the features move. Speeds are per second of CPU
time; a ratio is the median over alternating rounds.
"""

import argparse
import importlib
import statistics
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from clipglot.cache.write.decode_pool import KEPT_BLOCKS
from clipglot.cache.write.image_decode import FORMATS, ResizeCrop, decode_views
from numpy.typing import NDArray
from PIL import Image, ImageOps

Decode = Callable[[bytes], NDArray[np.uint8]]
GEOMETRY = ResizeCrop(height=224, width=224, resize_mode="shortest", interpolation="bicubic", fill=0)


def pillow(data: bytes) -> NDArray[np.uint8]:
    """The reference decoder."""
    return np.asarray(Image.open(BytesIO(data), formats=FORMATS).convert("RGB"))


def libraries() -> dict[str, Decode]:
    """Decoders of the installed libraries."""
    decoders: dict[str, Decode] = {"Pillow": pillow}
    for name, package, make in (
        ("simplejpeg", "simplejpeg", lambda m: lambda data: m.decode_jpeg(data, "RGB")),
        ("torchvision", "torchvision", lambda m: torchvision_decoder()),
        ("OpenCV", "cv2", lambda m: opencv_decoder()),
    ):
        try:
            decoders[name] = make(importlib.import_module(package))
        except ImportError:
            print(f"{name} is not installed: left out")
    return decoders


def torchvision_decoder() -> Decode:
    """Decoder of torchvision, which always runs on one thread."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode(data: bytes) -> NDArray[np.uint8]:
        pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
        return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())

    return decode


def opencv_decoder() -> Decode:
    """Decoder of OpenCV, set to one thread."""
    import cv2

    cv2.setNumThreads(1)
    return lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def tower_pixels(decoders: dict[str, Decode]) -> dict[str, Decode]:
    """Pipelines from a file to the tower's pixels."""
    other = {
        f"{name}, resized by Pillow": lambda data, decode=decode: np.asarray(
            GEOMETRY.apply(Image.fromarray(decode(data)))
        )
        for name, decode in decoders.items()
        if name == "simplejpeg"
    }
    return {
        "plain calls of Pillow": lambda data: np.asarray(
            GEOMETRY.apply(ImageOps.exif_transpose(Image.open(BytesIO(data), formats=FORMATS)).convert("RGB"))
        ),
        "--decoding exact": lambda data: decode_views(BytesIO(data), GEOMETRY, [GEOMETRY.apply])[0],
        "--decoding scaled": lambda data: decode_views(BytesIO(data), GEOMETRY, [GEOMETRY.apply], scaled=True)[0],
    } | other


def in_turns(decoders: dict[str, Decode], files: list[bytes], rounds: int) -> dict[str, list[float]]:
    """Images per second of CPU time, by decoder and round."""
    speeds: dict[str, list[float]] = {name: [] for name in decoders}
    for _ in range(rounds):
        for name, decode in decoders.items():
            started = time.process_time()
            for data in files:
                decode(data)
            speeds[name].append(len(files) / (time.process_time() - started))
    return speeds


def print_speeds(speeds: dict[str, list[float]], notes: dict[str, list[str]]) -> None:
    """Print for each decoder its speed, its ratio to the first one in the same round, the spread and the notes."""
    first = next(iter(speeds.values()))
    for name, values in speeds.items():
        ratios = [a / b for a, b in zip(values, first, strict=True)]
        spread = f"{min(ratios):.2f} .. {max(ratios):.2f}"
        cells = [f"{statistics.median(values):,.1f}", f"{statistics.median(ratios):.2f}", spread, *notes[name]]
        print(f"| {name} | {' | '.join(cells)} |")


def count_equal(files: list[bytes], decoders: dict[str, Decode]) -> dict[str, list[str]]:
    """Number of images equal to those of the first decoder, byte for byte."""
    first = next(iter(decoders.values()))
    counts = dict.fromkeys(decoders, 0)
    for data in files:
        expected = first(data)
        for name, decode in decoders.items():
            counts[name] += np.array_equal(decode(data), expected)
    return {name: [f"{count} of {len(files)}"] for name, count in counts.items()}


def cosines(files: list[bytes], decoders: dict[str, Decode], weights: Path) -> dict[str, list[str]]:
    """Minimum and mean cosine of DeiT-Tiny's features to those of the first decoder."""
    from clipglot.encoders.image_tower import load_image_tower

    tower, features = load_image_tower("timm/deit_tiny_patch16_224", str(weights)), {}
    for name, decode in decoders.items():
        raw = np.concatenate([tower.encode(decode(data)[None]) for data in files]).astype(np.float64)
        features[name] = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    first = next(iter(features.values()))
    cosine = {name: (first * emb).sum(1) for name, emb in features.items()}
    return {name: [f"{values.min():.4f}", f"{values.mean():.4f}"] for name, values in cosine.items()}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", dest="images", type=Path, required=True, help="folder of JPEGs")
    parser.add_argument("--num", type=int, default=400, help="number of images, the first by name")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--weights", type=Path, help="of timm's deit_tiny_patch16_224")
    args = parser.parse_args()
    Image.core.set_blocks_max(KEPT_BLOCKS)  # as the decoding processes of a pass do
    paths = sorted(path for path in args.images.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))[: args.num]
    files = [path.read_bytes() for path in paths]
    megapixels = statistics.median(np.prod(Image.open(BytesIO(data)).size) / 1e6 for data in files)
    print(f"{len(files)} JPEGs, median {megapixels:.2f} megapixels, {args.rounds} alternating rounds\n")
    print("| to RGB of full size | images/s | / Pillow | min .. max | Pillow's pixels |\n|---|---|---|---|---|")
    decoders = libraries()
    print_speeds(in_turns(decoders, files, args.rounds), count_equal(files, decoders))
    head = "| minimum cosine | mean cosine " * bool(args.weights)
    print(f"\n| to the tower's pixels | images/s | / Pillow | min .. max | Pillow's pixels {head}|")
    print("|---|---|---|---|---|" + "---|---|" * bool(args.weights))
    pipelines = tower_pixels(decoders)
    notes = count_equal(files, pipelines)
    if args.weights:
        notes = {name: notes[name] + more for name, more in cosines(files, pipelines, args.weights).items()}
    print_speeds(in_turns(pipelines, files, args.rounds), notes)


if __name__ == "__main__":
    main()
