"""Exact search over all image embeddings of a cache. N images of D features, Q queries."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..cache.format import Status
from ..cache.read.cache import Cache

BLOCK_BYTES = 64 * 2**20  # of image embeddings in float32 at a time


class ExactIndex:
    """All image embeddings of a cache, compared with each query."""

    def __init__(self, cache: Cache) -> None:
        """Search a cache.

        Args:
            cache: sealed, of N images.

        Raises:
            DamagedCacheError: a chunk is absent or damaged.
        """
        self._cache = cache
        self._embedded = cache.status() == Status.EMBEDDED

    def search(
        self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Cosines and rows of the k images nearest to each query, best first, of equal ones the lower row first.

        Args:
            queries: `[Q, D] float32`, unit norm.
            k: images to find, at least 1.
            allowed: `[N] bool`, images to choose from; by default all that are embedded.

        Returns:
            `[Q, K] float32` and `[Q, K] int64`, where K is k or the number of images to choose from if that is less.
        """
        chosen = self._embedded if allowed is None else self._embedded & allowed
        scores = np.empty((len(queries), 0), np.float32)
        rows = np.empty((len(queries), 0), np.int64)
        for start, block in self._blocks(queries.shape[1]):
            cosines = queries @ block.astype(np.float32).T  # [Q, R]
            cosines[:, ~chosen[start : start + len(block)]] = -np.inf
            all_scores = np.concatenate([scores, cosines], axis=1)
            own = np.broadcast_to(np.arange(start, start + len(block)), cosines.shape)
            all_rows = np.concatenate([rows, own], axis=1)
            best = np.argsort(-all_scores, axis=1, kind="stable")[:, :k]
            scores, rows = (np.take_along_axis(values, best, axis=1) for values in (all_scores, all_rows))
        num = min(k, int(chosen.sum()))
        return scores[:, :num], rows[:, :num]

    def _blocks(self, dim: int) -> Iterator[tuple[int, NDArray[np.float16]]]:
        """Image embeddings in blocks of whole chunks, each with its first row."""
        chunk = self._cache.info.chunk_rows
        step = max(1, BLOCK_BYTES // (dim * 4 * chunk)) * chunk
        for start in range(0, len(self._cache), step):
            yield start, self._cache.emb_rows(np.arange(start, min(start + step, len(self._cache))))
