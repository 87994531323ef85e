"""Targets of a step: the images that its captions are compared with, and blocks of logits.

B images of a step, b captions of this process, M further images, P pairs, D features, r captions of a block.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Logits of one block, the most that a loss holds at a time for any B. 16 MB on the CPU, where they should stay near the
# caches; 256 MB on a GPU, where each kernel should have enough to do.
CPU_LOGITS, CUDA_LOGITS = 2**22, 2**26


@dataclass(frozen=True, kw_only=True)
class Bank:
    """Cached images beyond the batch, further negatives of its captions.

    Attributes:
        emb: `[M, D]`, unit norm, constants, on the device.
        bias: `[M] float32`, 0, or -inf for images that are no negative of any caption; None where all are negatives.
        masked: `[2, P]`, captions of this process and images of the bank with an equal caption, which are no negatives
            of it; ascending in the second, on the host.
    """

    emb: Tensor
    bias: Tensor | None
    masked: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Images of a step.

    Attributes:
        image_emb: `[B, D]`, unit norm, constants: of the whole batch, in every process.
        own: the images of this process, as a slice of the batch.
        image: `[b]`, index in the batch of each caption's image, ascending, on the host; None where each image has one
            caption.
        equal: `[2, P]`, captions of this process and other images of the batch with an equal caption; ascending in the
            first, on the host.
        equal_are_positive: whether contrastive losses take such pairs as positives; else they leave them out.
        bank: further negatives of the text→image softmax.
        teacher_emb: `[b, D]`, the text teacher's embeddings of this process's captions, zeros where there is none.
    """

    image_emb: Tensor
    own: slice
    image: NDArray[np.int64] | None = None
    equal: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, 0), np.int64))
    equal_are_positive: bool = False
    bank: Bank | None = None
    teacher_emb: Tensor | None = None

    def of_captions(self, values: Tensor) -> Tensor:
        """Values of each caption's image: `[B, …]` to `[b, …]`."""
        return values[self.own if self.image is None else torch.from_numpy(self.image).to(values.device)]

    def own_emb(self, dtype: torch.dtype) -> Tensor:
        """Embeddings of each caption's image, `[b, D]`."""
        return self.of_captions(self.image_emb).to(dtype)

    def weights(self, dtype: torch.dtype) -> Tensor:
        """Weight of each caption, `[b]`: the captions of an image weigh 1 together."""
        if self.image is None:
            return self.image_emb.new_ones(self.own.stop - self.own.start, dtype=dtype)
        _, place, count = np.unique(self.image, return_inverse=True, return_counts=True)
        return torch.from_numpy(1 / count[place]).to(self.image_emb.device, dtype)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over all images of the values of captions, `[b]` to `[]`: the part of this process."""
        return (values * self.weights(values.dtype)).sum() / len(self.image_emb)

    def equal_pairs(self) -> tuple[Tensor, Tensor]:
        """`equal` on the device: captions `[P]` and images `[P]`."""
        captions, images = torch.from_numpy(self.equal).to(self.image_emb.device)
        return captions, images

    def mask_(self, logits: Tensor, block: slice) -> Tensor:
        """Set the logits `[r, B]` of captions and other images with an equal caption to -inf.

        Args:
            logits: of a block of this process's captions against the batch.
            block: the captions of the block.
        """
        start, end = self.equal[0].searchsorted([block.start, block.stop])
        if end > start:
            rows, columns = torch.from_numpy(self.equal[:, start:end]).to(logits.device)
            logits[rows - block.start, columns] = -torch.inf
        return logits

    def mask_unless_positive_(self, logits: Tensor, block: slice) -> Tensor:
        """As `mask_`, unless such pairs are positives."""
        return logits if self.equal_are_positive else self.mask_(logits, block)


def row_blocks(num_rows: int, num_columns: int, device: torch.device) -> Iterator[slice]:
    """Cut the rows of a matrix of logits into blocks that stay within the device's bound."""
    rows = max(1, (CUDA_LOGITS if device.type == "cuda" else CPU_LOGITS) // num_columns)
    for start in range(0, num_rows, rows):
        yield slice(start, min(start + rows, num_rows))
