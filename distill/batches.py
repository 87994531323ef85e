"""Which pairs make up each step: fixed by (seed, epoch, batch) alone, so that a run resumes anywhere exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .errors import DistillError


@dataclass(frozen=True, slots=True)
class Batch:
    """B pairs: `rows [B]` of pictures, each at most once, and `captions [B]`, one of its captions each."""

    rows: NDArray[np.int64]
    captions: NDArray[np.int64]


class BatchPlan:
    """The batches of a run. Every epoch is a fresh order of the pictures with a fresh choice of captions.

    What does not fill a batch at the end of an epoch is left out of that epoch: a smaller batch would be an easier
    contrastive task, with gradients of another scale.

    >>> plan = BatchPlan(np.array([0, 0, 1, 2, 2, 2]), batch_size=2, seed=0)
    >>> len(plan), plan.batch(epoch=0, index=0).rows.shape
    (1, (2,))
    """

    def __init__(self, caption_image: NDArray[np.int64], *, batch_size: int, seed: int) -> None:
        """Plan over captions, given the row of each caption's picture.

        Args:
            caption_image: `[M]`, ascending; captions of pictures that must not be used are left out by giving -1.
            batch_size: B.
            seed: of the whole run.

        Raises:
            DistillError: fewer pictures with captions than a batch takes.
        """
        captions = np.flatnonzero(caption_image >= 0)
        self._captions = captions
        # Pictures that have captions, and for each where its captions begin and how many they are.
        self._rows, self._first, self._count = np.unique(caption_image[captions], return_index=True, return_counts=True)
        self._batch_size, self._seed = batch_size, seed
        if len(self._rows) < batch_size:
            raise DistillError(
                f"--batch-size {batch_size} exceeds the {len(self._rows)} embedded pictures with captions: lower it"
            )
        self._epoch = lru_cache(maxsize=2)(self._shuffle)

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self._rows) // self._batch_size

    @property
    def num_pictures(self) -> int:
        """Pictures that are embedded and have a caption."""
        return len(self._rows)

    def batch(self, epoch: int, index: int) -> Batch:
        """Batch `index` of an epoch."""
        order, captions = self._epoch(epoch)
        chosen = order[index * self._batch_size : (index + 1) * self._batch_size]
        return Batch(self._rows[chosen], captions[chosen])

    def _shuffle(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rng = np.random.Generator(np.random.Philox(key=np.array([self._seed, epoch], np.uint64)))
        order = rng.permutation(len(self._rows))
        captions = self._captions[self._first + rng.integers(self._count)]
        return order, captions


def group_equal_captions(tokens: Sequence[NDArray[np.int32]]) -> NDArray[np.int64]:
    """A number for each distinct row of ids, `[M]`: equal captions of different pictures are no negatives.

    >>> cat, dog = np.array([1, 7, 2], np.int32), np.array([1, 8, 2], np.int32)
    >>> group_equal_captions([cat, dog, cat]).tolist()
    [0, 1, 0]
    """
    numbers: dict[bytes, int] = {}
    return np.fromiter((numbers.setdefault(ids.tobytes(), len(numbers)) for ids in tokens), np.int64, len(tokens))
