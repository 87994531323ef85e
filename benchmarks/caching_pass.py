"""Throughput of the caching pass against its ceilings: the slower of decoding alone and the tower alone.

    scripts/bench caching_pass --data DIR [--num 1500] [--rounds 3] [--deit deit_tiny.safetensors]
    scripts/bench caching_pass --data DIR --device cuda --precision bf16 --batch-size 256 --in-memory --num 6000

DIR has images in `images/`. Each round measures on the same images, in turn: the worker processes decoding into a sink
(ceiling of decoding); the tower on prepared pixels (ceiling of the tower); the whole pass into a cache on a local disk,
from the start of its workers to sealing. Each has all cores. The towers are DeiT-Tiny/16 and ViT-B/32 at 224 pixels;
ViT-B/32 has random weights, which take as long. A third tower computes nothing: the pass is then bound by decoding, as
with a GPU, which takes no core from it. With --in-memory the workers hold the files.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from clipglot.cache.format import CacheInfo, SourceInfo, Status
from clipglot.cache.read.cache import Cache
from clipglot.cache.sources.source import SourceRow, batched
from clipglot.cache.write.decode_pool import Block, BlockReader, decode_pool
from clipglot.cache.write.embed import embed_missing
from clipglot.cache.write.image_decode import ResizeCrop
from clipglot.cache.write.image_reader import reader_of
from clipglot.cache.write.plan import plan_cache
from clipglot.cache.write.report import PassReport
from clipglot.distill.cpu import num_usable_cores
from numpy.typing import NDArray

if __name__ == "__main__":  # the decoding processes import this file too, and need no torch
    import open_clip
    import torch
    from clipglot.distill.device import resolve_device
    from clipglot.distill.provenance import encoder_info
    from clipglot.encoders.image_queue import ImageQueue
    from clipglot.encoders.image_tower import ImageTower, load_image_tower
    from clipglot.jobs.bench import machine
    from safetensors.torch import save_file

NOTHING = "nothing"  # name of the third tower
READY = 4  # batches of pixels over which the tower's ceiling is measured repeatedly


@dataclass(frozen=True)
class MemoryReader:
    """Reader of files held in the memory of each worker."""

    files: dict[str, bytes]

    def read(self, start: int, keys: Sequence[str], locators: NDArray[np.int64] | None) -> Iterator[bytes | Status]:
        """The bytes of some images."""
        return (self.files[key] for key in keys)


@dataclass(frozen=True)
class Job:
    """A tower and the images for it."""

    tower: ImageTower
    images: Path
    keys: list[str]
    folder: Path
    workers: int
    batch_size: int
    in_memory: bool
    computes: bool  # false for the tower that computes nothing

    def planned(self) -> Cache:
        """A planned cache of all images, none embedded."""
        path = Path(tempfile.mkdtemp(dir=self.folder)) / "cache.zarr"
        source = SourceInfo(path="", sha256="", image_root=str(self.images), image_field="image", text_fields=["text"])
        info = CacheInfo(state="planning", encoder=encoder_info(self.tower), source=source, batch_size=self.batch_size)
        rows = (SourceRow(i, key, [key]) for i, key in enumerate(self.keys))
        plan_cache(path, batched(rows), info, hashed=True)
        return Cache(path, read_only=False)

    def reader(self, cache: Cache) -> BlockReader:
        """Reader that the workers take the files from."""
        if self.in_memory:
            return MemoryReader({key: (self.images / key).read_bytes() for key in self.keys})
        return reader_of(cache)

    def nothing(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features that take no time."""
        return np.ones((len(pixels), self.tower.dim), np.float32)

    def decode(self) -> float:
        """Images/s of the workers alone."""
        cache, started = self.planned(), time.perf_counter()
        geometry = ResizeCrop.from_preprocess(self.tower.preprocess)
        size = self.batch_size
        blocks = (Block(start, self.keys[start : start + size], None, (0,)) for start in range(0, len(self.keys), size))
        options = {"block_rows": size, "num_workers": self.workers, "max_pixels": cache.info.max_pixels}
        with decode_pool(self.reader(cache), geometry, **options) as decoder:
            num = sum(len(block.status) for block in decoder.decode(blocks))
            seconds = time.perf_counter() - started
        assert num == len(self.keys)
        return num / seconds

    def compute(self) -> float:
        """Images/s of the tower alone."""
        if not self.computes:
            return math.inf
        queue, (height, width) = ImageQueue(self.tower), self.tower.preprocess["size"]
        ready = queue.staging((READY, self.batch_size, height, width, 3))
        ready[:] = np.random.default_rng(0).integers(0, 256, ready.shape, np.uint8)
        num_batches = -(-len(self.keys) // self.batch_size)
        queue.submit(ready[0], self.batch_size)()
        started, waiting = time.perf_counter(), []
        for i in range(num_batches):
            waiting.append(queue.submit(ready[i % READY], self.batch_size))
            if len(waiting) > queue.in_flight:
                waiting.pop(0)()
        for features in waiting:
            features()
        return num_batches * self.batch_size / (time.perf_counter() - started)

    def whole(self) -> tuple[float, PassReport]:
        """Images/s of the pass, and its report."""
        cache = self.planned()
        tower = ImageQueue(self.tower) if self.computes else self.nothing
        report = embed_missing(cache, tower, reader=self.reader(cache), num_workers=self.workers)
        assert report.num_embedded == len(self.keys)
        return report.num_pictures / report.wall_s, report


def towers(folder: Path, deit: Path | None, device: torch.device) -> dict[str, Callable[[], ImageTower]]:
    """Constructors of the towers."""

    def vit_b_32() -> ImageTower:
        file = folder / "vit_b_32.safetensors"
        save_file(open_clip.create_model("ViT-B-32").state_dict(), file)
        return load_image_tower("ViT-B-32", str(file), device=device)

    def deit_tiny() -> ImageTower:
        file = deit or folder / "deit_tiny.safetensors"
        if deit is None:
            import timm

            save_file(timm.create_model("deit_tiny_patch16_224").state_dict(), file)
        return load_image_tower("timm/deit_tiny_patch16_224", str(file), device=device)

    return {"DeiT-Tiny/16": deit_tiny, "ViT-B/32": vit_b_32, NOTHING: deit_tiny}


def spread(values: list[float], digits: str = ",.2f") -> str:
    """Median (minimum .. maximum)."""
    return f"{statistics.median(values):{digits}} ({min(values):{digits}} .. {max(values):{digits}})"


def main() -> None:
    """Measure each tower and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/")
    parser.add_argument("--num", type=int, default=1500, help="number of images, the first by name")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=num_usable_cores())
    parser.add_argument("--towers", nargs="+", default=["DeiT-Tiny/16", "ViT-B/32", NOTHING], help="which of the three")
    parser.add_argument("--deit", type=Path, help="weights of timm's deit_tiny_patch16_224 (default: random)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--in-memory", action="store_true", help="read files from the workers' memory, not from disk")
    args = parser.parse_args()
    device = resolve_device(args.device)
    keys = sorted(path.name for path in (args.data / "images").iterdir())[: args.num]
    print(f"{machine(device)}, torch {torch.__version__}, {args.workers} workers, {torch.get_num_threads()} threads;")
    print(f"{len(keys):,} images in batches of {args.batch_size}, {args.rounds} rounds in turns, {args.precision}\n")
    print("| tower | decoding alone, images/s | tower alone | pass | pass / the lower one | bottleneck |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="clipglot-pass-") as name:
        for tower_name, make in towers(Path(name), args.deit, device).items():
            if tower_name not in args.towers:
                continue
            tower = replace(make(), precision=args.precision)
            images, computes = args.data / "images", tower_name != NOTHING
            job = Job(tower, images, keys, Path(name), args.workers, args.batch_size, args.in_memory, computes)
            decode, compute, whole, waited = [], [], [], ""
            for _ in range(args.rounds):
                decode.append(job.decode())
                compute.append(job.compute())
                speed, report = job.whole()
                whole.append(speed)
                waited = report.bottleneck
            ratios = [w / min(d, c) for d, c, w in zip(decode, compute, whole, strict=True)]
            cells = [spread(decode), spread(compute), spread(whole), spread(ratios), waited]
            print(f"| {tower_name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
