"""128-bit digests of texts, and the first row of each distinct digest."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from .ragged_bytes import RaggedBytes

Digests = NDArray[np.uint64]
"""`[n, 2]`: one 128-bit digest per key. Collisions are too unlikely to matter."""


def digests_of(keys: RaggedBytes) -> Digests:
    """Compute the BLAKE2b digest of each key, `[n, 2]`."""
    raw = b"".join([hashlib.blake2b(key, digest_size=16).digest() for key in keys.split()])
    return np.frombuffer(raw, np.uint64).reshape(-1, 2)


class DigestIndex:
    """Digests `[N, 2]` in order, to find the row of each of others.

    >>> DigestIndex(np.array([[7, 0], [5, 1], [5, 0]], np.uint64)).rows_of(np.array([[5, 0], [5, 2]], np.uint64))
    array([ 2, -1])
    """

    def __init__(self, digests: Digests) -> None:
        self._order = np.lexsort((digests[:, 1], digests[:, 0]))
        self._sorted = digests[self._order]

    def rows_of(self, digests: Digests) -> NDArray[np.int64]:
        """The row of each digest, -1 for one that is not there."""
        known, rows = self._sorted, np.full(len(digests), -1)
        at = np.searchsorted(known[:, 0], digests[:, 0])
        while True:  # once, unless two digests have the same first half
            candidate = known[np.minimum(at, len(known) - 1)] if len(known) else np.zeros_like(digests)
            same = (at < len(known)) & (candidate[:, 0] == digests[:, 0])
            if not (same & (rows < 0)).any():
                return rows
            found = same & (candidate[:, 1] == digests[:, 1])
            rows[found] = self._order[at[found]]
            at += 1


def first_lines(digests: Digests) -> NDArray[np.int64]:
    """Index of the first line with the same digest, for each line, `[L]`.

    >>> first_lines(np.array([[5, 0], [7, 0], [5, 0], [5, 1]], np.uint64))
    array([0, 1, 0, 3])
    """
    order = np.argsort(digests[:, 0], kind="stable")
    ordered = digests[order, 0]
    same = np.zeros(len(order), bool)
    np.equal(ordered[1:], ordered[:-1], out=same[1:])
    del ordered  # of many lines, each array takes gigabytes
    if not same.any():
        return np.arange(len(order))
    if not (digests[order[1:], 1] == digests[order[:-1], 1])[same[1:]].all():
        order = np.lexsort((digests[:, 1], digests[:, 0]))  # also stable
    same[1:] = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
    starts = np.arange(len(order))
    starts[same] = 0
    np.maximum.accumulate(starts, out=starts)
    first = np.empty(len(order), np.int64)
    first[order] = order[starts]
    return first
