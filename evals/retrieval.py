"""Retrieval: how often a caption finds its image, and an image one of its captions. Pure numpy."""

from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..cache.format import Status
from ..cache.read.cache import Cache
from ..encoders.merged_clip import MergedClip
from .errors import EvalError

Counts = NDArray[np.int64]
BLOCK_BYTES = 64 * 2**20  # of similarities held at once


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Summary of 1-based ranks. Ties are put in random order, so embeddings that are all alike score at chance."""

    r_at_1: float
    r_at_5: float
    r_at_10: float
    median_rank: float
    num_queries: int
    num_candidates: int

    @classmethod
    def of(cls, ahead: Counts, right: Counts, wrong: Counts, num_candidates: int) -> "Ranks":
        """Summarise Q queries by what stands before and beside the best right answer of each, all `[Q]`.

        Args:
            ahead: wrong answers that are more similar.
            right: right answers that are exactly as similar as the best one, itself included.
            wrong: wrong answers that are exactly as similar.
            num_candidates: answers to choose from.
        """
        recalls, missed = {}, np.ones(len(ahead))
        for k in range(1, 11):
            # A query still misses after place k if a wrong answer stands there: so many of the tied ones are placed.
            placed = np.clip(k - 1 - ahead, 0, wrong)
            missed = np.where(ahead < k, missed * (wrong - placed) / (right + wrong - placed), missed)
            recalls[k] = float((1 - missed).mean())
        # The first of `right` among `wrong` in random order stands, on average, behind wrong / (right + 1) of them.
        median = float(np.median(1 + ahead + wrong / (right + 1)))
        at = {f"r_at_{k}": recalls[k] for k in (1, 5, 10)}
        return cls(**at, median_rank=median, num_queries=len(ahead), num_candidates=num_candidates)


@dataclass(frozen=True, kw_only=True)
class RetrievalReport:
    """Both directions over one set of images and captions."""

    text_to_image: Ranks
    image_to_text: Ranks

    def to_json(self) -> dict[str, dict[str, float]]:
        """Nested plain numbers."""
        return asdict(self)


def retrieve(
    text_emb: NDArray[np.float32], image_emb: NDArray[np.float32], text_image: NDArray[np.int64]
) -> RetrievalReport:
    """Rank all images for each caption, and all captions for each image that has one.

    Args:
        text_emb: `[M, D]`, unit norm.
        image_emb: `[N, D]`, unit norm.
        text_image: `[M]`, the row in `image_emb` of each caption's image.

    Raises:
        EvalError: an embedding is not finite; nothing compares with it, so it would score anything.

    >>> eye = np.eye(3, dtype=np.float32)
    >>> retrieve(eye, eye, np.arange(3)).text_to_image.r_at_1
    1.0
    >>> round(retrieve(np.ones_like(eye), eye, np.arange(3)).text_to_image.r_at_1, 3)
    0.333
    """
    for what, emb in (("text", text_emb), ("image", image_emb)):
        if not np.isfinite(emb).all():
            raise EvalError(f"the {what} embeddings hold NaN or infinity: the tower that made them has diverged")
    num_texts, num_images = len(text_emb), len(image_emb)
    ahead, beside = np.empty(num_texts, np.int64), np.empty(num_texts, np.int64)
    block = max(1, BLOCK_BYTES // (4 * num_images))
    for start in range(0, num_texts, block):
        similarity = text_emb[start : start + block] @ image_emb.T  # [b, N]
        image_index = text_image[start : start + block]
        own = similarity[np.arange(len(image_index)), image_index][:, None]
        ahead[start : start + block] = (similarity > own).sum(1)
        beside[start : start + block] = (similarity == own).sum(1) - 1
    text_to_image = Ranks.of(ahead, np.ones_like(ahead), beside, num_images)

    owned = np.unique(text_image)
    ahead, right, beside = (np.empty(len(owned), np.int64) for _ in range(3))
    block = max(1, BLOCK_BYTES // (4 * num_texts))
    for start in range(0, len(owned), block):
        rows = owned[start : start + block]
        similarity = image_emb[rows] @ text_emb.T  # [b, M]
        mine = text_image[None, :] == rows[:, None]
        best = np.where(mine, similarity, -np.inf).max(1, keepdims=True)
        level = similarity == best
        ahead[start : start + block] = (similarity > best).sum(1)
        right[start : start + block] = (level & mine).sum(1)
        beside[start : start + block] = (level & ~mine).sum(1)
    return RetrievalReport(text_to_image=text_to_image, image_to_text=Ranks.of(ahead, right, beside, num_texts))


def retrieve_from_cache(clip: MergedClip, cache: Cache) -> RetrievalReport:
    """Retrieve the images of a cache by their captions and back; no image is opened.

    Raises:
        EvalError: the cache was made by another image tower, or has no caption of an embedded image.
        CacheError: the cache is not complete.
    """
    info = cache.require_sealed().info.encoder
    tower = clip.image_tower
    merged = replace(
        info, weights_sha256=tower.weights_sha256, preprocess=tower.preprocess, quick_gelu=tower.quick_gelu
    )
    name = info.difference(merged)
    if name:
        raise EvalError(
            f"{cache.path} was made by {info.model} ({name} {getattr(info, name)}), the image tower of {clip.folder} "
            f"is another ({name} {getattr(merged, name)}): cache the images with --model local-dir:{clip.folder}"
        )
    embedded = np.flatnonzero(cache.status() == Status.EMBEDDED)
    row_of = np.full(len(cache), -1)
    row_of[embedded] = np.arange(len(embedded))
    text_image = row_of[cache.caption_image()]
    kept = np.flatnonzero(text_image >= 0)
    if not len(kept):
        raise EvalError(f"{cache.path} has no embedded image with a caption")
    captions = cache.captions()
    text_emb = clip.encode_texts([captions[i] for i in kept])
    return retrieve(text_emb, cache.image_emb()[embedded].astype(np.float32), text_image[kept])
