"""Negative sampler: cached images beyond the batch as further negatives of its captions.

N images in the cache, n of them usable, M captions, m captions of a batch, P pairs.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ...encoders.packing import concatenated_ranges
from .batch_sampler import BatchIndices
from .shuffle import Stream


@dataclass(frozen=True, kw_only=True, slots=True)
class NegativeDraw:
    """Negatives of a step.

    Attributes:
        rows: of the cache.
        excluded: indices in `rows` of images of the batch, which are in its softmax already.
        masked: `[2, P]`, captions of the batch and indices in `rows` of images with an equal caption, which are no
            negatives of it; ascending in the second.
    """

    rows: NDArray[np.int64]
    excluded: NDArray[np.int64]
    masked: NDArray[np.int64]


class SharedCaptions:
    """Captions that several images have, and these images: none of them is a negative of such a caption."""

    def __init__(self, caption_group: NDArray[np.int64], caption_image: NDArray[np.int64]) -> None:
        """Collect them.

        Args:
            caption_group: `[M]`, equal for equal captions.
            caption_image: `[M]`, the row of each caption's image, -1 where it is not used.
        """
        num_rows = int(caption_image.max(initial=0)) + 1
        usable = caption_image >= 0
        # Distinct pairs of a group and an image, each as one number, which sorts fast.
        pairs = np.unique(caption_group[usable] * num_rows + caption_image[usable])
        groups, counts = np.unique(pairs // num_rows, return_counts=True)
        shared = counts > 1
        self._groups, self._counts = groups[shared], counts[shared]
        self._starts = np.cumsum(self._counts) - self._counts
        self._rows = pairs[np.repeat(shared, counts)] % num_rows

    def images_of(self, groups: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Images of the shared ones among some groups `[m]`: indices into `groups` `[P]`, and rows `[P]`."""
        if not len(self._groups):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        place = np.minimum(np.searchsorted(self._groups, groups), len(self._groups) - 1)
        count = np.where(self._groups[place] == groups, self._counts[place], 0)
        rows = self._rows[concatenated_ranges(self._starts[place], count)]
        return np.repeat(np.arange(len(groups)), count), rows

    def within_batch(
        self, rows: NDArray[np.int64], groups: NDArray[np.int64], image: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Captions of a batch and other images of it with an equal caption, `[2, P]`, ascending in the first.

        Args:
            rows: `[B]`, distinct: the images of the batch.
            groups: `[m]`, the group of each caption.
            image: `[m]`, index in `rows` of each caption's image; by default each image has one caption.
        """
        captions, sharing = self.images_of(groups)
        if not len(captions):  # as with most caches: nothing to look up, and no batch to sort
            return np.zeros((2, 0), np.int64)
        order = np.argsort(rows)
        index = order[np.minimum(np.searchsorted(rows, sharing, sorter=order), len(rows) - 1)]
        is_other = (rows[index] == sharing) & (index != (captions if image is None else image[captions]))
        return np.stack([captions[is_other], index[is_other]])


class NegativeSampler:
    """Negatives of each step: a window over a new order of the usable images, fixed by (seed, epoch, batch).

    The order and its inverse are kept, 16 bytes an image: a window of a hundred thousand then costs next to nothing.
    """

    def __init__(self, rows: NDArray[np.int64], shared: SharedCaptions, *, size: int, seed: int) -> None:
        """Draw from some images.

        Args:
            rows: `[n]`, ascending: the usable images.
            shared: captions that several images have.
            size: images of a draw; n draws all of them.
            seed: of the run.
        """
        self._rows, self._shared, self._seed = rows, shared, seed
        self._size = size
        self._order = lru_cache(maxsize=1)(self._shuffle)

    def draw(self, epoch: int, index: int, batch: BatchIndices, groups: NDArray[np.int64]) -> NegativeDraw:
        """Negatives for batch `index` of an epoch, whose captions belong to `groups [m]`."""
        order, position_of = self._order(epoch)
        start = index * self._size % len(order)

        def positions(rows: NDArray[np.int64]) -> NDArray[np.int64]:
            """Positions in the order, counted from the window's start."""
            return (position_of[np.searchsorted(self._rows, rows)] - start) % len(order)

        excluded = positions(batch.rows)
        captions, sharing = self._shared.images_of(groups)
        masked = np.stack([captions, positions(sharing)])
        masked = masked[:, np.argsort(masked[1], kind="stable")]
        if self._size == len(order):  # perhaps millions: taken in the order that they have
            rows = self._rows
        else:
            rows = self._rows[np.take(order, np.arange(start, start + self._size), mode="wrap")]
        return NegativeDraw(
            rows=rows,
            excluded=excluded[excluded < self._size],
            masked=masked[:, masked[1] < self._size],
        )

    def _shuffle(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """An epoch's order of the usable images, and the position of each image in it."""
        if self._size == len(self._rows):
            return np.arange(self._size), np.arange(self._size)
        rng = np.random.default_rng([self._seed, epoch, Stream.NEGATIVES])
        order = rng.permutation(len(self._rows))
        position_of = np.empty_like(order)
        position_of[order] = np.arange(len(order))
        return order, position_of
