"""A step's batch: made on the host ahead of the step, then moved to the device at once.

B images of a step, b captions of this process, P pairs, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...encoders.packing import Packed
from .. import distributed
from .image_embeddings import HostRows
from .targets import Bank, Targets
from .text_features import HostFeatures


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Input of a step, on the device.

    Attributes:
        packed: the captions of this process, in micro-batches; with two passes all of them twice.
        targets: their images.
    """

    packed: Sequence[Packed]
    targets: Targets


@dataclass(frozen=True, kw_only=True)
class HostBank:
    """Further negatives of a step, read on the host.

    Attributes:
        emb: embeddings of M images.
        excluded: indices of images of the batch among them.
        masked: `[2, P]`, as in `Bank`.
    """

    emb: HostRows
    excluded: NDArray[np.int64]
    masked: NDArray[np.int64]

    def to(self, device: torch.device) -> Bank:
        """Move to the device without waiting for it."""
        emb = self.emb.to(device, non_blocking=True)
        bias = None
        if len(self.excluded):
            bias = torch.zeros(len(emb), device=device)
            bias[torch.from_numpy(self.excluded).to(device)] = -torch.inf
        return Bank(emb=emb, bias=bias, masked=self.masked)


@dataclass(frozen=True, kw_only=True)
class HostBatch:
    """Input of a step, on the host but for tables that the device holds for the whole run.

    Attributes:
        packed: the captions of this process, or their features, in micro-batches; with two passes all of them twice.
        image_emb: embeddings of this process's images, or of all B where the device holds the table.
        is_share: whether `image_emb` are this process's images alone, to be gathered from all processes.
        own: the images of this process, as a slice of the batch.
        image: `[b]`, index in the batch of each caption's image; None where each image has one caption.
        equal: `[2, P]`, captions of this process and other images of the batch with an equal caption.
        equal_are_positive: whether such pairs are positives.
        bank: negatives beyond the batch, if any.
        teacher_emb: the text teacher's embeddings of this process's captions, if the run has a teacher.
    """

    packed: Sequence[Packed | HostFeatures]
    image_emb: HostRows
    is_share: bool
    own: slice
    image: NDArray[np.int64] | None
    equal: NDArray[np.int64]
    equal_are_positive: bool
    bank: HostBank | None
    teacher_emb: HostRows | None

    def to(self, device: torch.device) -> Batch:
        """Move to the device without waiting for it; every process must call this for the same step."""
        packed = [micro_batch.to(device, non_blocking=True) for micro_batch in self.packed]
        image_emb = self.image_emb.to(device, non_blocking=True)
        if self.is_share:
            image_emb = distributed.gather(image_emb)
        targets = Targets(
            image_emb=image_emb.float(),
            own=self.own,
            image=self.image,
            equal=self.equal,
            equal_are_positive=self.equal_are_positive,
            bank=self.bank.to(device) if self.bank else None,
            teacher_emb=self.teacher_emb.to(device, non_blocking=True) if self.teacher_emb is not None else None,
        )
        return Batch(packed=packed, targets=targets)
