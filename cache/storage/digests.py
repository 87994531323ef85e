"""Digests of texts, 16 bytes each, and where each digest stands first."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from .ragged import RaggedBytes

Digests = NDArray[np.uint64]
"""`[n, 2]`, of keys; two different keys have the same one at a chance that nobody lives to see."""


def digests_of(keys: RaggedBytes) -> Digests:
    """A digest of 128 bits for each key."""
    joined = b"".join([hashlib.blake2b(key, digest_size=16).digest() for key in keys.split()])
    return np.frombuffer(joined, np.uint64).reshape(-1, 2)


def first_lines(digests: Digests) -> NDArray[np.int64]:
    """For each line `[L]` the first line with the same digest.

    >>> first_lines(np.array([[5, 0], [7, 0], [5, 0], [5, 1]], np.uint64))
    array([0, 1, 0, 3])
    """
    order = np.argsort(digests[:, 0], kind="stable")
    same = np.zeros(len(order), bool)
    same[1:] = digests[order[1:], 0] == digests[order[:-1], 0]
    if same.any():
        if not (digests[order[1:], 1] == digests[order[:-1], 1])[same[1:]].all():
            order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable, too
        same[1:] = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
    starts = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    first = np.empty(len(order), np.int64)
    first[order] = order[starts]
    return first
