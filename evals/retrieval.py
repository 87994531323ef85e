"""Cross-modal retrieval: recall at k and median rank, text to image and image to text. Pure numpy.

Captions with the same text are one caption of several images: every image that carries a caption is a right answer to
it, and every caption that an image carries is one to the image, also in the rows of other images.

M captions of U texts, N images, D features. One blocked product of U x N cosines serves both directions; memory is
that of the embeddings.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache.progress import OnProgress, Progress, ignore_progress
from .errors import EvalError

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
TIE = np.float32(1e-6)  # cosines within it are equal: float32 gives the same pair others of some 1e-7 in other blocks
TEXTS, IMAGES, ROWS = 1020, 4096, 255  # of a product, and rows compared at once: counts of these fit in a byte
DEFINITION = (
    "text to image: any image that has the caption's text among its captions is right; image to text: any caption "
    "whose text is among the image's captions is right; ties (cosines within 1e-6) are put in random order"
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


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where each of Q queries has its best right answer, as counts of answers.

    Attributes:
        ahead: `[Q]`, wrong answers more similar than the best right one.
        right: `[Q]`, right answers exactly as similar as the best one, itself included.
        wrong: `[Q]`, wrong answers exactly as similar as the best right one.
        images: `[Q]`, row of the image that each query is or belongs to.
        num_candidates: answers that each query ranks.
    """

    ahead: Indices
    right: Indices
    wrong: Indices
    images: Indices
    num_candidates: int

    def recall(self, k: int) -> NDArray[np.float64]:
        """Chance `[Q]` that a right answer is among the first k, over random orders of ties."""
        missed = np.ones(len(self.ahead))
        for place in range(k):
            # A wrong answer is here if it is drawn from the tied wrong ones that no earlier place has taken.
            placed = np.clip(place - self.ahead, 0, self.wrong)
            still = missed * (self.wrong - placed) / (self.right + self.wrong - placed)
            missed = np.where(self.ahead <= place, still, missed)
        return 1 - missed

    def ranks(self) -> NDArray[np.float64]:
        """Expected rank `[Q]` of the first right answer, from 1."""
        # In random order, wrong / (right + 1) of the wrong answers precede the first right one on average.
        return 1 + self.ahead + self.wrong / (self.right + 1)

    def take(self, queries: Indices) -> "Places":
        """Places of some of the queries."""
        parts = {name: getattr(self, name)[queries] for name in ("ahead", "right", "wrong", "images")}
        return Places(**parts, num_candidates=self.num_candidates)

    def summary(self) -> Ranks:
        """Means over the queries."""
        at = {f"r_at_{k}": float(self.recall(k).mean()) for k in (1, 5, 10)}
        median = float(np.median(self.ranks()))
        return Ranks(**at, median_rank=median, num_queries=len(self.ahead), num_candidates=self.num_candidates)


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Places of both directions over the same images and captions."""

    text_to_image: Places
    image_to_text: Places

    def report(self) -> "RetrievalReport":
        """Metrics of both directions."""
        return RetrievalReport(text_to_image=self.text_to_image.summary(), image_to_text=self.image_to_text.summary())


@dataclass(frozen=True, kw_only=True)
class RetrievalReport:
    """Retrieval metrics of both directions over the same images and captions."""

    text_to_image: Ranks
    image_to_text: Ranks

    @property
    def mean_recall(self) -> float:
        """Mean of the six recalls."""
        return float(
            np.mean([getattr(d, f"r_at_{k}") for d in (self.text_to_image, self.image_to_text) for k in (1, 5, 10)])
        )

    def to_json(self) -> dict[str, Any]:
        """Metrics of both directions as plain numbers, and the definition of a right answer."""
        return asdict(self) | {"mean_recall": self.mean_recall, "definition": DEFINITION}


def retrieve(
    text_emb: Floats,
    image_emb: Floats,
    text_image: Indices,
    text_ids: Indices | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Retrieval:
    """Places of all images for each caption, and of all captions for each image that has one.

    Args:
        text_emb: `[M, D]`, unit norm; of captions of the same text, the first one's counts.
        image_emb: `[N, D]`, unit norm.
        text_image: `[M]`, row in `image_emb` of each caption's image.
        text_ids: `[M]`, equal for captions of the same text (`number_texts`); None if all texts differ.
        on_progress: called with the texts of stage `rank`.

    Raises:
        EvalError: an embedding is NaN or infinite; comparisons with it are false, so its rank would mean nothing.

    >>> eye = np.eye(3, dtype=np.float32)
    >>> retrieve(eye, eye, np.arange(3)).report().text_to_image.r_at_1
    1.0
    >>> cats = eye[[0, 0, 1]]  # two images of "a cat", found by either caption
    >>> retrieve(cats, cats, np.arange(3), np.array([0, 0, 1])).report().text_to_image.r_at_1
    1.0
    """
    for what, emb in (("text", text_emb), ("image", image_emb)):
        if not np.isfinite(emb).all():
            raise EvalError(f"the {what} embeddings hold NaN or infinity: the tower that made them has diverged")
    ids = np.arange(len(text_emb)) if text_ids is None else text_ids
    _, first, text_of, copies = np.unique(ids, return_index=True, return_inverse=True, return_counts=True)
    if not np.array_equal(first, np.arange(len(text_emb))):  # else no copy
        text_emb = text_emb[first]
    pairs = np.unique(text_of * np.int64(len(image_emb)) + text_image)
    pair_text, pair_image = np.divmod(pairs, len(image_emb))
    cosines = _pair_cosines(text_emb, image_emb, pair_text, pair_image)
    best_of_text, best_of_image = (np.full(len(emb), -np.inf, np.float32) for emb in (text_emb, image_emb))
    np.maximum.at(best_of_text, pair_text, cosines)
    np.maximum.at(best_of_image, pair_image, cosines)
    ahead, upto = _count(text_emb, image_emb, copies, best_of_text, best_of_image, on_progress)
    right = (
        np.bincount(pair_text, cosines > best_of_text[pair_text] - TIE, len(text_emb)).astype(np.int64),
        np.bincount(pair_image, (cosines > best_of_image[pair_image] - TIE) * copies[pair_text], len(image_emb)).astype(
            np.int64
        ),
    )
    wrong = [np.maximum(u - a - r, 0) for u, a, r in zip(upto, ahead, right, strict=True)]
    owned = np.unique(text_image)
    queries = ((text_of, text_image, len(image_emb)), (owned, owned, len(ids)))
    places = [
        Places(ahead=a[rows], right=r[rows], wrong=w[rows], images=images, num_candidates=num)
        for a, r, w, (rows, images, num) in zip(ahead, right, wrong, queries, strict=True)
    ]
    return Retrieval(text_to_image=places[0], image_to_text=places[1])


def _pair_cosines(text_emb: Floats, image_emb: Floats, texts: Indices, images: Indices) -> Floats:
    """Cosines `[P]` of texts `[P]` and images `[P]`, in blocks."""
    cosines = np.empty(len(texts), np.float32)
    for start in range(0, len(texts), IMAGES):
        block = slice(start, start + IMAGES)
        cosines[block] = np.einsum("pd,pd->p", text_emb[texts[block]], image_emb[images[block]])
    return cosines


def _count(
    text_emb: Floats,
    image_emb: Floats,
    copies: Indices,
    best_of_text: Floats,
    best_of_image: Floats,
    on_progress: OnProgress,
) -> tuple[tuple[Indices, Indices], tuple[Indices, Indices]]:
    """Answers ahead of a tie with the best right one, and answers ahead or in the tie: images `[U]`, captions `[N]`.

    Args:
        text_emb: `[U, D]`.
        image_emb: `[N, D]`.
        copies: `[U]`, captions of each text.
        best_of_text: `[U]`, cosine of each text and its best right image.
        best_of_image: `[N]`, cosine of each image and its best right text, -inf without one.
        on_progress: called with the texts done.
    """
    counts = tuple((np.zeros(len(text_emb), np.int64), np.zeros(len(image_emb), np.int64)) for _ in range(2))
    buffer = np.empty((min(TEXTS, len(text_emb)), min(IMAGES, len(image_emb))), np.float32)
    for start in range(0, len(text_emb), TEXTS):
        texts = text_emb[start : start + TEXTS]
        for first in range(0, len(image_emb), IMAGES):
            images = image_emb[first : first + IMAGES]
            # Memory that is used again: to have new pages for each product takes longer than the product.
            cosines = np.matmul(texts, images.T, out=buffer.ravel()[: len(texts) * len(images)].reshape(len(texts), -1))
            for row in range(0, len(texts), ROWS):
                block = cosines[row : row + ROWS]
                rows, columns = slice(start + row, start + row + len(block)), slice(first, first + len(images))
                for (of_text, of_image), margin in zip(counts, (TIE, -TIE), strict=True):
                    more = block > (best_of_text[rows] + margin)[:, None]
                    of_text[rows] += [np.count_nonzero(line) for line in more]
                    of_image[columns] += _sum_rows(block > best_of_image[columns] + margin, copies[rows])
        on_progress(Progress("rank", min(start + TEXTS, len(text_emb)), len(text_emb)))
    return counts[0], counts[1]


def _sum_rows(mask: NDArray[np.bool_], copies: Indices) -> NDArray[Any]:
    """Sums over at most 255 rows of a mask, each counted so many times."""
    if (copies == 1).all():
        plain: NDArray[np.uint8] = np.add.reduce(mask.view(np.uint8), axis=0, dtype=np.uint8)
        return plain
    weighted: NDArray[np.float64] = copies.astype(np.float64) @ mask  # exact below 2^53
    return weighted.astype(np.int64)


def number_texts(captions: Sequence[str]) -> Indices:
    """Numbers `[M]` of the captions' texts, equal for equal texts.

    >>> number_texts(["a cat", "a dog", "a cat"]).tolist()
    [0, 1, 0]
    """
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(caption, len(numbers)) for caption in captions], np.int64)
