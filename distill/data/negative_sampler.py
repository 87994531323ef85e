"""Which cached images beyond the batch each step's captions are held against, and which of them are no negatives.

N images in the cache, n of them usable, M captions, b captions of a step.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ...encoders.packing import concatenated_ranges
from .batch_sampler import Batch
from .shuffle import Stream

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class NegativeDraw:
    """The further images of a step.

    Attributes:
        rows: `[m]`, of the cache.
        excluded: where in `rows` the images of the batch stand: they are in its softmax already.
        masked: `[2, P]`, captions, by their place in the batch, and places in `rows` whose image carries an equal
            caption; ascending in the second.
    """

    rows: Ints
    excluded: Ints
    masked: Ints


class SharedCaptions:
    """The images of each caption that several images carry: none of them is its negative."""

    def __init__(self, caption_group: Ints, caption_image: Ints) -> None:
        """Collect them.

        Args:
            caption_group: `[M]`, equal where captions read the same.
            caption_image: `[M]`, the row of each caption's image, -1 where it is not used.
        """
        num_rows = int(caption_image.max(initial=0)) + 1
        usable = caption_image >= 0
        carried = np.unique(caption_group[usable] * num_rows + caption_image[usable])  # one number a pair, to sort fast
        groups, counts = np.unique(carried // num_rows, return_counts=True)
        shared = counts > 1
        self._groups, self._counts = groups[shared], counts[shared]
        self._starts = np.cumsum(self._counts) - self._counts
        self._rows = carried[np.repeat(shared, counts)] % num_rows

    def images_of(self, groups: Ints) -> tuple[Ints, Ints]:
        """Which of the groups `[b]` are shared, and by which rows: indices into `groups` `[P]`, and rows `[P]`."""
        if not len(self._groups):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        place = np.minimum(np.searchsorted(self._groups, groups), len(self._groups) - 1)
        count = np.where(self._groups[place] == groups, self._counts[place], 0)
        return np.repeat(np.arange(len(groups)), count), self._rows[concatenated_ranges(self._starts[place], count)]

    def within(self, rows: Ints, groups: Ints, image: Ints | None = None) -> Ints:
        """Captions of a batch and other images of it that carry the same, `[2, P]`, ascending in the first.

        Args:
            rows: `[B]`, distinct: the images of the batch.
            groups: `[n]`, the group of each caption.
            image: `[n]`, the place in `rows` of its image; by default each image has one caption.
        """
        which, carriers = self.images_of(groups)
        if not len(which):  # as with most captions: nothing to look up, and no batch to sort
            return np.zeros((2, 0), np.int64)
        order = np.argsort(rows)
        place = order[np.minimum(np.searchsorted(rows, carriers, sorter=order), len(rows) - 1)]
        other = (rows[place] == carriers) & (place != (which if image is None else image[which]))
        return np.stack([which[other], place[other]])


class NegativeSampler:
    """A window over a fresh order of the usable images for each step; fixed by (seed, epoch, batch).

    The order and its inverse are held, 16 bytes an image: a window of a hundred thousand then costs next to nothing.
    """

    def __init__(self, rows: Ints, shared: SharedCaptions, *, size: int, seed: int) -> None:
        """Draw from some images.

        Args:
            rows: `[n]`, ascending: the usable ones.
            shared: who carries whose captions.
            size: images of a draw; n are all of them.
            seed: of the run.
        """
        self._rows, self._shared, self._seed = rows, shared, seed
        self._size = size
        self._order = lru_cache(maxsize=1)(self._shuffle)

    def draw(self, epoch: int, index: int, batch: Batch, groups: Ints) -> NegativeDraw:
        """The images for batch `index` of an epoch, whose captions belong to `groups [n]`."""
        order, place_of = self._order(epoch)
        start = index * self._size % len(order)

        def places(rows: Ints) -> Ints:
            return (place_of[np.searchsorted(self._rows, rows)] - start) % len(order)

        excluded = places(batch.rows)
        which, carriers = self._shared.images_of(groups)
        masked = np.stack([which, places(carriers)])
        masked = masked[:, np.argsort(masked[1], kind="stable")]
        if self._size == len(order):  # millions, in the order that they have
            rows = self._rows
        else:
            rows = self._rows[np.take(order, np.arange(start, start + self._size), mode="wrap")]
        return NegativeDraw(
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
