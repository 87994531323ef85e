"""Token dropout: each time a caption is shown, some of its tokens are left out at random.

Word dropout of Iyyer et al. 2015, doi:10.3115/v1/P15-1162, section 2.2.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...encoders.packing import concatenated_ranges
from .shuffle import splitmix64

MAX_POSITIONS = 2**20  # more than a caption has


def drop_tokens(
    ids: NDArray[Any], lengths: NDArray[np.int64], captions: NDArray[np.int64], *, share: float, key: np.uint64
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Drop tokens of captions at random, but never BOS, EOS or all tokens between them.

    Args:
        ids: `[T]`, the ids of B captions joined.
        lengths: `[B]`, tokens of each caption.
        captions: `[B]`, their numbers: what is dropped depends on number, position and key alone.
        share: chance of each token to be dropped.
        key: of this draw.

    Returns:
        Ids and lengths of the remaining tokens.

    >>> ids, lengths = np.array([1, 7, 8, 9, 2, 1, 2]), np.array([5, 2])
    >>> drop_tokens(ids, lengths, np.array([4, 5]), share=0.9, key=np.uint64(3))[1].tolist()
    [3, 2]
    """
    position = concatenated_ranges(0, lengths)
    caption = np.repeat(np.arange(len(lengths)), lengths)
    seeds = (captions[caption] * MAX_POSITIONS + position).astype(np.uint64)
    draws = splitmix64(seeds, key).astype(np.float64) / 2.0**64
    draws[(position == 0) | (position == lengths[caption] - 1)] = np.inf
    kept = draws >= share
    # Where no token between BOS and EOS would be left, the one with the highest draw stays.
    starts = np.cumsum(lengths) - lengths
    empty = np.flatnonzero((np.add.reduceat(kept, starts, dtype=np.int64) == 2) & (lengths > 2))
    for start, length in zip(starts[empty].tolist(), lengths[empty].tolist(), strict=True):
        kept[start + 1 + np.argmax(draws[start + 1 : start + length - 1])] = True
    return ids[kept], np.add.reduceat(kept, starts, dtype=np.int64)
