"""Int8 copies of rows, half the bytes of float16, and how far a cosine computed from one can be from the exact cosine.

A row x is approximated by m + s∘c: mean m and steps s of each feature, whole numbers c of 8 bits. With a query q whose
folded form q∘s is t·h + e, h of 8 bits:

    q·x = q·m + t·(h·c) + e·c + q·(x - m - s∘c)

The first two terms are computed, the others bounded by Cauchy-Schwarz from the norms of e, c, q and of the row's
residual.
"""

import math
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from .rows import Rows

Floats = NDArray[np.float32]
SAMPLE = 20_000  # rows from which means and steps are taken
ROWS_AT_A_TIME = 2048  # that are coded at once: in float32 they fit into the processor's cache
BLOCK_ROWS = 65_536  # that are compared at once: few calls, and the results stay in the processor's cache
NUM_THREADS = min(8, len(os.sched_getaffinity(0)))  # more do not read memory faster
LARGEST = 127
ROUNDING = 2e-6  # of float32 in what is computed here


def to_float32(emb: NDArray[np.floating]) -> Floats:
    """Embeddings in float32, cast by torch if it is loaded: numpy takes several times as long as the product itself."""
    if torch := sys.modules.get("torch"):
        result: Floats = torch.from_numpy(np.require(emb, requirements="W")).float().numpy()
        return result
    return emb.astype(np.float32, copy=False)


def products(a: NDArray[np.floating], b: NDArray[np.floating]) -> Floats:
    """Products `[n, m] float32` of rows `[n, D]` and `[m, D]`, cast and multiplied by one library.

    Two libraries, each with threads of its own, would wait for each other.
    """
    torch = sys.modules.get("torch")
    if torch is None or torch.get_float32_matmul_precision() != "highest":  # less would break the bound on the error
        return to_float32(a) @ to_float32(b).T
    first, second = (torch.from_numpy(np.require(each, requirements="W")).float() for each in (a, b))
    result: Floats = (first @ second.T).numpy()
    return result


def has_kernel() -> bool:
    """Whether numkong is installed, which multiplies int8."""
    try:
        import numkong  # noqa: F401
    except ImportError:
        return False
    return True


def steps_of(emb: Floats) -> tuple[Floats, Floats]:
    """Mean `[D]` and step `[D]` of each feature, such that rows like those given, `[n, D]`, fit into 8 bits."""
    mean = emb.mean(axis=0, dtype=np.float64).astype(np.float32)
    largest = np.abs(emb - mean).max(axis=0)
    return mean, np.maximum(largest / LARGEST, np.float32(1e-6))


def coded(emb: Floats, mean: Floats, steps: Floats) -> Floats:
    """Whole numbers `[n, D] float32` from -127 to 127 for rows `[n, D]`."""
    codes = emb - mean
    codes /= steps
    np.rint(codes, out=codes)
    return np.clip(codes, -LARGEST, LARGEST, out=codes)


class Codes:
    """Int8 copies of N rows of D features."""

    def __init__(self, rows: Rows, num: int, dim: int) -> None:
        """Code all rows, which reads them once.

        Args:
            rows: to copy.
            num: N.
            dim: D.
        """
        sample = rows.take(np.unique(np.linspace(0, num - 1, min(num, SAMPLE)).astype(np.int64)))
        self._mean, self._steps = steps_of(to_float32(sample))
        self._codes = np.empty((num, dim), np.int8)
        self._residual = np.empty(num, np.float32)
        norms = [0.0]
        for start in range(0, num, ROWS_AT_A_TIME):
            stop = min(start + ROWS_AT_A_TIME, num)
            emb = to_float32(rows.read(start, stop))
            codes = coded(emb, self._mean, self._steps)
            self._codes[start:stop] = codes
            norms.append(float(np.einsum("nd,nd->n", codes, codes).max()))
            codes *= self._steps
            emb = emb - self._mean - codes
            self._residual[start:stop] = np.sqrt(np.einsum("nd,nd->n", emb, emb))
        self._norm = math.sqrt(max(norms))
        self._threads = ThreadPoolExecutor(NUM_THREADS)

    def cosines(self, queries: Floats) -> Iterator[tuple[int, Floats, Floats]]:
        """Blocks of approximate cosines: first row, cosines `[Q, R]`, and the most by which each is wrong, `[Q, R]`."""
        import numkong

        folded = queries * self._steps
        unit = np.maximum(np.abs(folded).max(axis=1, keepdims=True) / LARGEST, np.finfo(np.float32).tiny)  # [Q, 1]
        codes = np.rint(folded / unit)
        left = np.linalg.norm(folded - codes * unit, axis=1, keepdims=True) * self._norm + ROUNDING
        norm = np.linalg.norm(queries, axis=1, keepdims=True)
        offset = queries @ self._mean[:, None]
        as_int8 = codes.astype(np.int8)

        def block(start: int) -> tuple[int, Floats, Floats]:
            rows = slice(start, start + BLOCK_ROWS)
            dots = np.asarray(numkong.cdist(as_int8, self._codes[rows], "dot"))  # releases the interpreter's lock
            error = norm * self._residual[None, rows] + left
            return start, (dots * unit + offset).astype(np.float32), error.astype(np.float32)

        # A few blocks at a time, so that results of a large cache do not pile up.
        for first in range(0, len(self._codes), BLOCK_ROWS * NUM_THREADS):
            yield from self._threads.map(
                block, range(first, min(first + BLOCK_ROWS * NUM_THREADS, len(self._codes)), BLOCK_ROWS)
            )
