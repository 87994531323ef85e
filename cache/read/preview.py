"""Sample of captioned images of a cache, to see wrong pairs before training, and a count of images without captions."""

from dataclasses import dataclass

import numpy as np

from ..format import CAPTION_IMAGE
from .cache import Cache


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """Image of a cache with its first caption.

    Attributes:
        row: of the image.
        key: of the image.
        caption: first caption of the image; None without captions.
        num_captions: number of captions of the image.
    """

    row: int
    key: str
    caption: str | None
    num_captions: int


def sample_captioned_images(cache: Cache, num: int) -> tuple[list[CaptionedImage], int]:
    """Sample images evenly with their first captions, and count images without captions.

    Reads all of `captions/image`, but only those chunks of texts that hold the sampled ones.

    Args:
        cache: at least planned.
        num: number of images, evenly spaced from the first row to the last.

    Returns:
        The sampled images, and the number of all images without captions.

    Raises:
        CacheError: a chunk is absent or damaged.
    """
    rows = np.linspace(0, len(cache) - 1, min(num, len(cache))).astype(np.int64)
    first, counts = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    num_captioned, start, last = 0, 0, -1
    for chunk in range(cache.arrays.array(CAPTION_IMAGE).cdata_shape[0]):
        image_index = cache.arrays.read_chunk(CAPTION_IMAGE, (chunk,))  # ascending
        num_captioned += int(np.count_nonzero(np.diff(image_index, prepend=last)))
        begin, end = np.searchsorted(image_index, rows, side="left"), np.searchsorted(image_index, rows, side="right")
        first = np.where((counts == 0) & (end > begin), start + begin, first)
        counts += end - begin
        start, last = start + len(image_index), image_index[-1]
    pairs = [
        CaptionedImage(row, cache.keys(row, row + 1)[0], cache.captions(i, i + 1)[0] if count else None, count)
        for row, i, count in zip(rows.tolist(), first.tolist(), counts.tolist(), strict=True)
    ]
    return pairs, len(cache) - num_captioned
