"""Embedding a few cached images again: the only check that tower, images and cache still belong together."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from ..cache.format import Status
from ..cache.location import to_location
from ..cache.read.cache import Cache
from ..cache.sources.source import RejectedImageError
from ..cache.write.image_decode import ResizeCrop, decode
from ..cache.write.image_reader import reader_of
from ..encoders.image_tower import ImageTower

MIN_COSINE = {
    "fp32": 0.9999,
    "fp16": 0.999,
    "bf16": 0.99,
}  # of a cached row (float16) with the tower's own output


@dataclass(frozen=True, kw_only=True)
class Probes:
    """What came of it.

    Attributes:
        num: images that were embedded again.
        min_cosine: their worst cosine with the cached rows, None without any.
        changed: one line for each that embeds to another vector.
        not_checked: why the others were not, None if there are no others.
    """

    num: int = 0
    min_cosine: float | None = None
    changed: tuple[str, ...] = ()
    not_checked: str | None = None


def reembed(cache: Cache, tower: ImageTower, sample: int, *, seed: int = 0) -> Probes:
    """Embed some of a cache's images again and compare, where they can still be read.

    Args:
        cache: of this very tower.
        tower: on its device.
        sample: images to draw.
        seed: of the draw.

    Raises:
        CacheError: a chunk that must be read is damaged, or a source that cannot be read.
    """
    info = cache.info
    if not info.source.images:
        return Probes(not_checked=f"{cache.path} holds texts, no images")
    root = to_location(info.source.image_root)
    if isinstance(root, Path) and not root.is_dir():
        return Probes(not_checked=f"the images are not below {root} any more")
    reader = reader_of(cache)
    embedded = np.flatnonzero(cache.status() == Status.EMBEDDED)
    rows = np.sort(np.random.default_rng(seed).choice(embedded, min(sample, len(embedded)), replace=False))
    if not len(rows):
        return Probes(not_checked=f"{cache.path} holds no embedded image")
    geometry = ResizeCrop.from_preprocess(tower.preprocess)
    cosines, changed, unread = [], [], []
    for row, cached in zip(rows.tolist(), cache.emb_rows(rows).astype(np.float64), strict=True):
        (key,) = keys = cache.keys(row, row + 1)
        (encoded,) = reader.read(row, keys, cache.locators(row, row + 1))
        try:
            if isinstance(encoded, Status):
                raise RejectedImageError(encoded)
            pixels = decode(BytesIO(encoded), geometry, info.max_pixels, scaled=info.decoding == "scaled")
        except RejectedImageError as rejected:
            unread.append(f"{key}: {rejected.status.label}")
            continue
        features = tower.encode(pixels[None])[0].astype(np.float64)
        cosines.append(float(features @ cached / np.linalg.norm(features) / np.linalg.norm(cached)))
        if not cosines[-1] >= MIN_COSINE[info.encoder.precision]:
            changed.append(
                f"{key} embeds to another vector than {cache.path} holds for it (cosine {cosines[-1]:.4f}): "
                "the image changed after caching, or the cache is damaged"
            )
    return Probes(
        num=len(cosines),
        min_cosine=min(cosines, default=None),
        changed=tuple(changed),
        not_checked=f"{len(unread)} of {len(rows)} could not be read again ({unread[0]})" if unread else None,
    )
