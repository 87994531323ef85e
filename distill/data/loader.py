"""Feeding: everything that a step needs from the host, made by a thread ahead of the step.

B pairs of a step, b of this process, D features.
"""

import queue
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...encoders.packing import Packed
from ...encoders.text_tower import TextTower
from .. import distributed as parallel
from ..errors import DistillError
from ..train_settings import TrainSettings
from .batch_sampler import BatchSampler
from .image_embeddings import OnDevice
from .negative_sampler import NegativeDraw, NegativeSampler, SharedCaptions
from .pairs import TrainData
from .shuffle import Stream, keys
from .targets import Bank, Targets
from .token_dropout import drop_tokens
from .tokens import Block

AHEAD = 2  # steps made before they are asked for


@dataclass(frozen=True, kw_only=True)
class HostBatch:
    """One step's input, on the host but for what is on the device for good.

    Attributes:
        packed: the captions of this process, in micro-batches; with two passes all of them twice.
        images: what the source has read: of this process's images, or of all B if they are on the device.
        image: `[b]`, where in the batch the image of each caption is; None where each has one.
        equal: `[2, P]`, captions of this process and other images of the batch that carry the same.
        draw: negatives beyond the batch, if any; `masked` for the captions of this process.
        drawn: what the source has read of them.
        teacher: the teacher's embeddings of the captions of this process, if it is asked.
    """

    packed: Sequence[Packed]
    images: Tensor
    image: NDArray[np.int64] | None
    equal: NDArray[np.int64]
    draw: NegativeDraw | None
    drawn: Tensor | None
    teacher: Tensor | None


class BatchLoader:
    """The steps of a run, ready to be computed."""

    def __init__(self, settings: TrainSettings, data: TrainData, tower: TextTower, device: torch.device) -> None:
        """Plan batches and negatives.

        Raises:
            DistillError: a batch that the data or the processes cannot give.
        """
        self._data, self._tower, self._device = data, tower, device
        self.plan = BatchSampler(
            data.caption_image,
            batch_size=settings.batch_size,
            seed=settings.seed,
            num_views=data.images.num_views,
            captions_per_picture=settings.captions_per_picture,
            pooling=data.images.pooling,
        )
        self._own = parallel.share_of(settings.batch_size)
        self._num_passes, self._micro_batch = settings.num_passes, settings.micro_batch
        self._equal_are_positive = settings.equal_captions == "positive"
        self._shared = SharedCaptions(data.caption_group, data.caption_image)
        self._num_epochs, self._seed, self._token_dropout = settings.epochs, settings.seed, settings.token_dropout
        self._bank, self._all = None, None
        if settings.num_negatives:
            rows = self.plan.rows
            size = int(min(settings.num_negatives, len(rows)))
            if data.images.pooling:
                raise DistillError(
                    "--negatives come from everywhere in the cache, --embeddings chunks reads it in order"
                )
            if size == len(rows):
                if not isinstance(data.images, OnDevice):
                    raise DistillError(
                        f"--negatives {settings.negatives} holds every caption against all embeddings, which are not "
                        "on the device: pass a smaller number, or --embeddings device"
                    )
                self._all = data.images.subset(rows)
            self._bank = NegativeSampler(rows, self._shared, size=size, seed=settings.seed)

    def close(self) -> None:
        """End all reading."""
        self._data.images.close()

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return len(self.plan)

    def steps(self, start: int, stop: int) -> Generator[HostBatch, None, None]:
        """The input of steps `start` to `stop`, each made while those before are computed."""
        return prefetch(self._make, range(start, stop))

    def targets(self, fed: HostBatch) -> Targets:
        """What the loss of a step needs, on the device; every process must ask."""
        images = self._data.images
        image_emb = images.to_device(fed.images)
        if not isinstance(images, OnDevice):
            image_emb = parallel.gather(image_emb)
        return Targets(
            image_emb=image_emb.float(),
            own=self._own,
            image=fed.image,
            equal=fed.equal,
            equal_are_positive=self._equal_are_positive,
            bank=self._bank_of(fed),
            teacher_emb=None if fed.teacher is None else fed.teacher.to(self._device, non_blocking=True),
        )

    def _bank_of(self, fed: HostBatch) -> Bank | None:
        if fed.draw is None:
            return None
        emb = self._all if fed.drawn is None else self._data.images.to_device(fed.drawn)
        assert emb is not None
        bias = None
        if len(fed.draw.excluded):
            bias = torch.zeros(len(emb), device=self._device)
            bias[torch.from_numpy(fed.draw.excluded).to(self._device)] = -torch.inf
        return Bank(emb=emb, bias=bias, masked=fed.draw.masked)

    def _make(self, step: int) -> HostBatch:
        data, own = self._data, self._own
        epoch, index = divmod(step, len(self.plan))
        batch = self.plan.batch(epoch, index)
        if data.images.pooling:
            data.images.hold(self.plan.chunks_near(epoch, index, is_last=epoch + 1 == self._num_epochs))
        here, group = batch.captions_of(own), data.caption_group[batch.captions]
        captions = batch.captions[here]
        draw = self._bank.draw(epoch, index, batch, group) if self._bank else None
        shown = np.concatenate([captions + again * len(data.tokens) for again in range(self._num_passes)])
        size = self._micro_batch or len(shown)
        parts = [shown[i : i + size] for i in range(0, len(shown), size)]
        packed = [self._tower.pack(*self._tokens_of(part, epoch, index)) for part in parts]
        of = slice(None) if isinstance(data.images, OnDevice) else own
        return HostBatch(
            packed=[p.pin_memory() for p in packed] if self._device.type == "cuda" else packed,
            images=data.images.read(batch.rows[of], batch.views[of]),
            image=None if batch.image is None else batch.image[here],
            equal=_of_captions(self._shared.within(batch.rows, group, batch.image), here),
            draw=replace(draw, masked=_of_captions(draw.masked, here)) if draw else None,
            drawn=data.images.read(draw.rows) if draw and self._all is None else None,
            teacher=data.teacher.read(captions, self._device) if data.teacher else None,
        )

    def _tokens_of(self, shown: NDArray[np.int64], epoch: int, index: int) -> Block:
        """Ids of captions and their lengths, as batch `index` of an epoch shows them; numbers past M: second passes."""
        ids, lengths = self._data.tokens.gather(shown % len(self._data.tokens))
        if not self._token_dropout:
            return ids, lengths
        (key,) = keys(1, self._seed, epoch, index, Stream.TOKENS)
        return drop_tokens(ids, lengths, shown, share=self._token_dropout, key=key)


def _of_captions(pairs: NDArray[np.int64], here: slice) -> NDArray[np.int64]:
    """Pairs `[2, P]` of some captions in a row and something else, the captions counted from the first of them."""
    kept: NDArray[np.int64] = pairs[:, (pairs[0] >= here.start) & (pairs[0] < here.stop)]
    kept[0] -= here.start
    return kept


T = TypeVar("T")


def prefetch(make: Callable[[int], T], numbers: range, depth: int = AHEAD) -> Generator[T, None, None]:
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

    thread = threading.Thread(target=work, name="feed", daemon=True)
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
