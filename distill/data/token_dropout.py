"""Dropping tokens of captions: the tower has to do with what is left, and never sees a caption the same way twice.

Iyyer et al. 2015, doi:10.3115/v1/P15-1162, section 2.2 (word dropout).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...encoders.packing import concatenated_ranges
from .shuffle import mix

POSITIONS = 2**20  # more than a caption has
Ints = NDArray[np.int64]


def drop_tokens(
    ids: NDArray[Any], lengths: Ints, captions: Ints, *, share: float, key: np.uint64
) -> tuple[NDArray[Any], Ints]:
    """Leave tokens out of captions at random; each caption keeps its first and its last, BOS and EOS, and one between.

    Args:
        ids: `[T]`, the captions `[B]` joined.
        lengths: `[B]`, tokens of each.
        captions: `[B]`, their numbers: what is dropped follows from number, position and key alone.
        share: chance of each token to be dropped.
        key: of this draw.

    Returns:
        Ids and lengths of what is left.

    >>> ids, lengths = np.array([1, 7, 8, 9, 2, 1, 2]), np.array([5, 2])
    >>> drop_tokens(ids, lengths, np.array([4, 5]), share=0.9, key=np.uint64(3))[1].tolist()
    [3, 2]
    """
    position = concatenated_ranges(0, lengths)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    drawn = mix((captions[owner] * POSITIONS + position).astype(np.uint64), key).astype(np.float64) / 2.0**64
    drawn[(position == 0) | (position == lengths[owner] - 1)] = np.inf
    kept = drawn >= share
    # Where all between the ends would go, the highest draw stays.
    starts = np.cumsum(lengths) - lengths
    empty = np.flatnonzero((np.add.reduceat(kept, starts, dtype=np.int64) == 2) & (lengths > 2))
    for start, length in zip(starts[empty].tolist(), lengths[empty].tolist(), strict=True):
        kept[start + 1 + np.argmax(drawn[start + 1 : start + length - 1])] = True
    return ids[kept], np.add.reduceat(kept, starts, dtype=np.int64)
