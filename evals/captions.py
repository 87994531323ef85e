"""Captions of a cache for evaluation: those of embedded images, by language, and retrieval with them.

M captions of N images, D features. No image is opened.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..cache.format import Status
from ..cache.progress import OnProgress, Progress, ignore_progress
from ..cache.read.cache import Cache
from ..inference.errors import InputError
from ..inference.towers import Towers, require_same_tower
from .bootstrap import Difference, difference
from .errors import EvalError
from .retrieval import Retrieval, RetrievalReport, number_texts, retrieve

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
        places: `[M]`, of the captions among all of the cache.
    """

    texts: list[str]
    images: Indices
    image_emb: NDArray[np.float32]
    rows: Indices
    languages: list[str]
    places: Indices

    def tags(self) -> list[str]:
        """The language tags that occur, most frequent first."""
        tags, counts = np.unique([tag for tag in self.languages if tag], return_counts=True)
        return [str(tag) for tag in tags[np.argsort(-counts, kind="stable")]]

    def of_language(self, tag: str) -> Indices:
        """Positions of the captions with a tag."""
        return np.flatnonzero(np.array(self.languages) == tag)


def cached_captions(cache: Cache) -> Captions:
    """Captions of a cache whose image is embedded, and the embeddings of all images.

    Raises:
        EvalError: there is no such caption.
        CacheError: the cache is not complete.
    """
    embedded, image_emb = embedded_images(cache)
    row_of = np.full(len(cache), -1)
    row_of[embedded] = np.arange(len(embedded))
    images = row_of[cache.caption_image()]
    kept = np.flatnonzero(images >= 0)
    if not len(kept):
        raise EvalError(f"{cache.path} has no embedded image with a caption")
    texts, languages = cache.captions(), cache.languages()
    return Captions(
        texts=[texts[i] for i in kept],
        images=images[kept],
        image_emb=image_emb,
        rows=embedded,
        languages=[""] * len(kept) if languages is None else [languages[i] for i in kept],
        places=kept,
    )


def in_translation(cache: Cache, captions: Captions) -> Captions:
    """The same captions in translation (`--teacher-field` of `clipglot cache`), without languages.

    Raises:
        EvalError: there are no translations, or not as many.
    """
    every = cache.translations()
    texts = [every[i] for i in captions.places.tolist()] if every else []
    if not (num := sum(map(bool, texts))):
        raise EvalError(f"{cache.path} has no translations: cache it with --teacher-field FIELD")
    if num < len(texts):
        raise EvalError(
            f"{cache.path} has {len(texts):,} captions and {num:,} translations: the comparison needs one for each"
        )
    return replace(captions, texts=texts, languages=[""] * len(texts))


def embedded_images(cache: Cache) -> tuple[Indices, NDArray[np.float32]]:
    """Rows `[N]` of the embedded images of a cache, and their embeddings `[N, D] float32`.

    Raises:
        CacheError: the cache is not complete.
    """
    rows = np.flatnonzero(cache.require_sealed().status() == Status.EMBEDDED)
    return rows, embeddings(cache, rows)


def embeddings(cache: Cache, rows: Indices) -> NDArray[np.float32]:
    """Embeddings `[n, D] float32` of ascending rows of a cache."""
    emb = cache.image_emb()
    return (emb if len(rows) == len(emb) else emb[rows]).astype(np.float32)


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
    return emb if len(distinct) == len(texts) else emb[numbers]


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
    texts, images = captions.texts, captions.images
    if chosen is not None:
        texts, images, text_emb = [texts[i] for i in chosen.tolist()], images[chosen], text_emb[chosen]
    return retrieve(text_emb, captions.image_emb, images, number_texts(texts), on_progress)


def retrieve_by_language(
    captions: Captions, text_emb: NDArray[np.float32], on_progress: OnProgress = ignore_progress
) -> dict[str, RetrievalReport]:
    """Retrieval with the captions of each language over all images, by tag; empty with fewer than two languages.

    Args:
        captions: of the cache.
        text_emb: `[M, D]`, of the captions.
        on_progress: as of `retrieve`.
    """
    tags = captions.tags()
    if len(tags) < 2:
        return {}
    return {tag: retrieve_captions(captions, text_emb, captions.of_language(tag), on_progress).report() for tag in tags}


def recall_differences(ours: Retrieval, theirs: Retrieval, ks: Sequence[int]) -> list[Difference]:
    """Differences of the recalls of both directions, with the same queries in the same order."""
    return [
        difference(f"{name} R@{k}", own.recall(k), other.recall(k), own.images)
        for name, own, other in (
            ("text → image", ours.text_to_image, theirs.text_to_image),
            ("image → text", ours.image_to_text, theirs.image_to_text),
        )
        for k in ks
    ]
