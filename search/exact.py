"""Exact search over all image embeddings of a cache. N images of D features, Q queries."""

from collections.abc import Iterator
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from ..cache.format import Status
from ..cache.progress import OnProgress, Progress, ignore_progress
from ..cache.read.cache import Cache
from .codes import Codes, has_kernel, products
from .nearest import Floats, Nearest
from .rows import Rows, StoredRows, resident_rows

READ_BYTES = 16 * 2**20  # of embeddings that are read at a time, in whole chunks
BLOCK_ROWS = 4096  # that are multiplied at once: in float32 they still fit into the processor's cache
FEW_QUERIES = 16  # up to so many are faster on int8; more share the cast to float32
UNIT_NORM = 1.01  # of a stored row, after rounding to float16


class ExactIndex:
    """All image embeddings of a cache, compared with each query.

    Cosines are those of the stored float16 rows, computed in float64 and rounded to float32. Searches may run in
    several threads.

    Attributes:
        rows: the embeddings that are searched.
    """

    def __init__(self, cache: Cache, *, resident: bool = False) -> None:
        """Search a cache.

        Args:
            cache: sealed, of N images.
            resident: for many searches: every checksum is compared once, rows stay mapped (or in memory, where the
                cache is no local folder), and with numkong installed an int8 copy, N x D bytes, is made at the first
                search. Otherwise each search reads the cache once, in little memory.

        Raises:
            DamagedCacheError: a chunk is absent or damaged.
        """
        self._cache = cache
        self._embedded = cache.status() == Status.EMBEDDED
        self._resident = resident
        self.rows: Rows = resident_rows(cache, check=True) if resident else StoredRows(cache)
        self._codes: Codes | None = None
        self._lock = Lock()  # of the codes, which are made once

    def search(
        self,
        queries: Floats,
        k: int,
        allowed: NDArray[np.bool_] | None = None,
        on_progress: OnProgress = ignore_progress,
    ) -> tuple[Floats, NDArray[np.int64]]:
        """Cosines and rows of the k images nearest to each query, best first, of equal ones the lower row first.

        Args:
            queries: `[Q, D] float32`, unit norm.
            k: images to find, at least 1.
            allowed: `[N] bool`, images to choose from; by default all that are embedded.
            on_progress: called in stage `compare` with the rows that are read.

        Returns:
            `[Q, K] float32` and `[Q, K] int64`, where K is k or the number of images to choose from if that is less.
        """
        chosen = self._embedded if allowed is None else self._embedded & allowed
        num = min(k, int(chosen.sum()))
        if not num or not len(queries):
            return np.empty((len(queries), num), np.float32), np.empty((len(queries), num), np.int64)
        nearest = Nearest(queries, num)
        if self._resident and len(queries) <= FEW_QUERIES and has_kernel():
            for start, cosines, error in self._coded().cosines(queries):
                block = np.arange(start, start + cosines.shape[1])
                nearest.add(
                    block,
                    cosines,
                    error,
                    chosen[start : start + len(block)],
                    lambda at, block=block: self.rows.take(block[at]),  # type: ignore[misc]
                )
        else:
            for start, emb in self._blocks():
                stop = start + len(emb)
                nearest_in_block(nearest, queries, np.arange(start, stop), emb, chosen[start:stop])
                on_progress(Progress("compare", stop, len(self._cache)))
        return nearest.result()

    def _coded(self) -> Codes:
        """The int8 copy, made when it is first needed."""
        with self._lock:
            if self._codes is None:
                self._codes = Codes(self.rows, len(self._cache), self._cache.info.encoder.dim)
            return self._codes

    def _blocks(self) -> Iterator[tuple[int, NDArray[np.float16]]]:
        """Image embeddings in blocks of whole chunks, each with its first row."""
        chunk = self._cache.info.chunk_rows
        step = max(1, READ_BYTES // (self._cache.info.encoder.dim * 2 * chunk)) * chunk
        for start in range(0, len(self._cache), step):
            yield start, self.rows.read(start, min(start + step, len(self._cache)))


def nearest_in_block(
    nearest: Nearest, queries: Floats, rows: NDArray[np.int64], emb: NDArray[np.float16], chosen: NDArray[np.bool_]
) -> None:
    """Compare queries with rows in float32.

    Args:
        nearest: takes what is near.
        queries: `[Q, D]`.
        rows: `[n]`, of the cache, ascending.
        emb: `[n, D]`, theirs.
        chosen: `[n]`, rows to choose from.
    """
    # Of a sum of D products in float32, in any order (Higham 2002, section 3.1).
    bound = queries.shape[1] * 2.0**-23 * UNIT_NORM
    error = (bound * np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
    for first in range(0, len(emb), BLOCK_ROWS):
        part = slice(first, first + BLOCK_ROWS)
        block = emb[part]
        nearest.add(rows[part], products(queries, block), error, chosen[part], block.__getitem__)
