"""The order of an epoch where only whole chunks can be read fast, as from an object store.

Chunks are shuffled, as many as a buffer holds form a pool, and the rows of a pool are shuffled. One pool is read while
the one before it is trained on.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_ROUNDS = 8
Positions = NDArray[np.int64]


class Stream(IntEnum):
    """What a seed is used for: each use draws from numbers of its own."""

    IMAGES = 0
    CAPTIONS = 1
    CHUNKS = 2
    POOL = 3
    NEGATIVES = 4
    DROPOUT = 5
    TOKENS = 6
    VIEWS = 7


def keys(count: int, *seed: int) -> NDArray[np.uint64]:
    """Independent 64-bit keys from whole numbers that are not negative."""
    return np.random.SeedSequence(seed).generate_state(count, np.uint64).astype(np.uint64)


def mix(values: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """64 mixed bits of each value: splitmix64's finaliser (Steele et al. 2014, doi:10.1145/2660193.2660195)."""
    mixed = values + key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def choose(values: Positions, count: NDArray[np.integer[Any]], key: np.uint64) -> Positions:
    """For each value a number from 0 to its `count` - 1, at random but always the same."""
    high = mix(values.astype(np.uint64), key) >> np.uint64(32)
    return (high * count.astype(np.uint64) >> np.uint64(32)).astype(np.int64)


class Permutation:
    """A random order of 0 … n-1.

    >>> order = Permutation(10, 7)
    >>> sorted(order(np.arange(10)).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    >>> bool((order(np.array([3])) == order(np.arange(10))[3]).all())
    True
    """

    def __init__(self, n: int, *seed: int) -> None:
        self._n = n
        num_bits = max(2, (n - 1).bit_length())  # the network's domain is smaller than 2 n, so few are sent again
        self._halves = np.uint64(num_bits // 2), np.uint64(num_bits - num_bits // 2)
        self._keys = keys(NUM_ROUNDS, *seed)

    def __len__(self) -> int:
        return self._n

    def __call__(self, positions: Positions) -> Positions:
        """What stands at some positions, each from 0 to n-1."""
        values = self._network(positions.astype(np.uint64))
        beyond = np.flatnonzero(values >= self._n)
        while len(beyond):
            values[beyond] = self._network(values[beyond])
            beyond = beyond[values[beyond] >= self._n]
        return values.astype(np.int64)

    def _network(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left_bits, right_bits = self._halves
        left, right = values >> right_bits, values & ((np.uint64(1) << right_bits) - np.uint64(1))
        for i, key in enumerate(self._keys):
            if i % 2 == 0:
                left ^= mix(right, key) >> (np.uint64(64) - left_bits)
            else:
                right ^= mix(left, key) >> (np.uint64(64) - right_bits)
        return (left << right_bits) | right


Chunk = tuple[int, int]
"""A chunk of the stored embeddings: view, and number along the images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkShuffle:
    """How to pool.

    Attributes:
        chunk_rows: rows of a chunk of the cache.
        pool_chunks: chunks of a pool.
    """

    chunk_rows: int
    pool_chunks: int


class ChunkShuffledOrder:
    """An epoch's order of n rows, any part of which is known without the rest.

    >>> order = ChunkShuffledOrder(np.arange(10), ChunkShuffle(chunk_rows=2, pool_chunks=2), 0, 0)
    >>> sorted(order(np.arange(10)).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    def __init__(self, rows: NDArray[np.int64], pooling: ChunkShuffle, seed: int, epoch: int) -> None:
        """Shuffle chunks and cut them into pools.

        Args:
            rows: `[n]`, ascending: those to be put in order.
            pooling: sizes.
            seed: of the run.
            epoch: of the order.
        """
        num_chunks = -(-int(rows[-1] + 1) // pooling.chunk_rows)
        edges = np.searchsorted(rows, np.arange(num_chunks + 1) * pooling.chunk_rows)
        chunks = Permutation(num_chunks, seed, epoch, Stream.CHUNKS)(np.arange(num_chunks))
        self._chunks, self._pool_chunks = chunks, pooling.pool_chunks
        self._first = edges[chunks]  # of each chunk, in the epoch's order
        self._ends = np.cumsum(edges[chunks + 1] - edges[chunks])
        pool_ends = np.append(self._ends[pooling.pool_chunks - 1 : -1 : pooling.pool_chunks], len(rows))
        self._pool_edges = np.concatenate([[0], pool_ends])
        self._seed = (seed, epoch, Stream.POOL)

    def __call__(self, positions: Positions) -> Positions:
        """Indices into `rows` of what stands at some positions, each from 0 to n-1."""
        found = np.empty_like(positions)
        pools = np.searchsorted(self._pool_edges, positions, "right") - 1
        for pool in np.unique(pools).tolist():
            start, end = self._pool_edges[pool : pool + 2].tolist()
            here = pools == pool
            shuffled = start + Permutation(end - start, *self._seed, pool)(positions[here] - start)
            chunk = np.searchsorted(self._ends, shuffled, "right")
            found[here] = self._first[chunk] + shuffled - np.where(chunk > 0, self._ends[chunk - 1], 0)
        return found

    def chunks_near(self, start: int, stop: int) -> tuple[list[int], bool]:
        """Chunks of the pools that hold positions `start` to `stop`, and of one more; whether there was one more."""
        first, last = (np.searchsorted(self._pool_edges, [start, stop - 1], "right") - 1).tolist()
        chunks = self._chunks[first * self._pool_chunks : (last + 2) * self._pool_chunks]
        return chunks.tolist(), (last + 1) * self._pool_chunks < len(self._chunks)

    def first_chunks(self) -> list[int]:
        """Chunks of the first pool."""
        result: list[int] = self._chunks[: self._pool_chunks].tolist()
        return result
