"""Pseudo-random orders that need no memory: any part of one is computed from its key alone.

A Feistel network over the bits of a position, each round mixing one half into the other, is a bijection whatever the
mixing is (Luby & Rackoff 1988, doi:10.1137/0217022). Numbers past the end are sent through again until they fall within
(cycle walking: Black & Rogaway 2002, doi:10.1007/3-540-45760-7_9, section 3).
"""

from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_ROUNDS = 8

Positions = NDArray[np.int64]


class Stream(IntEnum):
    """What a seed is used for: each use draws from numbers of its own."""

    PICTURES = 0
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
