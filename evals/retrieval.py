"""Retrieval: how often a caption finds its picture, and a picture one of its captions. Pure numpy."""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES = 64 * 2**20  # of similarities held at once


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Summary of 1-based ranks. Ties count half, so embeddings that are all alike score at chance, not at 100 %."""

    r_at_1: float
    r_at_5: float
    r_at_10: float
    median_rank: float
    num_queries: int
    num_candidates: int

    @classmethod
    def of(cls, ranks: NDArray[np.float64], num_candidates: int) -> "Ranks":
        """Summarise the rank of the right answer of each query."""
        at = {f"r_at_{k}": float((ranks <= k).mean()) for k in (1, 5, 10)}
        return cls(**at, median_rank=float(np.median(ranks)), num_queries=len(ranks), num_candidates=num_candidates)

    @property
    def chance_at_10(self) -> float:
        """R@10 of a random order."""
        return min(1.0, 10 / self.num_candidates)


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

    >>> eye = np.eye(3, dtype=np.float32)
    >>> retrieve(eye, eye, np.arange(3)).text_to_image.r_at_1
    1.0
    >>> retrieve(np.ones_like(eye), eye, np.arange(3)).text_to_image.r_at_1
    0.0
    """
    num_texts, num_images = len(text_emb), len(image_emb)
    text_ranks = np.empty(num_texts)
    block = max(1, BLOCK_BYTES // (4 * num_images))
    for start in range(0, num_texts, block):
        similarity = text_emb[start : start + block] @ image_emb.T  # [b, N]
        owners = text_image[start : start + block]
        own = similarity[np.arange(len(owners)), owners][:, None]
        greater, equal = (similarity > own).sum(1), (similarity == own).sum(1)
        text_ranks[start : start + block] = 1 + greater + (equal - 1) / 2

    owned = np.unique(text_image)
    image_ranks = np.empty(len(owned))
    block = max(1, BLOCK_BYTES // (4 * num_texts))
    for start in range(0, len(owned), block):
        rows = owned[start : start + block]
        similarity = image_emb[rows] @ text_emb.T  # [b, M]
        mine = text_image[None, :] == rows[:, None]
        best = np.where(mine, similarity, -np.inf).max(1, keepdims=True)
        others = np.where(mine, -np.inf, similarity)
        image_ranks[start : start + block] = 1 + (others > best).sum(1) + (others == best).sum(1) / 2
    return RetrievalReport(
        text_to_image=Ranks.of(text_ranks, num_images), image_to_text=Ranks.of(image_ranks, num_texts)
    )


def alignment(text_emb: NDArray[np.float32], image_emb: NDArray[np.float32]) -> float:
    """Mean squared distance of matching pairs `[B, D]`, unit norm (Wang & Isola 2020, arXiv:2005.10242, section 4)."""
    return float(np.mean(np.sum((text_emb - image_emb) ** 2, axis=1)))


def uniformity(emb: NDArray[np.float32], most: int = 2048) -> float:
    """Log of the mean Gaussian potential of distinct pairs, t = 2 (the same paper); lower is more uniform, 0 is collapse.

    Args:
        emb: `[B, D]`, unit norm.
        most: rows taken, evenly spaced.
    """
    if len(emb) < 2:
        return 0.0
    taken = emb[:: -(-len(emb) // most)]
    cosine = (taken @ taken.T)[np.triu_indices(len(taken), 1)]
    return float(np.log(np.mean(np.exp(-4 * (1 - cosine)))))
