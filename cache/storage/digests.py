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


def first_lines(digests: Digests) -> NDArray[np.int64]:
    """Index of the first line with the same digest, for each line, `[L]`.

    >>> first_lines(np.array([[5, 0], [7, 0], [5, 0], [5, 1]], np.uint64))
    array([0, 1, 0, 3])
    """
    order = np.argsort(digests[:, 0], kind="stable")
    same = np.zeros(len(order), bool)
    same[1:] = digests[order[1:], 0] == digests[order[:-1], 0]
    if same.any():
        if not (digests[order[1:], 1] == digests[order[:-1], 1])[same[1:]].all():
            order = np.lexsort((digests[:, 1], digests[:, 0]))  # also stable
        same[1:] = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
    starts = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    first = np.empty(len(order), np.int64)
    first[order] = order[starts]
    return first
