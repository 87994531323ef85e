"""Batch sampler: images, captions and views of each step, fixed by (seed, epoch, batch) alone.

So a run resumes exactly at any step. No order is kept: the sampler takes 20 bytes an image, for any number of epochs,
and 12 a caption where captions have weights.

N images, n of them usable, M captions, B images of a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ...encoders.packing import concatenated_ranges
from ..errors import DistillError
from .shuffle import (
    Chunk,
    ChunkShuffle,
    ChunkShuffledOrder,
    Permutation,
    Stream,
    drawn_order,
    random_below,
    random_keys,
)


@dataclass(frozen=True, slots=True)
class BatchIndices:
    """B images and captions of each.

    Attributes:
        rows: `[B]`, of images, each at most once.
        captions: `[m]`, those of the first image first.
        views: `[B]`, the view of each image.
        image: `[m]`, index in `rows` of each caption's image, ascending; None where each image has one caption.
    """

    rows: NDArray[np.int64]
    captions: NDArray[np.int64]
    views: NDArray[np.int64]
    image: NDArray[np.int64] | None = None

    def captions_of(self, images: slice) -> slice:
        """Captions of consecutive images, as a slice of `captions`."""
        if self.image is None:
            return images
        start, stop = self.image.searchsorted([images.start, images.stop]).tolist()
        return slice(start, stop)


class BatchSampler:
    """Batches of a run. Every epoch is a new order of the images with a new choice of captions and views.

    Images at the end of an epoch that do not fill a batch are left out of that epoch: a smaller batch would be an
    easier contrastive task, with gradients of another scale.

    >>> sampler = BatchSampler(np.array([0, 0, 1, 2, 2, 2]), batch_size=2, seed=0)
    >>> len(sampler), sampler.batch(epoch=0, index=0).rows.shape
    (1, (2,))
    """

    def __init__(
        self,
        caption_image: NDArray[np.int64],
        *,
        batch_size: int,
        seed: int,
        num_views: int = 1,
        captions_per_image: int = 1,
        chunk_shuffle: ChunkShuffle | None = None,
        caption_weight: NDArray[np.float32] | None = None,
    ) -> None:
        """Sample captions, given the row of each caption's image.

        Args:
            caption_image: `[M]`, ascending; -1 for captions that must not be used: without weights for all captions of
                an image or none, with weights for any.
            batch_size: B.
            seed: of the run.
            num_views: of an image, to choose from.
            captions_per_image: most captions of an image in a batch; images with fewer repeat none.
            chunk_shuffle: where rows cannot be read one by one; by default all rows are shuffled. All images of a
                chunk then have the same view in an epoch, so that views cost no further reads.
            caption_weight: `[M]`, how often a caption is drawn, relative to others of its image; None for all alike.

        Raises:
            DistillError: fewer images with captions than a batch takes.
        """
        self._kept = self._weight = None  # captions that may be drawn, and their weights
        if caption_weight is not None:
            self._kept = np.flatnonzero(caption_image >= 0)
            caption_image, self._weight = caption_image[self._kept], caption_weight[self._kept]
        begins, ends = (
            np.flatnonzero(np.diff(caption_image, prepend=-2)),
            np.flatnonzero(np.diff(caption_image, append=-2)),
        )
        usable = caption_image[begins] >= 0
        # For each image that has captions: its first caption, and the number of them; with weights, among those kept.
        self._first = begins[usable]
        self._count = (ends[usable] - self._first + 1).astype(np.uint32)
        self.rows = caption_image[self._first]
        self._batch_size, self._seed, self._chunk_shuffle = batch_size, seed, chunk_shuffle
        self._num_views, self._captions_per_image = num_views, captions_per_image
        if not len(self.rows):
            raise DistillError("no embedded image of the cache has a caption: `clipglot inspect` tells why")
        if len(self.rows) < batch_size:
            raise DistillError(
                f"--batch-size {batch_size} exceeds the {len(self.rows)} embedded images with captions: "
                f"pass --batch-size {len(self.rows)} or less"
            )
        self._order = lru_cache(maxsize=2)(self._shuffle)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.rows) // self._batch_size

    def batch(self, epoch: int, index: int) -> BatchIndices:
        """Batch `index` of an epoch."""
        chosen = self._order(epoch)(np.arange(index * self._batch_size, (index + 1) * self._batch_size))
        (key,) = random_keys(1, self._seed, epoch, Stream.CAPTIONS)
        rows, first, count = self.rows[chosen], self._first[chosen], self._count[chosen].astype(np.int64)
        views = self._views(epoch, rows // self._chunk_shuffle.chunk_rows if self._chunk_shuffle else rows)
        if self._weight is not None:
            return self._drawn(rows, first, count, views, key)
        offset = random_below(count, chosen, key)
        if self._captions_per_image == 1:
            return BatchIndices(rows, first + offset, views)
        num_taken = np.minimum(count, self._captions_per_image)
        image = np.repeat(np.arange(len(chosen)), num_taken)
        # From a random caption on, and from the first again: each is shown as often as its neighbours.
        nth = concatenated_ranges(offset, num_taken) % count[image]
        return BatchIndices(rows, first[image] + nth, views, image)

    def _drawn(
        self,
        rows: NDArray[np.int64],
        first: NDArray[np.int64],
        count: NDArray[np.int64],
        views: NDArray[np.int64],
        key: np.uint64,
    ) -> BatchIndices:
        """A batch whose captions are drawn by weight, without repeats."""
        assert self._kept is not None
        assert self._weight is not None
        places, image = concatenated_ranges(first, count), np.repeat(np.arange(len(rows)), count)
        order = drawn_order(places, image, self._weight[places], key)
        drawn = order[concatenated_ranges(0, count) < self._captions_per_image]
        captions = self._kept[places[drawn]]
        if self._captions_per_image == 1:
            return BatchIndices(rows, captions, views)
        return BatchIndices(rows, captions, views, image[drawn])

    def chunks_near(self, epoch: int, index: int, *, is_last: bool) -> list[Chunk]:
        """Chunks of the cache, with their views, that a batch reads, and those of the next pool.

        Args:
            epoch: of the batch.
            index: of the batch.
            is_last: whether this is the last epoch.
        """
        order = self._order(epoch)
        assert isinstance(order, ChunkShuffledOrder)
        chunks, has_next = order.chunks_near(index * self._batch_size, (index + 1) * self._batch_size)
        near = self._with_views(epoch, chunks)
        if not has_next and not is_last:
            following = self._order(epoch + 1)
            assert isinstance(following, ChunkShuffledOrder)
            near += self._with_views(epoch + 1, following.first_chunks())
        return near

    def _views(self, epoch: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """A random view for each image, or chunk, of these numbers."""
        (key,) = random_keys(1, self._seed, epoch, Stream.VIEWS)
        return random_below(np.full(len(numbers), self._num_views), numbers, key)

    def _with_views(self, epoch: int, chunks: list[int]) -> list[Chunk]:
        return list(zip(self._views(epoch, np.array(chunks, np.int64)).tolist(), chunks, strict=True))

    def _shuffle(self, epoch: int) -> Callable[[NDArray[np.int64]], NDArray[np.int64]]:
        if self._chunk_shuffle is None:
            return Permutation(len(self.rows), self._seed, epoch, Stream.IMAGES)
        return ChunkShuffledOrder(self.rows, self._chunk_shuffle, self._seed, epoch)
