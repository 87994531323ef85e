"""Which images of a cache have captions, and a few pairs to look at, so that wrong ones are seen before training."""

from dataclasses import dataclass

import numpy as np

from ..format import CAPTION_IMAGE
from .cache import Cache


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """An image and what is said of it.

    Attributes:
        row: of the image.
        key: of the image.
        caption: the first one, None if it has none.
        num_captions: that it has.
    """

    row: int
    key: str
    caption: str | None
    num_captions: int


def sample_captioned_images(cache: Cache, num: int) -> tuple[list[CaptionedImage], int]:
    """Read a few pairs and count images without captions; of texts only the chunks that hold those few are touched.

    Args:
        cache: laid out.
        num: of pairs, from rows that are spread evenly over the cache, the first and the last among them.

    Returns:
        The pairs, and how many of all images have no caption.

    Raises:
        CacheError: a chunk is absent or damaged.
    """
    rows = np.linspace(0, len(cache) - 1, min(num, len(cache))).astype(np.int64)
    first, counts = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    num_captioned, start, last = 0, 0, -1
    for chunk in range(cache.arrays.array(CAPTION_IMAGE).cdata_shape[0]):
        image_index = cache.arrays.read_chunk(CAPTION_IMAGE, (chunk,))  # ascending
        num_captioned += int(np.count_nonzero(np.diff(image_index, prepend=last)))
        a, b = np.searchsorted(image_index, rows, side="left"), np.searchsorted(image_index, rows, side="right")
        first = np.where((counts == 0) & (b > a), start + a, first)
        counts += b - a
        start, last = start + len(image_index), image_index[-1]
    pairs = [
        CaptionedImage(row, cache.keys(row, row + 1)[0], cache.captions(at, at + 1)[0] if count else None, count)
        for row, at, count in zip(rows.tolist(), first.tolist(), counts.tolist(), strict=True)
    ]
    return pairs, len(cache) - num_captioned
