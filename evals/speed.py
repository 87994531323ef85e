"""Speed and size of a CLIP: images and texts a second by batch, latency of one query, parameters, bytes."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..cache.progress import OnProgress, Progress, ignore_progress
from ..cache.write.image_decode import ResizeCrop
from ..inference.prompts import TEMPLATES, fill
from ..inference.towers import Towers

Side = Literal["text", "image"]
NAMES = {
    "en": ("cat", "red car"),
    "ru": ("кошка", "красная машина"),
    "zh": ("猫", "红色汽车"),
    "ko": ("고양이", "빨간 차"),
}
QUERIES = 50  # one by one, for the latency


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Throughput of a tower.

    Attributes:
        side: tower.
        batch: inputs at a time.
        per_s: inputs a second, median of the rounds.
        low: slowest round.
        high: fastest round.
    """

    side: Side
    batch: int
    per_s: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Time of one input, tokenizer included; of an image from its pixels on.

    Attributes:
        side: tower.
        p50_ms: median.
        p95_ms: 95th percentile.
    """

    side: Side
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True, kw_only=True)
class SpeedReport:
    """Speed and size of a CLIP.

    Attributes:
        rates: by side and batch.
        latencies: of one input.
        text_parameters: of the text tower; None where they are not known (ONNX).
        image_parameters: of the image tower; None likewise.
        num_bytes: of the files of the folder.
        num_texts: different texts that were encoded.
        device: that computed.
        threads: of the CPU that computed.
    """

    rates: list[Rate]
    latencies: list[Latency]
    text_parameters: int | None
    image_parameters: int | None
    num_bytes: int | None
    num_texts: int
    device: str
    threads: int

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        return asdict(self)


def default_texts() -> list[str]:
    """Short prompts in four languages."""
    return [fill(template, name) for tag, names in NAMES.items() for name in names for template in TEMPLATES[tag]]


def measure_speed(
    clip: Towers,
    texts: Sequence[str],
    batches: Sequence[int],
    *,
    seconds: float = 2.0,
    rounds: int = 3,
    on_progress: OnProgress = ignore_progress,
) -> SpeedReport:
    """Throughput and latency of both towers on random pixels and given texts.

    Args:
        clip: both towers, on their device.
        texts: at least one; they are repeated where a batch needs more.
        batches: sizes of batches.
        seconds: of each round, at least; a batch is finished.
        rounds: of each size and side.
        on_progress: called with the measurements of stage `speed`.
    """
    geometry = ResizeCrop.from_preprocess(clip.preprocess)
    shape = (max(batches), geometry.height, geometry.width, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    given = [texts[i % len(texts)] for i in range(max(*batches, QUERIES))]

    def encode_texts(start: int, stop: int) -> object:
        return clip.encode_texts(given[start:stop], batch_size=stop - start)

    def encode_images(start: int, stop: int) -> object:
        first = 0 if stop - start > 1 else start % len(pixels)
        return clip.encode_pixels(pixels[first : first + stop - start])

    sides: tuple[tuple[Side, Callable[[int, int], object]], ...] = (("text", encode_texts), ("image", encode_images))
    total, done = len(sides) * (len(batches) + 1), 0
    rates, latencies = [], []
    for side, encode in sides:
        for batch in batches:
            encode(0, batch)
            found = [_rate(encode, batch, seconds) for _ in range(rounds)]
            rates.append(Rate(side=side, batch=batch, per_s=float(np.median(found)), low=min(found), high=max(found)))
            on_progress(Progress("speed", done := done + 1, total))
        encode(0, 1)
        times = [_time(encode, i, i + 1) for i in range(QUERIES)]
        p50, p95 = np.quantile(times, [0.5, 0.95])
        latencies.append(Latency(side=side, p50_ms=1000 * float(p50), p95_ms=1000 * float(p95)))
        on_progress(Progress("speed", done := done + 1, total))
    folder, device = Path(clip.name), getattr(getattr(clip, "image_tower", None), "device", "cpu")
    return SpeedReport(
        rates=rates,
        latencies=latencies,
        text_parameters=getattr(clip, "text_parameters", None),
        image_parameters=getattr(clip, "image_parameters", None),
        num_bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else None,
        num_texts=len(set(given)),
        device=str(device),
        threads=_threads(),
    )


def _time(encode: Callable[[int, int], object], start: int, stop: int) -> float:
    started = time.perf_counter()
    encode(start, stop)  # gives numpy arrays, so a GPU has finished
    return time.perf_counter() - started


def _rate(encode: Callable[[int, int], object], batch: int, seconds: float) -> float:
    """Inputs a second over some batches."""
    started, num = time.perf_counter(), 0
    while time.perf_counter() - started < seconds or not num:
        encode(0, batch)
        num += batch
    return num / (time.perf_counter() - started)


def _threads() -> int:
    import sys

    if torch := sys.modules.get("torch"):
        return int(torch.get_num_threads())
    return len(os.sched_getaffinity(0))
