"""Images that a search found, with their keys, captions and languages. Q queries, K images each."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..cache.read.cache import Cache

MOST_BETWEEN = 1024  # rows between two that are read at once: one read of a thousand costs as much as two of one


@dataclass(frozen=True, kw_only=True)
class CaptionedHit:
    """An image of a cache that a search found.

    Attributes:
        row: of the image in the cache.
        key: its path, as the source names it.
        score: cosine with the query.
        captions: of the image.
        languages: tag of each caption, "" for one without.
    """

    row: int
    key: str
    score: float
    captions: list[str]
    languages: list[str]


def captioned_hits(cache: Cache, scores: NDArray[np.float32], rows: NDArray[np.int64]) -> list[list[CaptionedHit]]:
    """Images that a search found, in the order given, Q lists.

    Args:
        cache: that was searched.
        scores: `[Q, K] float32`.
        rows: `[Q, K] int64`.

    Raises:
        CacheError: keys or captions are absent or damaged.
    """
    texts = _texts_by_row(cache, np.unique(rows))
    return [
        [
            CaptionedHit(row=row, key=texts[row][0], score=score, captions=texts[row][1], languages=texts[row][2])
            for score, row in zip(*found, strict=True)
        ]
        for found in zip(scores.tolist(), rows.tolist(), strict=True)
    ]


def _texts_by_row(cache: Cache, rows: NDArray[np.int64]) -> dict[int, tuple[str, list[str], list[str]]]:
    """Key, captions and languages of some ascending rows."""
    texts: dict[int, tuple[str, list[str], list[str]]] = {}
    if not len(rows):
        return texts
    caption_image = cache.caption_image()
    for run in np.split(rows, np.flatnonzero(np.diff(rows) > MOST_BETWEEN) + 1):
        start, stop = int(run[0]), int(run[-1]) + 1
        first, end = np.searchsorted(caption_image, [start, stop]).tolist()
        keys, captions = cache.keys(start, stop), cache.captions(first, end)
        languages = cache.languages(first, end) or [""] * len(captions)
        for row in run.tolist():
            a, b = (np.searchsorted(caption_image[first:end], [row, row + 1])).tolist()
            texts[row] = keys[row - start], captions[a:b], languages[a:b]
    return texts
