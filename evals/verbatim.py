"""Captions and keys that stand word for word in one cache or two, by digests of 16 bytes."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..cache.columns import digests_of
from ..cache.ragged import Texts
from ..cache.store import Cache

TEXTS_AT_A_TIME = 65_536


def count_repeated_captions(cache: Cache, against: Cache | None = None) -> tuple[int, int]:
    """How many captions a cache has, and how many of these stand there more than once.

    With a second cache, how many that one has, and how many of these stand in the first.
    """
    ours, counts = np.unique(_caption_digests(cache), return_counts=True)
    if against is None:
        return int(counts.sum()), int(counts[counts > 1].sum())
    theirs = _caption_digests(against)
    return len(theirs), int(np.isin(theirs, ours).sum())


def count_same_keys(cache: Cache, against: Cache) -> int:
    """Pictures of the second cache whose key the first has, too."""
    ours, theirs = (_digests(each.keys, len(each)) for each in (cache, against))
    return int(np.isin(theirs, ours).sum())


def _caption_digests(cache: Cache) -> NDArray[np.bytes_]:
    return _digests(cache.captions, cache.info.num_captions)


def _digests(read: Callable[[int, int], list[str]], num: int) -> NDArray[np.bytes_]:
    parts = [digests_of(Texts.of([]))] + [
        digests_of(Texts.of([text.encode() for text in read(start, min(start + TEXTS_AT_A_TIME, num))]))
        for start in range(0, num, TEXTS_AT_A_TIME)
    ]
    return np.concatenate(parts).view("S16").ravel()
