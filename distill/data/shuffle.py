"""Order of an epoch: all rows shuffled, or shuffled by chunks where only whole chunks are read fast.

Both orders are functions of (seed, epoch). Any part of them is computed without the rest, so that no order of millions
of rows is kept.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_ROUNDS = 8
Chunk = tuple[int, int]
"""A chunk of the stored embeddings: view, and number along the images."""


class Stream(IntEnum):
    """Uses of the run's seed; each draws random numbers of its own."""

    IMAGES = 0
    CAPTIONS = 1
    CHUNKS = 2
    POOL = 3
    NEGATIVES = 4
    DROPOUT = 5
    TOKENS = 6
    VIEWS = 7


def random_keys(count: int, *seed: int) -> NDArray[np.uint64]:
    """Independent 64-bit keys from a seed of whole numbers, none negative."""
    return np.random.SeedSequence(seed).generate_state(count, np.uint64).astype(np.uint64)


def splitmix64(values: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """64 mixed bits of each value: splitmix64's finaliser (Steele et al. 2014, doi:10.1145/2660193.2660195)."""
    mixed = values + key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def random_below(bounds: NDArray[np.integer[Any]], values: NDArray[np.int64], key: np.uint64) -> NDArray[np.int64]:
    """A random number from 0 to bound - 1 for each value; the same value and key give the same number."""
    high = splitmix64(values.astype(np.uint64), key) >> np.uint64(32)
    return (high * bounds.astype(np.uint64) >> np.uint64(32)).astype(np.int64)


def random_numbers(values: NDArray[np.int64], key: np.uint64) -> NDArray[np.float64]:
    """A random number between 0 and 1, neither of them, for each value; equal for equal value and key."""
    return ((splitmix64(values.astype(np.uint64), key) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def drawn_order(
    values: NDArray[np.int64], groups: NDArray[np.int64], weights: NDArray[np.floating[Any]], key: np.uint64
) -> NDArray[np.int64]:
    """Order by group, and within one as drawn by weight, without repeats.

    Each value gets an exponential number of rate its weight, and those with the smallest come first (Efraimidis and
    Spirakis 2006, doi:10.1016/j.ipl.2005.11.003).

    Args:
        values: `[n]`, which the draw depends on.
        groups: `[n]`, of each value.
        weights: `[n]`, above 0.
        key: of the draw.
    """
    return np.lexsort((-np.log(random_numbers(values, key)) / weights, groups))


class Permutation:
    """Random order of 0 … n-1 that needs no memory: any part of it is computed from its key alone.

    A Feistel network over the bits of a position, each round mixing one half into the other, is a bijection for any
    mixing function (Luby and Rackoff 1988, doi:10.1137/0217022). Numbers past the end go through the network again
    until they fall within (cycle walking: Black and Rogaway 2002, doi:10.1007/3-540-45760-7_9, section 3).

    >>> order = Permutation(10, 7)
    >>> sorted(order(np.arange(10)).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    >>> bool((order(np.array([3])) == order(np.arange(10))[3]).all())
    True
    """

    def __init__(self, n: int, *seed: int) -> None:
        self._n = n
        num_bits = max(2, (n - 1).bit_length())  # the network's domain is smaller than 2 n, so few values need a retry
        self._halves = np.uint64(num_bits // 2), np.uint64(num_bits - num_bits // 2)
        self._keys = random_keys(NUM_ROUNDS, *seed)

    def __len__(self) -> int:
        return self._n

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Elements at some positions, each from 0 to n-1."""
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
                left ^= splitmix64(right, key) >> (np.uint64(64) - left_bits)
            else:
                right ^= splitmix64(left, key) >> (np.uint64(64) - right_bits)
        return (left << right_bits) | right


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkShuffle:
    """Sizes of a shuffle by chunks: chunks in random order form pools, whose rows are shuffled.

    A pool is trained on while the next one is read.

    Attributes:
        chunk_rows: rows of a chunk of the cache.
        pool_chunks: chunks of a pool.
    """

    chunk_rows: int
    pool_chunks: int


class ChunkShuffledOrder:
    """Order of n rows in an epoch, shuffled by chunks.

    >>> order = ChunkShuffledOrder(np.arange(10), ChunkShuffle(chunk_rows=2, pool_chunks=2), seed=0, epoch=0)
    >>> sorted(order(np.arange(10)).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    def __init__(self, rows: NDArray[np.int64], sizes: ChunkShuffle, seed: int, epoch: int) -> None:
        """Shuffle chunks and cut them into pools.

        Args:
            rows: `[n]`, ascending.
            sizes: of chunks and pools.
            seed: of the run.
            epoch: of the order.
        """
        num_chunks = -(-int(rows[-1] + 1) // sizes.chunk_rows)
        edges = np.searchsorted(rows, np.arange(num_chunks + 1) * sizes.chunk_rows)
        chunks = Permutation(num_chunks, seed, epoch, Stream.CHUNKS)(np.arange(num_chunks))
        self._chunks, self._pool_chunks = chunks, sizes.pool_chunks
        self._first = edges[chunks]  # index of each chunk's first row, in the epoch's order of chunks
        self._ends = np.cumsum(edges[chunks + 1] - edges[chunks])
        pool_ends = np.append(self._ends[sizes.pool_chunks - 1 : -1 : sizes.pool_chunks], len(rows))
        self._pool_edges = np.concatenate([[0], pool_ends])
        self._seed = (seed, epoch, Stream.POOL)

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices into `rows` at some positions of the order, each from 0 to n-1."""
        indices = np.empty_like(positions)
        pools = np.searchsorted(self._pool_edges, positions, "right") - 1
        for pool in np.unique(pools).tolist():
            start, end = self._pool_edges[pool : pool + 2].tolist()
            in_pool = pools == pool
            shuffled = start + Permutation(end - start, *self._seed, pool)(positions[in_pool] - start)
            chunk = np.searchsorted(self._ends, shuffled, "right")
            indices[in_pool] = self._first[chunk] + shuffled - np.where(chunk > 0, self._ends[chunk - 1], 0)
        return indices

    def chunks_near(self, start: int, stop: int) -> tuple[list[int], bool]:
        """Chunks of the pools that hold positions `start` to `stop`, and of the next pool; and whether there is one."""
        first, last = (np.searchsorted(self._pool_edges, [start, stop - 1], "right") - 1).tolist()
        chunks = self._chunks[first * self._pool_chunks : (last + 2) * self._pool_chunks]
        return chunks.tolist(), (last + 1) * self._pool_chunks < len(self._chunks)

    def first_chunks(self) -> list[int]:
        """Chunks of the first pool."""
        result: list[int] = self._chunks[: self._pool_chunks].tolist()
        return result
