"""Embeddings of translations, the targets of a text teacher, as training reads them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...cache.format import TEACHER_EMB
from ...cache.read.cache import Cache
from ...cache.write.text_targets import TextTargetStatus
from ..errors import DistillError


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The teacher's embeddings of captions.

    Attributes:
        take: those of some captions, `[b, D] float16`; zeros where there is none.
    """

    take: Callable[[NDArray[np.int64]], NDArray[np.float16]]

    def read(self, captions: NDArray[np.int64], device: torch.device) -> Tensor:
        """Those of some captions, `[b, D] float16`, in memory that the device can fetch from."""
        read = torch.from_numpy(self.take(captions))
        return read.pin_memory() if device.type == "cuda" else read


def open_teacher(cache: Cache, memory_bytes: float) -> Teacher:
    """The teacher's embeddings of a sealed cache, checked against their checksums: mapped, or read if in no folder.

    Args:
        cache: whose captions are taught.
        memory_bytes: that may be taken where rows cannot be mapped.

    Raises:
        CacheError: a chunk is absent or damaged.
        DistillError: the cache has none, or none of a caption, or more than the memory holds.
    """
    remedy = "cache again with the --teacher-field of the captions in the language that the CLIP reads"
    if not cache.info.source.images:
        raise DistillError(
            f"--teacher-weight: the targets of {cache.path} are a teacher's already: drop it, and take --loss cosine"
        )
    if not cache.info.source.teacher_fields:
        raise DistillError(f"--teacher-weight: {cache.path} holds no teacher's embeddings: {remedy}")
    if not (cache.teacher_status() == TextTargetStatus.EMBEDDED).any():
        raise DistillError(f"--teacher-weight: no caption of {cache.path} has a teacher's embedding: {remedy}")
    if cache.arrays.is_folder:
        return Teacher(take=cache.mapped(TEACHER_EMB).check().take)
    if 2 * cache.info.num_captions * cache.info.encoder.dim > memory_bytes:  # captions are drawn from everywhere
        raise DistillError(
            f"{cache.path}: the embeddings of its teacher would take more than half of the free memory: copy the "
            "cache to a local disk, as a Zarr folder, from where they are mapped"
        )
    emb = cache.teacher_emb()
    return Teacher(take=lambda captions: emb.take(captions, axis=0))
