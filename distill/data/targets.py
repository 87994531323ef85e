"""What the captions of a step are held against, and how a loss walks over it in blocks.

B images of a step, b captions of this process, M further images, D features.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Logits of one block: what the loss holds at a time, whatever B is. 16 MB on the CPU, where they should stay near the
# caches; 256 MB on a GPU, where each kernel should have enough to do.
CPU_LOGITS, CUDA_LOGITS = 2**22, 2**26


@dataclass(frozen=True, kw_only=True)
class Bank:
    """Images beyond the batch that every caption is held against, too.

    Attributes:
        emb: `[M, D]`, unit norm, constants, on the device.
        bias: `[M] float32`, 0, or -inf where an image is no negative of any caption; None where all are negatives.
        masked: `[2, P]`, a caption of this process and an image of the bank that carries the same; ascending in the
            second, on the host.
    """

    emb: Tensor
    bias: Tensor | None
    masked: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The images of a step.

    Attributes:
        image_emb: `[B, D]`, unit norm, constants: of the whole batch, on every process.
        own: where in the batch the images of this process are.
        image: `[b]`, where in the batch the image of each caption is, ascending, on the host; None where each
            image has one caption.
        equal: `[2, P]`, a caption of this process and another image of the batch that carries the same; ascending in
            the first, on the host.
        equal_are_positive: whether losses that contrast draw such pairs together; they leave them out otherwise.
        bank: further negatives of the text→image softmax.
        teacher_emb: `[b, D]`, the teacher's embeddings of this process's captions, zeros where there is none.
    """

    image_emb: Tensor
    own: slice
    image: NDArray[np.int64] | None = None
    equal: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, 0), np.int64))
    equal_are_positive: bool = False
    bank: Bank | None = None
    teacher_emb: Tensor | None = None

    def of_captions(self, values: Tensor) -> Tensor:
        """What this process's captions have of something that each image has: `[B, …]` to `[b, …]`."""
        return values[self.own if self.image is None else torch.from_numpy(self.image).to(values.device)]

    def own_emb(self, dtype: torch.dtype) -> Tensor:
        """The images of this process's captions, `[b, D]`."""
        return self.of_captions(self.image_emb).to(dtype)

    def shares(self, dtype: torch.dtype) -> Tensor:
        """What each caption counts among those of its image, `[b]`: all together 1."""
        if self.image is None:
            return self.image_emb.new_ones(self.own.stop - self.own.start, dtype=dtype)
        _, place, count = np.unique(self.image, return_inverse=True, return_counts=True)
        return torch.from_numpy(1 / count[place]).to(self.image_emb.device, dtype)

    def mean(self, values: Tensor) -> Tensor:
        """What this process adds to the mean over all images of something that each caption has, `[b]` to `[]`."""
        return (values * self.shares(values.dtype)).sum() / len(self.image_emb)

    def equal_pairs(self) -> tuple[Tensor, Tensor]:
        """`equal` on the device: captions `[P]` and images `[P]`."""
        captions, images = torch.from_numpy(self.equal).to(self.image_emb.device)
        return captions, images

    def mask_(self, logits: Tensor, block: slice) -> Tensor:
        """Set the logits `[r, B]` of captions and other images that carry the same to -inf.

        Args:
            logits: of a block of this process's captions against the batch.
            block: which of them.
        """
        start, end = self.equal[0].searchsorted([block.start, block.stop])
        if end > start:
            rows, columns = torch.from_numpy(self.equal[:, start:end]).to(logits.device)
            logits[rows - block.start, columns] = -torch.inf
        return logits

    def mask_unless_positive_(self, logits: Tensor, block: slice) -> Tensor:
        """The same unless they are drawn together."""
        return logits if self.equal_are_positive else self.mask_(logits, block)


def blocks(length: int, others: int, device: torch.device) -> Iterator[slice]:
    """Cut `length` so that a block of it against `others` stays small enough."""
    rows = max(1, (CUDA_LOGITS if device.type == "cuda" else CPU_LOGITS) // others)
    for start in range(0, length, rows):
        yield slice(start, min(start + rows, length))
