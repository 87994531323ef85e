"""Retrieval: how often a caption finds its picture, and a picture one of its captions. Pure numpy."""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

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
    """Both directions over one set of pictures and captions."""

    text_to_image: Ranks
    image_to_text: Ranks

    def to_json(self) -> dict[str, dict[str, float]]:
        """Nested plain numbers."""
        return asdict(self)


def retrieve(
    text_emb: NDArray[np.float32], image_emb: NDArray[np.float32], text_image: NDArray[np.int64]
) -> RetrievalReport:
    """Rank all pictures for each caption, and all captions for each picture that has one.

    Args:
        text_emb: `[M, D]`, unit norm.
        image_emb: `[N, D]`, unit norm.
        text_image: `[M]`, the row in `image_emb` of each caption's picture.

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
        owners = text_image[start : start + block]
        own = similarity[np.arange(len(owners)), owners][:, None]
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


def alignment(text_emb: NDArray[np.float32], image_emb: NDArray[np.float32]) -> float:
    """Mean squared distance of matching pairs `[B, D]`, unit norm (Wang & Isola 2020, arXiv:2005.10242, section 4)."""
    return float(np.mean(np.sum((text_emb - image_emb) ** 2, axis=1)))


def uniformity(emb: NDArray[np.float32], most: int = 2048) -> float:
    """Log of the mean Gaussian potential of distinct pairs, t = 2 (the same paper); lower is better, 0 is collapse.

    Args:
        emb: `[B, D]`, unit norm.
        most: rows taken, evenly spaced.
    """
    if len(emb) < 2:
        return 0.0
    taken = emb[:: -(-len(emb) // most)]
    cosine = (taken @ taken.T)[np.triu_indices(len(taken), 1)]
    return float(np.log(np.mean(np.exp(-4 * (1 - cosine)))))
