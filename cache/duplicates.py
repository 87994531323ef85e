"""Pictures that are the very same file as another one, counted over a whole cache by the hashes of their bytes."""

import numpy as np
from numpy.typing import NDArray

from .format import HASH, Status
from .store import Cache

HASHES_AT_A_TIME = 2**22  # of 16 bytes; more are counted in several rounds


def count_duplicates(cache: Cache) -> int | None:
    """Embedded pictures whose bytes another one before them has; None for a cache without hashes.

    Memory does not grow with the cache: a round takes the hashes of one range, and hashes spread evenly.
    """
    if not cache.has(HASH):
        return None
    rounds = -(-len(cache) // HASHES_AT_A_TIME)
    return sum(_count_of_round(cache, number, rounds) for number in range(rounds))


def _count_of_round(cache: Cache, number: int, rounds: int) -> int:
    parts: list[NDArray[np.uint64]] = []
    for chunk in range(cache.num_chunks):
        hashes = cache.hashes(chunk)
        chosen = (hashes[:, 0] % rounds == number) & (cache.status(chunk) == Status.EMBEDDED)
        parts.append(hashes[chosen & hashes.any(axis=1)])
    # Both halves as one value of 16 bytes, which sorts without care for its order.
    values = np.ascontiguousarray(np.concatenate(parts)).view("V16").ravel()
    return len(values) - len(np.unique(values))
