"""What training and validation run on: embeddings on the device, captions as ids, and who belongs to whom."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..cache.format import Status
from ..cache.store import Cache
from ..encoders.tokenizer import CaptionTokenizer
from .batches import group_equal_captions
from .errors import DistillError
from .tokens import TokenTable, open_tokens


@dataclass(frozen=True, kw_only=True)
class TrainData:
    """What a run trains or validates on. N pictures, M captions, D features.

    Attributes:
        image_emb: `[N, D] float16` on the device; rows that were not embedded are zero and in no pair.
        tokens: of all captions.
        caption_image: `[M]`, the row of each caption's picture, -1 where it was not embedded.
        caption_group: `[M]`, equal where captions have the same tokens, and so the same embedding.
    """

    image_emb: Tensor
    tokens: TokenTable
    caption_image: NDArray[np.int64]
    caption_group: NDArray[np.int64]


def load_data(
    cache: Cache, tokenizer: CaptionTokenizer, context_length: int, device: torch.device, beside: Path
) -> TrainData:
    """Bring a cache's embeddings to the device and its captions into token ids.

    Args:
        cache: sealed.
        tokenizer: of the run.
        context_length: most ids of a caption.
        device: of the embeddings.
        beside: folder for the ids of this cache, used if it cannot be written.

    Raises:
        CacheError: the cache is damaged.
        DistillError: it has no caption of an embedded picture.
    """
    embedded = cache.status() == Status.EMBEDDED
    caption_image = cache.caption_image()
    usable = np.where(embedded[caption_image], caption_image, -1)
    if not (usable >= 0).any():
        raise DistillError(
            f"{cache.path} has no caption of an embedded picture: cache again with the --text-field of the captions"
        )
    tokens = open_tokens(cache, tokenizer, context_length, beside)
    return TrainData(
        image_emb=torch.from_numpy(cache.image_emb()).to(device),
        tokens=tokens,
        caption_image=usable,
        caption_group=group_equal_captions(tokens),
    )
