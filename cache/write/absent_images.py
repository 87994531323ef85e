"""Absent images: a wrong image root stops a pass early, and a new one has the missing images tried again."""

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from ..errors import CacheError
from ..format import STATUS, Status
from ..location import to_location
from ..read.cache import Cache
from ..sources.image_root import fitting_root
from .decode_pool import BlockReader
from .report import PassReport

CHECKED_IMAGES = 1000  # that a pass tries before it asks whether there are any
SAMPLE = 64  # images all over the cache, which are then looked for
ABSENT = (Status.MISSING, Status.OUTSIDE_ROOT)


class AllAbsentError(CacheError):
    """A pass that has found none of its images."""


def require_some_image(
    cache: Cache, reader: Callable[[], BlockReader], chunks: Collection[int], report: PassReport
) -> None:
    """Stop a pass whose images are all absent, and so are others all over its chunks.

    Args:
        cache: of the pass.
        reader: opens its images.
        chunks: that the pass is to make.
        report: of the pass so far.

    Raises:
        AllAbsentError: the message names the path that was tried, and the image root that would fit.
    """
    if not is_all_absent(report):
        return
    rows = [cache.pending_rows(chunk) for chunk in chunks]
    starts = np.cumsum([0, *map(len, rows)])
    places = np.unique(np.linspace(0, starts[-1] - 1, SAMPLE).astype(int))
    sample = [
        rows[i][place - starts[i]]
        for i, place in zip(np.searchsorted(starts, places, "right") - 1, places, strict=True)
    ]
    images = reader()
    if any(_is_there(cache, images, row) for row in sample):
        return
    raise AllAbsentError(
        f"{cache.path}: none of the first {report.num_pictures:,} images is there, nor are others all over the source"
        f"{tried(cache, sample)}"
    )


def sees_some_image(cache: Cache, reader: BlockReader, rows: range) -> bool:
    """Whether one of some images is there, by a sample."""
    places = np.unique(np.linspace(0, len(rows) - 1, SAMPLE).astype(int))
    return any(_is_there(cache, reader, rows[place]) for place in places.tolist())


def is_all_absent(report: PassReport) -> bool:
    """Whether a pass has taken in images, and none of them was there."""
    return 0 < report.num_pictures <= sum(report.failed.get(status.label, 0) for status in ABSENT)


def tried(cache: Cache, rows: Collection[int]) -> str:
    """The path that was tried for the first of some absent images, and what to do, for messages."""
    locators = cache.locators(first := min(rows), first + 1)
    if locators is not None and locators[0, 0] >= 0:
        return ": check --image-root and the source"
    source = next(source for source in reversed(cache.info.sources) if source.first_row <= first)
    root, keys = to_location(source.image_root), [key for row in rows for key in cache.keys(row, row + 1)]
    fits = fitting_root(root, keys) if isinstance(root, Path) else None
    path = keys[0] if keys[0].startswith("/") else f"{root}/{keys[0]}"
    remedy = f"pass --image-root {fits}" if fits else "pass the --image-root that the paths start from"
    return f" (tried {path}): {remedy}"


def found_again(cache: Cache, reader: BlockReader, rows: range) -> list[int]:
    """The chunks that have absent images of which at least one is there by now.

    Args:
        cache: of one root or more.
        reader: of the images.
        rows: of the source whose root has changed.
    """
    chunks = []
    for chunk in sorted(cache.arrays.stored_chunks(f"{STATUS}/c")):
        span = cache.chunk_slice(chunk)
        absent = np.flatnonzero(np.isin(cache.status(chunk), ABSENT))
        absent = absent[(absent + span.start >= rows.start) & (absent + span.start < rows.stop)]
        if not len(absent):
            continue
        keys, locators = cache.keys(span.start, span.stop), cache.locators(span.start, span.stop)
        read = reader.read(
            span.start + int(absent[0]),
            [keys[i] for i in absent.tolist()],
            None if locators is None else locators[absent],
        )
        if any(image not in ABSENT for image in read):
            chunks.append(chunk)
    return chunks


def forget_absent(cache: Cache) -> None:
    """Have the chunks without a single embedding tried again by the next pass."""
    stored = cache.arrays.stored_chunks(f"{STATUS}/c")
    empty = [chunk for chunk in stored if not (cache.status(chunk) == Status.EMBEDDED).any()]
    cache.arrays.invalidate([(STATUS, (chunk,)) for chunk in empty])


def _is_there(cache: Cache, reader: BlockReader, row: int) -> bool:
    locators = cache.locators(row, row + 1)
    return next(reader.read(row, cache.keys(row, row + 1), locators)) not in ABSENT
