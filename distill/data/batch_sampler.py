"""Which pairs make up each step: fixed by (seed, epoch, batch) alone, so that a run resumes anywhere exactly.

No order is ever held: 20 bytes an image are all that this takes, whatever the number of epochs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ...encoders.packing import concatenated_ranges
from ..errors import DistillError
from .shuffle import Chunk, ChunkShuffle, ChunkShuffledOrder, Permutation, Positions, Stream, choose, keys
from .tokens import CAPTIONS_AT_A_TIME, TokenTable


@dataclass(frozen=True, slots=True)
class Batch:
    """B images and captions of each.

    Attributes:
        rows: `[B]`, of images, each at most once.
        captions: `[n]`, those of the first image first.
        views: `[B]`, which view of each image.
        image: `[n]`, the place in `rows` of each caption's image, ascending; None where each has one caption.
    """

    rows: NDArray[np.int64]
    captions: NDArray[np.int64]
    views: NDArray[np.int64]
    image: NDArray[np.int64] | None = None

    def captions_of(self, images: slice) -> slice:
        """Which captions are of some images in a row."""
        if self.image is None:
            return images
        start, stop = self.image.searchsorted([images.start, images.stop]).tolist()
        return slice(start, stop)


class BatchSampler:
    """The batches of a run. Every epoch is a fresh order of the images with a fresh choice of captions and views.

    What does not fill a batch at the end of an epoch is left out of that epoch: a smaller batch would be an easier
    contrastive task, with gradients of another scale.

    >>> plan = BatchSampler(np.array([0, 0, 1, 2, 2, 2]), batch_size=2, seed=0)
    >>> len(plan), plan.batch(epoch=0, index=0).rows.shape
    (1, (2,))
    """

    def __init__(
        self,
        caption_image: NDArray[np.int64],
        *,
        batch_size: int,
        seed: int,
        num_views: int = 1,
        captions_per_picture: int = 1,
        pooling: ChunkShuffle | None = None,
    ) -> None:
        """Plan over captions, given the row of each caption's image.

        Args:
            caption_image: `[M]`, ascending; captions of images that must not be used are left out by giving -1.
            batch_size: B.
            seed: of the whole run.
            num_views: of an image, to choose from.
            captions_per_picture: most captions of an image in a batch; those with fewer repeat none.
            pooling: how to shuffle where rows cannot be read one by one; by default all rows at once. All images of
                a chunk then have the same view in an epoch, so that no more is read than without views.

        Raises:
            DistillError: fewer images with captions than a batch takes.
        """
        begins, ends = (
            np.flatnonzero(np.diff(caption_image, prepend=-2)),
            np.flatnonzero(np.diff(caption_image, append=-2)),
        )
        usable = caption_image[begins] >= 0
        # The images that have captions, and for each where its captions begin and how many they are.
        self._first = begins[usable]
        self._count = (ends[usable] - self._first + 1).astype(np.uint32)
        self.rows = caption_image[self._first]
        self._batch_size, self._seed, self._pooling = batch_size, seed, pooling
        self._num_views, self._most = num_views, captions_per_picture
        if len(self.rows) < batch_size:
            raise DistillError(
                f"--batch-size {batch_size} exceeds the {len(self.rows)} embedded images with captions: "
                "lower it, beside a --recipe too"
            )
        self._order = lru_cache(maxsize=2)(self._shuffle)

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.rows) // self._batch_size

    def batch(self, epoch: int, index: int) -> Batch:
        """Batch `index` of an epoch."""
        chosen = self._order(epoch)(np.arange(index * self._batch_size, (index + 1) * self._batch_size))
        (key,) = keys(1, self._seed, epoch, Stream.CAPTIONS)
        rows, first, count = self.rows[chosen], self._first[chosen], self._count[chosen].astype(np.int64)
        views = self._views(epoch, rows // self._pooling.chunk_rows if self._pooling else rows)
        begin = choose(chosen, count, key)
        if self._most == 1:
            return Batch(rows, first + begin, views)
        taken = np.minimum(count, self._most)
        image = np.repeat(np.arange(len(chosen)), taken)
        # From a random one on, and from the first again: each caption is shown as often as its neighbours.
        nth = concatenated_ranges(begin, taken) % count[image]
        return Batch(rows, first[image] + nth, views, image)

    def chunks_near(self, epoch: int, index: int, *, is_last: bool) -> list[Chunk]:
        """Chunks of the cache, with their views, that a pooled batch reads from, and those of the pool after it.

        Args:
            epoch: of the batch.
            index: of the batch.
            is_last: whether no epoch follows.
        """
        order = self._order(epoch)
        assert isinstance(order, ChunkShuffledOrder)
        chunks, goes_on = order.chunks_near(index * self._batch_size, (index + 1) * self._batch_size)
        near = self._with_views(epoch, chunks)
        if not goes_on and not is_last:
            following = self._order(epoch + 1)
            assert isinstance(following, ChunkShuffledOrder)
            near += self._with_views(epoch + 1, following.first_chunks())
        return near

    def _views(self, epoch: int, drawing: NDArray[np.int64]) -> NDArray[np.int64]:
        """A view for each of the images or chunks that draw one."""
        (key,) = keys(1, self._seed, epoch, Stream.VIEWS)
        return choose(drawing, np.full(len(drawing), self._num_views), key)

    def _with_views(self, epoch: int, chunks: list[int]) -> list[Chunk]:
        return list(zip(self._views(epoch, np.array(chunks, np.int64)).tolist(), chunks, strict=True))

    def _shuffle(self, epoch: int) -> Callable[[Positions], Positions]:
        if self._pooling is None:
            return Permutation(len(self.rows), self._seed, epoch, Stream.IMAGES)
        return ChunkShuffledOrder(self.rows, self._pooling, self._seed, epoch)


def group_equal_captions(tokens: TokenTable) -> NDArray[np.int64]:
    """For each caption the first one with the same ids, `[M]`: equal captions of different images are no negatives.

    Captions are compared by two 64-bit multilinear hashes (Lemire and Kaser 2014, arXiv:1202.4961). Two different ones
    share both with a chance below 2^-88 (ids below 2^20), any two of 100 million with one below 2^-35.

    >>> table = TokenTable(np.array([1, 7, 2, 1, 8, 2, 1, 7, 2]), np.array([0, 3, 6, 9]))
    >>> group_equal_captions(table).tolist()
    [0, 1, 0]
    """
    hashes = np.empty((2, len(tokens)), np.uint64)
    for start in range(0, len(tokens), CAPTIONS_AT_A_TIME):
        block = slice(start, min(start + CAPTIONS_AT_A_TIME, len(tokens)))
        ids, lengths = tokens.gather(np.arange(block.start, block.stop))
        ends = np.cumsum(lengths)
        within = concatenated_ranges(0, lengths)
        for i in range(2):
            factors = np.random.Generator(np.random.Philox(i)).integers(0, 2**64, lengths.max(initial=0), np.uint64)
            # Sums that wrap around; + 1, so that a longer caption differs from its beginning.
            sums = np.concatenate([[np.uint64(0)], np.cumsum((ids + 1).astype(np.uint64) * factors[within])])
            hashes[i, block] = sums[ends] - sums[ends - lengths]
    order = np.lexsort(hashes)  # stable, so equal captions stay in their order
    differs = np.zeros(len(tokens), bool)  # from the caption before, in that order
    differs[:1] = True
    for values in hashes:
        differs[1:] |= np.diff(values[order]) != 0
    starts = np.flatnonzero(differs)
    groups = np.empty(len(tokens), np.int64)
    groups[order] = np.repeat(order[starts], np.diff(starts, append=len(tokens)))
    return groups
