"""Rows of a cache that several searches read: mapped from a local folder, else in memory. N images of D features."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..cache.format import EMB
from ..cache.read.cache import Cache


class Rows(Protocol):
    """Embeddings of N images, `[N, D] float16`."""

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Some rows, in the order given."""

    def read(self, start: int, stop: int) -> NDArray[np.float16]:
        """A copy of rows `start` to `stop`."""


class StoredRows:
    """Rows that are read from the chunks of a cache each time, and checked: for a single search in little memory."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Some rows, in the order given."""
        return self._cache.emb_rows(rows)

    def read(self, start: int, stop: int) -> NDArray[np.float16]:
        """Rows `start` to `stop`."""
        return self._cache.emb_rows(np.arange(start, stop))


class LoadedRows:
    """Rows in memory, for caches that cannot be mapped: at a URL, or in an HDF5 file."""

    def __init__(self, cache: Cache) -> None:
        self._emb = cache.image_emb()

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Some rows, in the order given."""
        return self._emb[rows]

    def read(self, start: int, stop: int) -> NDArray[np.float16]:
        """Rows `start` to `stop`, not to be written to."""
        return self._emb[start:stop]


def resident_rows(cache: Cache, *, check: bool) -> Rows:
    """Rows for many searches.

    Args:
        cache: sealed.
        check: compare every mapped chunk with its checksum, which reads all of them once. Rows that are loaded always
            are.

    Raises:
        DamagedCacheError: a chunk is absent or damaged.
    """
    if not cache.arrays.is_folder:
        return LoadedRows(cache)
    mapped = cache.mapped(EMB)
    return mapped.check() if check else mapped
