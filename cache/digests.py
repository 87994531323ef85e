"""Texts by their digests, so that millions are counted and compared in 16 bytes each."""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

DIGEST_BYTES = 16


def digests(texts: Iterable[bytes]) -> NDArray[np.bytes_]:
    """A digest of each text, `[N] S16`; equal where the texts are.

    >>> a, b, c = digests([b"cat", b"dog", b"cat"])
    >>> bool(a == c), bool(a == b)
    (True, False)
    """
    joined = b"".join(hashlib.blake2b(text, digest_size=DIGEST_BYTES).digest() for text in texts)
    return np.frombuffer(joined, f"S{DIGEST_BYTES}")
