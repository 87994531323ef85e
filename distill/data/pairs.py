"""Pairs of images and captions: what training and validation read from a cache.

N images, M captions, D features; n held-out images with m captions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...cache.format import Status
from ...cache.progress import OnProgress, ignore_progress
from ...cache.read.cache import Cache
from ...encoders.tokenizer import TextTokenizer
from ...evals.retrieval import number_texts
from ..errors import DistillError
from .image_embeddings import EmbeddingSource
from .languages import LanguageMix, caption_languages
from .text_features import TextFeatures
from .tokens import Tokens, group_equal_captions, open_tokens


@dataclass(frozen=True, kw_only=True)
class TrainData:
    """Pairs that a run trains on.

    Attributes:
        images: source of the embeddings `[N, D] float16`.
        tokens: of all captions.
        caption_image: `[M]`, the row of each caption's image, -1 where it was not embedded, and for captions of
            languages that are left out.
        caption_weight: `[M]`, how often a caption is drawn, relative to others of its image; None for all alike.
        caption_group: `[M]`, equal for captions with the same tokens, and so the same embedding.
        text_targets: source of a text teacher's embeddings `[M, D] float16`, if the run has a teacher.
        features: of all captions, where a head learns from those of a frozen language model.
    """

    images: EmbeddingSource
    tokens: Tokens
    caption_image: NDArray[np.int64]
    caption_group: NDArray[np.int64]
    text_targets: EmbeddingSource | None = None
    features: TextFeatures | None = None
    caption_weight: NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True)
class ValidationData:
    """Pairs that a run is measured on.

    Attributes:
        image_emb: `[n, D] float32`.
        tokens: of all captions of the cache.
        captions: `[m]`, numbers of those whose image is embedded.
        image_index: `[m]`, index in `image_emb` of each caption's image.
        groups: `[m]`, equal for captions with the same tokens.
        text_ids: `[m]`, equal for captions that share their right images in retrieval.
        features: of all captions of the cache, as of `TrainData`.
        by_language: places in `captions` of each language, by name; empty with fewer than two.
    """

    image_emb: NDArray[np.float32]
    tokens: Tokens
    captions: NDArray[np.int64]
    image_index: NDArray[np.int64]
    groups: NDArray[np.int64]
    text_ids: NDArray[np.int64]
    features: TextFeatures | None = None
    by_language: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)

    @property
    def num_right(self) -> NDArray[np.int64]:
        """Right images of each caption, `[m]`: those that carry its text."""
        texts = np.unique(self.text_ids, return_inverse=True)[1].ravel()
        texts_with_images = np.unique(texts * len(self.image_emb) + self.image_index) // len(self.image_emb)
        return np.bincount(texts_with_images)[texts]


def load_train_data(
    cache: Cache,
    images: EmbeddingSource,
    tokenizer: TextTokenizer,
    context_length: int,
    fallback: Path,
    *,
    text_targets: EmbeddingSource | None = None,
    mix: LanguageMix | None = None,
    workers: int | None = None,
    on_progress: OnProgress = ignore_progress,
) -> TrainData:
    """Tokenize the captions of a cache, and find those that can be used.

    Args:
        cache: sealed.
        images: its embeddings.
        tokenizer: of the run.
        context_length: most tokens of a caption.
        fallback: folder for the token ids of this cache, used if the cache cannot be written.
        text_targets: embeddings of the captions' translations, if the run has a text teacher.
        mix: languages of the captions, and their weights; None for all captions alike.
        workers: processes that tokenize; by default one a core.
        on_progress: called while captions are tokenized.

    Raises:
        CacheError: the cache is damaged.
        DistillError: it has no caption of an embedded image.
    """
    caption_image = _usable_images(cache, cache.status() == Status.EMBEDDED)
    caption_weight = mix.caption_weights(caption_image) if mix else None
    if caption_weight is not None:
        caption_image = np.where(caption_weight > 0, caption_image, -1)
        if not (caption_image >= 0).any():
            raise DistillError(f"{cache.path}: no embedded image has a caption of the languages of --language")
    tokens = open_tokens(cache, tokenizer, context_length, fallback, workers=workers, on_progress=on_progress)
    return TrainData(
        images=images,
        tokens=tokens,
        caption_image=caption_image,
        caption_group=group_equal_captions(tokens),
        text_targets=text_targets,
        caption_weight=caption_weight,
    )


def load_validation_data(
    cache: Cache,
    tokenizer: TextTokenizer,
    context_length: int,
    fallback: Path,
    *,
    workers: int | None = None,
    on_progress: OnProgress = ignore_progress,
) -> ValidationData:
    """Read a cache of held-out pairs into memory; arguments and errors are those of `load_train_data`."""
    embedded = cache.status() == Status.EMBEDDED
    caption_image = _usable_images(cache, embedded)
    captions = np.flatnonzero(caption_image >= 0)
    index_of_row = np.cumsum(embedded) - 1
    tokens = open_tokens(cache, tokenizer, context_length, fallback, workers=workers, on_progress=on_progress)
    return ValidationData(
        image_emb=cache.image_emb()[embedded].astype(np.float32),
        tokens=tokens,
        captions=captions,
        image_index=index_of_row[caption_image[captions]],
        groups=group_equal_captions(tokens)[captions],
        # By text, not by tokens: recall must not grow where a tokenizer or a short context makes captions equal.
        text_ids=number_texts(cache.captions())[captions],
        by_language=_by_language(cache, captions),
    )


def _by_language(cache: Cache, captions: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Places in `captions [m]` of those of each language, most frequent first; none with fewer than two languages."""
    codes, names = caption_languages(cache)
    counts = np.bincount(codes[captions], minlength=len(names))
    order = [code for code in np.argsort(-counts, kind="stable").tolist() if counts[code]]
    return {names[code]: np.flatnonzero(codes[captions] == code) for code in order} if len(order) > 1 else {}


def _usable_images(cache: Cache, embedded: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The row of each caption's image, -1 where it was not embedded."""
    caption_image = cache.caption_image()
    usable = np.where(embedded[caption_image], caption_image, -1)
    if not (usable >= 0).any():
        raise DistillError(
            f"{cache.path} has no caption of an embedded image: cache again with the --text-field of the captions"
        )
    return usable
