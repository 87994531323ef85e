"""Nearest rows by all cosines at once in float64: what every index is compared with."""

import numpy as np
from clipglot.cache.format import Status
from clipglot.cache.read.cache import Cache
from numpy.typing import NDArray


def nearest_rows(
    cache: Cache, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Cosines `[Q, K] float32` and rows of the images nearest to each query; of equal cosines the lower row first."""
    chosen = cache.status() == Status.EMBEDDED
    if allowed is not None:
        chosen &= allowed
    rows = np.flatnonzero(chosen)
    cosines = queries.astype(np.float64) @ cache.image_emb()[rows].astype(np.float64).T
    scores = cosines.astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), rows[order]


def unit_queries(rng: np.random.Generator, num: int, dim: int) -> NDArray[np.float32]:
    """Random queries, `[num, dim]`."""
    queries = rng.standard_normal((num, dim), np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    return queries


def draw_odd(rows: slice, dim: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Features with a feature that is always large, one that is always zero, outliers, and rows not embedded."""
    raw = rng.standard_normal((rows.stop - rows.start, dim), np.float32)
    raw[:, 0] += 5
    raw[:, 1] = 0
    raw[::17, -1] *= 40
    raw[::13] = 0
    return raw
