"""Batch loader: a thread that makes the input of each step ahead of it.

B images of a step, b captions of this process, M captions of the cache.
"""

import queue
import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...encoders.packing import Packed
from ...encoders.text_tower import TextTower
from .. import distributed
from ..errors import DistillError
from ..train_settings import BatchSettings
from .batch import HostBank, HostBatch
from .batch_sampler import BatchIndices, BatchSampler
from .image_embeddings import OnDevice
from .negative_sampler import NegativeSampler, SharedCaptions
from .pairs import TrainData
from .shuffle import Stream, random_keys
from .text_features import HostFeatures
from .token_dropout import drop_tokens
from .tokens import RaggedIds

PREFETCHED = 2  # batches made before they are needed
T = TypeVar("T")


class BatchLoader:
    """Batches of a run, ready for their steps.

    Attributes:
        sampler: images, captions and views of each batch.
        negatives: images beyond the batch, if the run has any.
    """

    def __init__(
        self,
        settings: BatchSettings,
        data: TrainData,
        tower: TextTower,
        device: torch.device,
        *,
        num_passes: int = 1,
    ) -> None:
        """Plan batches and negatives.

        Args:
            settings: of the batches.
            data: to take them from.
            tower: that packs captions.
            device: of the steps.
            num_passes: times that each caption of a step is embedded.

        Raises:
            DistillError: a batch that the data or the number of processes does not allow.
        """
        self._settings, self._data, self._tower, self._device = settings, data, tower, device
        self._num_passes = num_passes
        self.sampler = BatchSampler(
            data.caption_image,
            batch_size=settings.batch_size,
            seed=settings.seed,
            num_views=data.images.num_views,
            captions_per_image=settings.captions_per_picture,
            chunk_shuffle=data.images.chunk_shuffle,
            caption_weight=data.caption_weight,
        )
        self._own = distributed.own_slice(settings.batch_size)
        self._shared = SharedCaptions(data.caption_group, data.caption_image)
        self.negatives: NegativeSampler | None = None
        self._all_emb: Tensor | None = None  # of all usable images, where each of them is a negative
        if settings.num_negatives:
            self._plan_negatives()

    def _plan_negatives(self) -> None:
        settings, images, rows = self._settings, self._data.images, self.sampler.rows
        size = int(min(settings.num_negatives, len(rows)))
        if images.chunk_shuffle:
            raise DistillError("--negatives come from everywhere in the cache, --embeddings chunks reads it in order")
        if size == len(rows):
            if not isinstance(images, OnDevice):
                raise DistillError(
                    f"--negatives {settings.negatives} compares every caption with all embeddings, which are not on "
                    "the device: pass a smaller number, or --embeddings device"
                )
            self._all_emb = images.subset(rows)
        self.negatives = NegativeSampler(rows, self._shared, size=size, seed=settings.seed)

    def close(self) -> None:
        """Stop all reading."""
        self._data.images.close()

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return len(self.sampler)

    def batches(self, start: int, stop: int) -> Generator[HostBatch, None, None]:
        """Batches of steps `start` to `stop`, each made while the steps before are computed."""
        return prefetch(self._make, range(start, stop))

    def _make(self, step: int) -> HostBatch:
        settings, data, own = self._settings, self._data, self._own
        epoch, index = divmod(step, len(self.sampler))
        batch = self.sampler.batch(epoch, index)
        if data.images.chunk_shuffle:
            data.images.hold(self.sampler.chunks_near(epoch, index, is_last=epoch + 1 == settings.epochs))
        here, groups = batch.captions_of(own), data.caption_group[batch.captions]
        captions = batch.captions[here]
        # Numbers past M stand for second passes of the same captions.
        shown = np.concatenate([captions + i * len(data.tokens) for i in range(self._num_passes)])
        size = settings.micro_batch or len(shown)
        parts = [shown[i : i + size] for i in range(0, len(shown), size)]
        on_device = isinstance(data.images, OnDevice)
        read = slice(None) if on_device else own  # of a table on the device only row numbers travel
        return HostBatch(
            packed=[self._packed(part, epoch, index) for part in parts],
            image_emb=data.images.read(batch.rows[read], batch.views[read]),
            is_share=not on_device,
            own=own,
            image=None if batch.image is None else batch.image[here],
            equal=_of_captions(self._shared.within_batch(batch.rows, groups, batch.image), here),
            equal_are_positive=settings.equal_captions == "positive",
            bank=self._draw_negatives(epoch, index, batch, groups, here) if self.negatives else None,
            teacher_emb=data.text_targets.read(captions) if data.text_targets else None,
        )

    def _draw_negatives(
        self, epoch: int, index: int, batch: BatchIndices, groups: NDArray[np.int64], here: slice
    ) -> HostBank:
        assert self.negatives is not None
        draw = self.negatives.draw(epoch, index, batch, groups)
        emb = self._data.images.read(draw.rows) if self._all_emb is None else self._all_emb
        return HostBank(emb=emb, excluded=draw.excluded, masked=_of_captions(draw.masked, here))

    def _packed(self, shown: NDArray[np.int64], epoch: int, index: int) -> Packed | HostFeatures:
        """A micro-batch of captions as the tower takes it: their tokens, packed, or their features."""
        if self._data.features is not None:
            return self._data.features.read(shown % len(self._data.tokens))
        packed = self._tower.pack(*self._tokens_of(shown, epoch, index))
        return packed.pin_memory() if self._device.type == "cuda" else packed

    def _tokens_of(self, shown: NDArray[np.int64], epoch: int, index: int) -> RaggedIds:
        """Token ids of captions as batch `index` of an epoch shows them."""
        ids, lengths = self._data.tokens.gather(shown % len(self._data.tokens))
        if not self._settings.token_dropout:
            return ids, lengths
        (key,) = random_keys(1, self._settings.seed, epoch, index, Stream.TOKENS)
        return drop_tokens(ids, lengths, shown, share=self._settings.token_dropout, key=key)


def _of_captions(pairs: NDArray[np.int64], captions: slice) -> NDArray[np.int64]:
    """Pairs `[2, P]` whose captions lie in a slice, with captions counted from its start."""
    kept: NDArray[np.int64] = pairs[:, (pairs[0] >= captions.start) & (pairs[0] < captions.stop)]
    kept[0] -= captions.start
    return kept


def prefetch(make: Callable[[int], T], numbers: range, depth: int = PREFETCHED) -> Generator[T, None, None]:
    """Yield `make(number)` for each number, made by a thread up to `depth` ahead; its errors are raised here."""
    made: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: tuple[T | None, BaseException | None]) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                made.put(item, timeout=0.1)
                return

    def work() -> None:
        try:
            for number in numbers:
                if stopped.is_set():
                    return
                put((make(number), None))
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=work, name="batch-loader", daemon=True)
    thread.start()
    try:
        for _ in numbers:
            item, error = made.get()
            if error:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
