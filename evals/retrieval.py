"""Cross-modal retrieval: recall at k and median rank, text to image and image to text. Pure numpy.

Captions with the same text are one caption of several images: every image that carries a caption is a right answer to
it, and every caption that an image carries is one to the image, also in the rows of other images.

M captions, N images, D features.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache.format import Status
from ..cache.read.cache import Cache
from ..inference.errors import InputError
from ..inference.towers import Towers, require_same_tower
from .errors import EvalError

Indices = NDArray[np.int64]
BLOCK_BYTES = 64 * 2**20  # of similarities held at once
DEFINITION = (
    "text to image: any image that has the caption's text among its captions is right; image to text: any caption "
    "whose text is among the image's captions is right; ties are put in random order"
)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Recall at k and median rank of one direction, with ties in random order: equal embeddings score at chance.

    Attributes:
        r_at_1: share of the queries with a right answer in first place.
        r_at_5: among the first 5.
        r_at_10: among the first 10.
        median_rank: of the first right answer, from 1.
        num_queries: Q.
        num_candidates: answers that each query ranks.
    """

    r_at_1: float
    r_at_5: float
    r_at_10: float
    median_rank: float
    num_queries: int
    num_candidates: int

    @classmethod
    def of(cls, ahead: Indices, right: Indices, wrong: Indices, num_candidates: int) -> "Ranks":
        """Expected recall and rank over random orders of ties, from three counts for each query, all `[Q]`.

        Args:
            ahead: wrong answers more similar than the best right one.
            right: right answers exactly as similar as the best one, itself included.
            wrong: wrong answers exactly as similar as the best right one.
            num_candidates: answers that each query ranks.
        """
        recalls, missed = {}, np.ones(len(ahead))
        for k in range(1, 11):
            # Place k holds a wrong answer if it is drawn from the tied wrong ones that no earlier place has taken.
            placed = np.clip(k - 1 - ahead, 0, wrong)
            missed = np.where(ahead < k, missed * (wrong - placed) / (right + wrong - placed), missed)
            recalls[k] = float((1 - missed).mean())
        # In random order, wrong / (right + 1) of the wrong answers precede the first right one on average.
        median = float(np.median(1 + ahead + wrong / (right + 1)))
        at = {f"r_at_{k}": recalls[k] for k in (1, 5, 10)}
        return cls(**at, median_rank=median, num_queries=len(ahead), num_candidates=num_candidates)


@dataclass(frozen=True, kw_only=True)
class RetrievalReport:
    """Retrieval metrics of both directions over the same images and captions."""

    text_to_image: Ranks
    image_to_text: Ranks

    def to_json(self) -> dict[str, Any]:
        """Metrics of both directions as plain numbers, and the definition of a right answer."""
        return asdict(self) | {"definition": DEFINITION}


def retrieve(
    text_emb: NDArray[np.float32],
    image_emb: NDArray[np.float32],
    text_image: Indices,
    text_ids: Indices | None = None,
) -> RetrievalReport:
    """Retrieval metrics: all images ranked for each caption, all captions for each image that has one.

    Args:
        text_emb: `[M, D]`, unit norm.
        image_emb: `[N, D]`, unit norm.
        text_image: `[M]`, row in `image_emb` of each caption's image.
        text_ids: `[M]`, equal for captions of the same text (`number_texts`); None if all texts differ.

    Raises:
        EvalError: an embedding is NaN or infinite; comparisons with it are false, so its rank would mean nothing.

    >>> eye = np.eye(3, dtype=np.float32)
    >>> retrieve(eye, eye, np.arange(3)).text_to_image.r_at_1
    1.0
    >>> cats = eye[[0, 0, 1]]  # two images of "a cat", found by either caption
    >>> retrieve(cats, cats, np.arange(3), np.array([0, 0, 1])).text_to_image.r_at_1
    1.0
    """
    for what, emb in (("text", text_emb), ("image", image_emb)):
        if not np.isfinite(emb).all():
            raise EvalError(f"the {what} embeddings hold NaN or infinity: the tower that made them has diverged")
    ids = np.arange(len(text_emb)) if text_ids is None else np.unique(text_ids, return_inverse=True)[1].ravel()
    captions_of_image, captions_of_text = _members(text_image), _members(ids)

    def right_images(caption: int) -> Indices:
        return text_image[captions_of_text(ids[caption])]

    def right_captions(image: int) -> Indices:
        return np.concatenate([captions_of_text(text) for text in np.unique(ids[captions_of_image(image)])])

    return RetrievalReport(
        text_to_image=_rank(text_emb, np.arange(len(text_emb)), image_emb, right_images),
        image_to_text=_rank(image_emb, np.unique(text_image), text_emb, right_captions),
    )


def number_texts(captions: Sequence[str]) -> Indices:
    """Numbers `[M]` of the captions' texts, equal for equal texts.

    >>> number_texts(["a cat", "a dog", "a cat"]).tolist()
    [0, 1, 0]
    """
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(caption, len(numbers)) for caption in captions], np.int64)


def _rank(
    emb: NDArray[np.float32], rows: Indices, candidates: NDArray[np.float32], right_of: Callable[[int], Indices]
) -> Ranks:
    """Ranks of the right candidates of each query, from similarities in blocks.

    Args:
        emb: embeddings of the queries and others.
        rows: `[Q]`, rows in `emb` of the queries.
        candidates: embeddings that each query ranks.
        right_of: gives the right candidates for a row of `emb`, at least one.
    """
    ahead, right, wrong = (np.empty(len(rows), np.int64) for _ in range(3))
    block = max(1, BLOCK_BYTES // (4 * len(candidates)))
    for start in range(0, len(rows), block):
        queries = rows[start : start + block]
        similarity = emb[queries] @ candidates.T  # [b, candidates]
        is_right = np.zeros(similarity.shape, bool)
        for query, mask in zip(queries, is_right, strict=True):
            mask[right_of(query)] = True
        best = np.where(is_right, similarity, -np.inf).max(1, keepdims=True)
        tied = similarity == best
        ahead[start : start + block] = (similarity > best).sum(1)
        right[start : start + block] = (tied & is_right).sum(1)
        wrong[start : start + block] = (tied & ~is_right).sum(1)
    return Ranks.of(ahead, right, wrong, len(candidates))


def _members(groups: Indices) -> Callable[[int], Indices]:
    """Look-up from a group's number to the positions of its members in `groups`."""
    order = np.argsort(groups, kind="stable")
    ends = np.cumsum(np.bincount(groups))
    return lambda group: order[ends[group - 1] if group else 0 : ends[group]]


def retrieve_from_cache(clip: Towers, cache: Cache) -> RetrievalReport:
    """Retrieval metrics of a merged CLIP on the captions and image embeddings of a cache; no image is opened.

    Raises:
        EvalError: the cache was made by another image tower, or has no caption of an embedded image.
        CacheError: the cache is not complete.
    """
    try:
        require_same_tower(clip, cache)
    except InputError as error:
        raise EvalError(str(error)) from error
    embedded = np.flatnonzero(cache.status() == Status.EMBEDDED)
    row_of = np.full(len(cache), -1)
    row_of[embedded] = np.arange(len(embedded))
    text_image = row_of[cache.caption_image()]
    kept = np.flatnonzero(text_image >= 0)
    if not len(kept):
        raise EvalError(f"{cache.path} has no embedded image with a caption")
    all_captions = cache.captions()
    captions = [all_captions[i] for i in kept]
    return retrieve(
        clip.encode_texts(captions),
        cache.image_emb()[embedded].astype(np.float32),
        text_image[kept],
        number_texts(captions),
    )
