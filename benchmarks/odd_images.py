"""Odd images of known pixels through the decoder and a real tower: which are embedded, how well, and which refused.

    scripts/bench odd_images [--num 10000] [--seed 1000] [--weights deit_tiny.safetensors]

The images are those of tests/support/odd_images.py. Each is decoded to its own size, where a lossless one has to have
the right pixels, and to the 224 × 224 that a tower sees. Cosines are of 32 × 32 averages, and with --weights, of timm's
deit_tiny_patch16_224, of the tower's features; the other side is the right pixels through open_clip's own transform.
Exits with 1 if anything is not as expected.
"""

import argparse
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from clipglot.cache.format import RejectedImageError
from clipglot.cache.write.image_decode import ResizeCrop, decode
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.odd_images import OddImage, cosine, fault_of, odd_images

BATCH = 64
Embed = Callable[[list[NDArray[Any]]], NDArray[np.float64]]


def tower_of(weights: Path) -> tuple[Embed, ResizeCrop, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]]:
    """DeiT-Tiny: unit features of images, its geometry, and open_clip's transform up to the normalisation."""
    import open_clip.transform as upstream
    from clipglot.encoders.image_tower import load_image_tower
    from torchvision.transforms import Compose

    tower = load_image_tower("timm/deit_tiny_patch16_224", str(weights))
    whole = upstream.image_transform_v2(upstream.PreprocessCfg(**tower.preprocess), is_train=False)
    before_tensor = Compose(whole.transforms[:-2])  # drops ToTensor and Normalize

    def embed(images: list[NDArray[Any]]) -> NDArray[np.float64]:
        raw = tower.encode(np.stack(images)).astype(np.float64)
        return raw / np.linalg.norm(raw, axis=1, keepdims=True)

    def transform(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.asarray(before_tensor(Image.fromarray(pixels)))

    return embed, ResizeCrop.from_preprocess(tower.preprocess), transform


def status_of(image: OddImage, geometry: ResizeCrop) -> tuple[str, NDArray[np.uint8] | None]:
    """What became of an image, and its pixels at some geometry."""
    try:
        return "embedded", decode(BytesIO(image.content), geometry)
    except RejectedImageError as rejected:
        return rejected.status.label, None


def main() -> None:
    """Draw, decode, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--weights", type=Path, help="of timm's deit_tiny_patch16_224")
    args = parser.parse_args()
    started = time.process_time()
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    averages: dict[str, float] = defaultdict(lambda: 1.0)
    features: dict[str, float] = defaultdict(lambda: 1.0)
    pending: list[tuple[str, NDArray[Any], NDArray[Any]]] = []
    faults = []
    tower = tower_of(args.weights) if args.weights else None

    def compare_features() -> None:
        if tower is None or not pending:
            return
        kinds, ours, theirs = zip(*pending, strict=True)
        for kind, similarity in zip(kinds, (tower[0](list(ours)) * tower[0](list(theirs))).sum(1), strict=True):
            features[kind] = min(features[kind], float(similarity))
        pending.clear()

    for i, image in enumerate(odd_images(args.num, args.seed)):
        height, width = image.pixels.shape[:2]
        own = ResizeCrop(height=height, width=width, resize_mode="squash", interpolation="bicubic", fill=0)
        status, pixels = status_of(image, own)
        counts[image.kind][status] += 1
        fault = fault_of(image)
        if fault is not None:
            faults.append(f"image {i}, {image.kind}, {image.axes}: {fault}")
        if pixels is None:
            continue
        averages[image.kind] = min(averages[image.kind], cosine(pixels, image.pixels))
        if tower is not None:
            _, seen = status_of(image, tower[1])
            assert seen is not None
            pending.append((image.kind, seen, tower[2](np.ascontiguousarray(image.pixels))))
        if len(pending) == BATCH:
            compare_features()
    compare_features()
    print("| kind | images | embedded | refused | least cosine of averages | least cosine of features |")
    print("|---|--:|--:|---|--:|--:|")
    total = Counter[str]()
    for kind in sorted(counts):
        total.update(counts[kind])
        print(row_of(kind, counts[kind], averages[kind], features[kind] if tower else None))
    print(row_of("all", total, min(averages.values()), min(features.values()) if tower else None))
    print(f"\n{len(faults)} not as expected; {time.process_time() - started:.0f} s of processor time.")
    for fault in faults[:20]:
        print(fault)
    sys.exit(1 if faults else 0)


def row_of(kind: str, counts: Counter[str], average: float, feature: float | None) -> str:
    """A line of the table."""
    refused = ", ".join(f"{num:,} {status}" for status, num in counts.most_common() if status != "embedded")
    cells = [kind, f"{counts.total():,}", f"{counts['embedded']:,}", refused, f"{average:.4f}"]
    return f"| {' | '.join([*cells, '' if feature is None else f'{feature:.4f}'])} |"


if __name__ == "__main__":
    main()
