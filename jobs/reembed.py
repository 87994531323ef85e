"""Re-embedding of a few images: the check that image tower, images and stored embeddings still belong together."""

from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache.format import RejectedImageError, Status
from ..cache.location import Location, to_location
from ..cache.read.cache import Cache
from ..cache.sources.embeddings import EmbeddingFileSource
from ..cache.sources.image_root import open_below
from ..cache.write.image_decode import ResizeCrop, decode
from ..cache.write.image_reader import reader_of
from ..distill.errors import DistillError
from ..encoders.image_tower import ImageTower

# Least cosine of the tower's output with a cached row (float16), by the precision that the row was computed in.
MIN_COSINE = {"fp32": 0.9999, "fp16": 0.999, "bf16": 0.99}
NUM_IMPORTED = 8
MIN_IMPORTED_COSINE = 0.99  # half precision and another decoder cost some thousandths, another tower nearly all


@dataclass(frozen=True, kw_only=True)
class Probes:
    """The images that were embedded again.

    Attributes:
        num: of them.
        min_cosine: their worst cosine with the cached rows, None without any.
        changed: one line for each that embeds to another vector.
        not_checked: why the others were not, None if there are no others.
    """

    num: int = 0
    min_cosine: float | None = None
    changed: tuple[str, ...] = ()
    not_checked: str | None = None


def reembed(
    cache: Cache, tower: ImageTower, sample: int, *, image_root: Location | None = None, seed: int = 0
) -> Probes:
    """Embed some of a cache's images again and compare, where they can still be read.

    Args:
        cache: of this very tower.
        tower: on its device.
        sample: images to draw.
        image_root: where the images of the first source are now; by default where the cache says.
        seed: of the draw.

    Raises:
        CacheError: a chunk that must be read is damaged, or a source that cannot be read.
    """
    info = cache.info
    if not info.source.images:
        return Probes(not_checked=f"{cache.path} holds texts, no images")
    root = image_root.absolute() if image_root else to_location(info.source.image_root)
    if isinstance(root, Path) and not root.is_dir():
        return Probes(not_checked=f"the images are not below {root} any more")
    sources = [replace(info.source, image_root=str(root)), *info.appended]
    reader = reader_of(cache, sources=sources)
    embedded = np.flatnonzero(cache.status() == Status.EMBEDDED)
    rows = np.sort(np.random.default_rng(seed).choice(embedded, min(sample, len(embedded)), replace=False))
    if not len(rows):
        return Probes(not_checked=f"{cache.path} holds no embedded image")
    geometry = ResizeCrop.from_preprocess(tower.preprocess)
    cosines, changed, unread = [], [], []
    for row, cached in zip(rows.tolist(), cache.emb_rows(rows), strict=True):
        (key,) = keys = cache.keys(row, row + 1)
        (encoded,) = reader.read(row, keys, cache.locators(row, row + 1))
        try:
            if isinstance(encoded, Status):
                raise RejectedImageError(encoded)
            pixels = decode(BytesIO(encoded), geometry, info.max_pixels, scaled=info.decoding == "scaled")
        except RejectedImageError as rejected:
            unread.append(f"{key}: {rejected.status.label}")
            continue
        cosines.append(_cosine(tower, pixels, cached))
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


def reembed_imported(
    source: EmbeddingFileSource, tower: ImageTower, root: Path, rows: NDArray[np.int64], keys: list[str]
) -> list[float]:
    """Embed a few images again whose embeddings are to be imported.

    Args:
        source: of the embeddings.
        tower: said to have made them.
        root: folder that keys are relative to.
        rows: candidates, of which the first `NUM_IMPORTED` that can be read are embedded.
        keys: of these rows.

    Returns:
        The cosine of each image with its row.

    Raises:
        DistillError: another tower or another order, or not one image could be read.
    """
    geometry, cosines, reason = ResizeCrop.from_preprocess(tower.preprocess), list[float](), "no such folder"
    for row, key, imported in zip(rows.tolist(), keys, source.read(rows), strict=True):
        norm = np.linalg.norm(imported)
        if len(cosines) == NUM_IMPORTED or not (norm > 0 and np.isfinite(norm)):
            continue
        try:
            with open_below(root.resolve(), key) as file:
                pixels = decode(file, geometry)
        except RejectedImageError as rejected:
            reason = f"{key}: {rejected.status.label}"
            continue
        cosines.append(_cosine(tower, pixels, imported))
        if not cosines[-1] >= MIN_IMPORTED_COSINE:
            raise DistillError(
                f"{tower_name(tower)} embeds {key} to another vector than {source.where(row)} (cosine "
                f"{cosines[-1]:.4f}, expected {MIN_IMPORTED_COSINE} at least): pass the --model and --pretrained that "
                "made the embeddings, and captions in the order of their rows"
            )
    if not cosines:
        raise DistillError(
            f"no image could be read below {root} to check the tower ({reason}): pass the --image-root that the "
            "names of images start from, or none to import unchecked"
        )
    return cosines


def tower_name(tower: ImageTower) -> str:
    """An image tower's model and weights as a user names them."""
    return f"{tower.model} / {tower.pretrained}" if tower.pretrained else tower.model


def _cosine(tower: ImageTower, pixels: NDArray[np.uint8], stored: NDArray[Any]) -> float:
    """Cosine of the tower's features of one image `[H, W, 3]` with a stored embedding `[D]`."""
    features, stored = tower.encode(pixels[None])[0].astype(np.float64), stored.astype(np.float64)
    return float(features @ stored / np.linalg.norm(features) / np.linalg.norm(stored))
