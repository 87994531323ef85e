"""Which cached pictures beyond the batch each step's captions are held against, and which of them are no negatives.

N pictures in the cache, n of them usable, M captions, b captions of a step.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .batches import Batch
from .permutation import Stream

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """The further pictures of a step.

    Attributes:
        rows: `[m]`, of the cache.
        excluded: where in `rows` the pictures of the batch stand: they are in its softmax already.
        masked: `[2, P]`, captions, by their place in the batch, and places in `rows` whose picture carries an equal
            caption; ascending in the second.
    """

    rows: Ints
    excluded: Ints
    masked: Ints


class SharedCaptions:
    """The pictures of each caption that several pictures carry."""

    def __init__(self, caption_group: Ints, caption_image: Ints) -> None:
        """Collect them.

        Args:
            caption_group: `[M]`, equal where captions read the same.
            caption_image: `[M]`, the row of each caption's picture, -1 where it is not used.
        """
        usable = caption_image >= 0
        pairs = np.unique(np.stack([caption_group[usable], caption_image[usable]], 1), axis=0)
        counts = np.bincount(pairs[:, 0], minlength=int(caption_group.max(initial=-1)) + 1)
        shared = counts[pairs[:, 0]] > 1
        self._rows = pairs[shared, 1]
        self._start = np.concatenate([[0], np.cumsum(np.where(counts > 1, counts, 0))])

    def pictures_of(self, groups: Ints) -> tuple[Ints, Ints]:
        """Which of the groups `[b]` are shared, and by which rows: indices into `groups` `[P]`, and rows `[P]`."""
        start, count = self._start[groups], self._start[groups + 1] - self._start[groups]
        which = np.repeat(np.arange(len(groups)), count)
        within = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
        return which, self._rows[np.repeat(start, count) + within]


class BankPlan:
    """A window over a fresh order of the usable pictures for each step; fixed by (seed, epoch, batch).

    The order and its inverse are held, 16 bytes a picture: a window of a hundred thousand then costs next to nothing.
    """

    def __init__(self, rows: Ints, shared: SharedCaptions, *, size: int, seed: int) -> None:
        """Draw from some pictures.

        Args:
            rows: `[n]`, ascending: the usable ones.
            shared: who carries whose captions.
            size: pictures of a draw; n are all of them.
            seed: of the run.
        """
        self._rows, self._shared, self._seed = rows, shared, seed
        self._size = size
        self._order = lru_cache(maxsize=1)(self._shuffle)

    def draw(self, epoch: int, index: int, batch: Batch, groups: Ints) -> Draw:
        """The pictures for batch `index` of an epoch, whose captions belong to `groups [B]`."""
        order, place_of = self._order(epoch)
        start = index * self._size % len(order)

        def places(rows: Ints) -> Ints:
            return (place_of[np.searchsorted(self._rows, rows)] - start) % len(order)

        excluded = places(batch.rows)
        which, carriers = self._shared.pictures_of(groups)
        masked = np.stack([which, places(carriers)])
        masked = masked[:, np.argsort(masked[1], kind="stable")]
        if self._size == len(order):  # millions, in the order that they have
            rows = self._rows
        else:
            rows = self._rows[np.take(order, np.arange(start, start + self._size), mode="wrap")]
        return Draw(
            rows=rows,
            excluded=excluded[excluded < self._size],
            masked=masked[:, masked[1] < self._size],
        )

    def _shuffle(self, epoch: int) -> tuple[Ints, Ints]:
        if self._size == len(self._rows):
            return np.arange(self._size), np.arange(self._size)
        rng = np.random.default_rng([self._seed, epoch, Stream.NEGATIVES])
        order = rng.permutation(len(self._rows))
        place_of = np.empty_like(order)
        place_of[order] = np.arange(len(order))
        return order, place_of
