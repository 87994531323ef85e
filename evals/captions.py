"""Captions of a cache for evaluation: those of embedded images, by language, and retrieval with them.

M captions of N images, D features. No image is opened.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..cache.format import Status
from ..cache.progress import OnProgress, Progress, ignore_progress
from ..cache.read.cache import Cache
from ..inference.errors import InputError
from ..inference.towers import Towers, require_same_tower
from .errors import EvalError
from .retrieval import Retrieval, number_texts, retrieve

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Captions:
    """Captions of the embedded images of a cache.

    Attributes:
        texts: `[M]`.
        images: `[M]`, row in `image_emb` of each caption's image.
        image_emb: `[N, D] float32`, of the embedded images.
        rows: `[N]`, of these images in the cache.
        languages: `[M]` tags, "" for a caption without one.
    """

    texts: list[str]
    images: Indices
    image_emb: NDArray[np.float32]
    rows: Indices
    languages: list[str]

    def tags(self) -> list[str]:
        """The language tags that occur, most frequent first."""
        tags, counts = np.unique([tag for tag in self.languages if tag], return_counts=True)
        return [str(tag) for tag in tags[np.argsort(-counts, kind="stable")]]

    def of_language(self, tag: str) -> Indices:
        """Positions of the captions with a tag."""
        return np.flatnonzero(np.array(self.languages) == tag)


def cached_captions(cache: Cache, *, translations: bool = False) -> Captions:
    """Captions of a cache whose image is embedded, and the embeddings of all images.

    Args:
        cache: with captions.
        translations: take the captions' translations (`--teacher-field`), without languages.

    Raises:
        EvalError: there is no such caption, or no translation.
        CacheError: the cache is not complete.
    """
    embedded, image_emb = embedded_images(cache)
    row_of = np.full(len(cache), -1)
    row_of[embedded] = np.arange(len(embedded))
    images = row_of[cache.caption_image()]
    texts = cache.translations() if translations else cache.captions()
    if translations and not any(texts):
        raise EvalError(f"{cache.path} has no translations: cache it with --teacher-field FIELD")
    kept = [i for i in np.flatnonzero(images >= 0).tolist() if texts[i] or not translations]
    if not kept:
        raise EvalError(f"{cache.path} has no embedded image with a caption")
    languages = None if translations else cache.languages()
    return Captions(
        texts=[texts[i] for i in kept],
        images=images[kept],
        image_emb=image_emb,
        rows=embedded,
        languages=[""] * len(kept) if languages is None else [languages[i] for i in kept],
    )


def embedded_images(cache: Cache) -> tuple[Indices, NDArray[np.float32]]:
    """Rows `[N]` of the embedded images of a cache, and their embeddings `[N, D] float32`.

    Raises:
        CacheError: the cache is not complete.
    """
    rows = np.flatnonzero(cache.require_sealed().status() == Status.EMBEDDED)
    emb = cache.image_emb()
    return rows, (emb if len(rows) == len(emb) else emb[rows]).astype(np.float32)


def require_tower_of(clip: Towers, cache: Cache) -> None:
    """Refuse a cache that another image tower made.

    Raises:
        EvalError: names what differs.
        CacheError: the cache is not complete.
    """
    try:
        require_same_tower(clip, cache)
    except InputError as error:
        raise EvalError(str(error)) from error


def encode(clip: Towers, texts: Sequence[str], on_progress: OnProgress) -> NDArray[np.float32]:
    """Unit embeddings `[n, D]` of texts, each distinct one encoded once; stage `encode texts`."""
    numbers = number_texts(texts)
    distinct = [texts[i] for i in np.unique(numbers, return_index=True)[1]]
    emb = clip.encode_texts(
        distinct, on_progress=lambda done, total: on_progress(Progress("encode texts", done, total))
    )
    return emb[numbers]


def retrieve_captions(
    captions: Captions,
    text_emb: NDArray[np.float32],
    chosen: Indices | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Retrieval:
    """Retrieval with some captions over all images of a cache.

    Args:
        captions: of the cache.
        text_emb: `[M, D]`, of the captions.
        chosen: positions of captions; None for all.
        on_progress: as of `retrieve`.
    """
    kept = np.arange(len(captions.texts)) if chosen is None else chosen
    ids = number_texts([captions.texts[i] for i in kept])
    return retrieve(text_emb[kept], captions.image_emb, captions.images[kept], ids, on_progress)
