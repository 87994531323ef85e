"""Pairs of embeddings and tokens, as training and validation hold them in memory."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .image_embeddings import EmbeddingSource
from .text_targets import Teacher
from .tokens import TokenTable


@dataclass(frozen=True, kw_only=True)
class TrainData:
    """What a run trains on.

    Attributes:
        images: where embeddings `[N, D] float16` are read.
        tokens: of all captions.
        caption_image: `[M]`, the row of each caption's image, -1 where it was not embedded.
        caption_group: `[M]`, equal where captions have the same tokens, and so the same embedding.
        teacher: what a teacher makes of them, if it is asked.
    """

    images: EmbeddingSource
    tokens: TokenTable
    caption_image: NDArray[np.int64]
    caption_group: NDArray[np.int64]
    teacher: Teacher | None = None


@dataclass(frozen=True, kw_only=True)
class ValidationData:
    """What a run is measured on: n embedded images and their m captions.

    Attributes:
        image_emb: `[n, D] float32`.
        tokens: of all captions of the cache.
        captions: `[m]`, which of them have an embedded image.
        owners: `[m]`, the place in `image_emb` of each one's image.
        groups: `[m]`, equal where captions have the same tokens.
    """

    image_emb: NDArray[np.float32]
    tokens: TokenTable
    captions: NDArray[np.int64]
    image_index: NDArray[np.int64]
    groups: NDArray[np.int64]
