"""The k largest cosines of each query, gathered from blocks of approximate ones with a known error.

Products of int8 are several times as fast as exact ones. Whatever computes them, the result is exact: of each block,
the rows whose approximate cosine could reach the k-th best so far are scored again, in float64. Q queries, blocks of R
rows, D features.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def exact_scores(query: Floats, emb: NDArray[np.float16]) -> Floats:
    """Cosines of a query `[D]` with rows `[n, D]`, computed in float64 and rounded to float32."""
    scores: Floats = (emb.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    return scores


def best_first(scores: Floats, rows: NDArray[np.int64], k: int) -> tuple[Floats, NDArray[np.int64]]:
    """The k best of scores `[n]` and their rows `[n]`, of equal scores the lower row first."""
    order = np.lexsort((rows, -scores))[:k]
    return scores[order], rows[order]


class Nearest:
    """The k nearest rows of each of Q queries among the blocks given so far."""

    def __init__(self, queries: Floats, k: int) -> None:
        """Begin with no rows.

        Args:
            queries: `[Q, D] float32`.
            k: rows to find, at least 1.
        """
        self._queries, self._k = queries, k
        self._scores = [np.empty(0, np.float32) for _ in queries]
        self._rows = [np.empty(0, np.int64) for _ in queries]
        self._worst = np.full(len(queries), -np.inf, np.float32)  # k-th best so far

    def add(
        self,
        block: NDArray[np.int64],
        approximate: Floats,
        error: Floats,
        chosen: NDArray[np.bool_],
        take: Callable[[NDArray[np.int64]], NDArray[np.float16]],
    ) -> None:
        """Add a block of rows, all later than those before it.

        Args:
            block: `[R] int64`, its rows, ascending.
            approximate: `[Q, R] float32`, cosines; overwritten.
            error: `[Q, R]`, `[Q, 1]` or `[1, R] float32`, by which each may be wrong at most.
            chosen: `[R] bool`, rows to choose from.
            take: gives embeddings of some of the block, by their positions in it.
        """
        if not chosen.any():
            return
        if not chosen.all():
            approximate[:, ~chosen] = -np.inf
        size = approximate.shape[1]
        for i in np.flatnonzero(np.isneginf(self._worst)).tolist():
            # Fewer than k rows so far: the k-th largest lower bound of this block is one that k of its rows reach.
            if size > self._k:
                lower = approximate[i] - np.broadcast_to(error, approximate.shape)[i]
                self._worst[i] = np.partition(lower, size - self._k)[size - self._k]
        near = approximate + error >= self._worst[:, None]
        for i in np.flatnonzero(near.any(axis=1)).tolist():
            local = np.flatnonzero(near[i])
            local = local[chosen[local]]
            scores = np.concatenate([self._scores[i], exact_scores(self._queries[i], take(local))])
            self._scores[i], self._rows[i] = best_first(scores, np.concatenate([self._rows[i], block[local]]), self._k)
            if len(self._scores[i]) == self._k:
                self._worst[i] = self._scores[i][-1]

    def result(self) -> tuple[Floats, NDArray[np.int64]]:
        """Cosines `[Q, K] float32` and rows `[Q, K] int64`, best first, where K is k or the number of rows given."""
        if not len(self._queries):
            return np.empty((0, 0), np.float32), np.empty((0, 0), np.int64)
        return np.stack(self._scores), np.stack(self._rows)
