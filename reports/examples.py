"""Examples of what a tower does with single images and texts: similarities, best texts, best and worst retrievals.

M captions of N images, C classes, D features. The choice depends on the cache and the ranks alone, so that two reports
of one tower are equal.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..cache.read.cache import Cache
from ..evals.captions import Captions
from ..evals.labels import LabelledImages
from ..evals.retrieval import TIE, Retrieval, number_texts
from ..evals.zeroshot import Predictions
from ..inference.towers import ranked
from .figures import Examples, FoundImage, ScoredText, ShownImage, SimilarityMatrix, TopTexts

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
IN_MATRIX = 8  # images and texts of a similarity matrix
WITH_TEXTS = 6  # images with their best texts
TOP = 5
BEST, WORST = 3, 6  # retrievals
MOST_BEST = 1000  # retrievals among which those with the largest margin are looked for
MOST_SIDES = 2**24  # cosines held at once


def caption_examples(
    cache: Cache, captions: Captions, text_emb: Floats, found: Retrieval, logit_scale: float
) -> Examples:
    """Examples of captions.

    Args:
        cache: of the captions.
        captions: M of N images.
        text_emb: `[M, D]`.
        found: places of both directions.
        logit_scale: factor on cosines before a softmax.
    """
    owners = np.unique(captions.images)
    spread = owners[np.linspace(0, len(owners) - 1, min(len(owners), IN_MATRIX + WITH_TEXTS)).astype(np.int64)]
    # The two sets of images alternate, so that both are spread over the cache.
    in_matrix = _first_distinct(captions, np.concatenate([spread[::2], spread[1::2]]))[:IN_MATRIX]
    others = [image for image in spread.tolist() if image not in captions.images[in_matrix]]
    return Examples(
        similarity=_similarity(
            _shown(cache, captions.rows[captions.images[in_matrix]]),
            [captions.texts[i] for i in in_matrix],
            text_emb[in_matrix] @ captions.image_emb[captions.images[in_matrix]].T,
        ),
        top_texts=_top_captions(cache, captions, text_emb, (others or spread.tolist())[:WITH_TEXTS], logit_scale),
        best=_best(cache, captions, text_emb, found),
        worst=_worst(cache, captions, text_emb, found),
    )


def _first_distinct(captions: Captions, images: Indices) -> list[int]:
    """The first caption of each of some images, without images whose first caption an earlier one has, too."""
    chosen: dict[str, int] = {}
    for image in images.tolist():
        first = int(np.searchsorted(captions.images, image))
        chosen.setdefault(captions.texts[first], first)
    return list(chosen.values())


def _similarity(images: list[ShownImage], texts: list[str], cosines: NDArray[np.float32]) -> SimilarityMatrix | None:
    if len(texts) < 2:
        return None
    return SimilarityMatrix(
        images=images,
        texts=texts,
        cosines=[[float(value) for value in row] for row in cosines],
        num_right=int((cosines.argmax(1) == np.arange(len(texts))).sum()),
    )


def _top_captions(
    cache: Cache, captions: Captions, text_emb: Floats, images: Sequence[int], logit_scale: float
) -> list[TopTexts]:
    _, first = np.unique(number_texts(captions.texts), return_index=True)
    texts, emb = [captions.texts[i] for i in first], text_emb[first]
    result = []
    for image in images:
        a, b = np.searchsorted(captions.images, [image, image + 1])
        own = {captions.texts[i] for i in range(a, b)}
        shown = _shown(cache, captions.rows[[image]])[0]
        right = np.array([text in own for text in texts])
        result.append(_top(shown, texts, right, emb @ captions.image_emb[image], logit_scale))
    return result


def _top(
    image: ShownImage, texts: Sequence[str], is_right: NDArray[np.bool_], cosines: Floats, logit_scale: float
) -> TopTexts:
    order, probabilities = ranked(cosines, logit_scale)
    place = int(np.flatnonzero(is_right[order])[0])
    return TopTexts(
        image=image,
        texts=[
            ScoredText(
                text=texts[i],
                cosine=float(cosines[i]),
                probability=float(probabilities[i]),
                is_right=bool(is_right[i]),
            )
            for i in order[:TOP].tolist()
        ],
        num_texts=len(texts),
        right=texts[int(order[place])],
        right_rank=place + 1,
    )


def _best(cache: Cache, captions: Captions, text_emb: Floats, found: Retrieval) -> list[FoundImage]:
    """Captions that find their image with the largest distance to the next one, one an image."""
    places = found.text_to_image
    first = np.flatnonzero(places.ranks() == 1)
    first = first[:: max(1, -(-len(first) // MOST_BEST))]
    ids = number_texts(captions.texts)
    margins = np.zeros(len(first))
    step = max(1, MOST_SIDES // len(captions.image_emb))
    for start in range(0, len(first), step):
        block = first[start : start + step]
        cosines = text_emb[block] @ captions.image_emb.T
        for row, query in enumerate(block.tolist()):
            right = captions.images[ids == ids[query]]
            best = cosines[row, right].max()
            cosines[row, right] = -np.inf
            margins[start + row] = best - cosines[row].max()
    return _one_an_image(cache, captions, text_emb, found, first[np.argsort(-margins, kind="stable")], BEST)


def _worst(cache: Cache, captions: Captions, text_emb: Floats, found: Retrieval) -> list[FoundImage]:
    """Captions whose image comes last, one an image."""
    ranks = found.text_to_image.ranks()
    order = np.argsort(-ranks, kind="stable")
    return _one_an_image(cache, captions, text_emb, found, order[ranks[order] > 1], WORST)


def _one_an_image(
    cache: Cache, captions: Captions, text_emb: Floats, found: Retrieval, order: Indices, most: int
) -> list[FoundImage]:
    ranks = found.text_to_image.ranks()
    chosen: dict[int, int] = {}
    for query in order.tolist():
        chosen.setdefault(int(captions.images[query]), query)
        if len(chosen) == most:
            break
    result = []
    for image, query in chosen.items():
        cosines = captions.image_emb @ text_emb[query]
        first = int(cosines.argmax())
        if cosines[image] >= cosines[first] - TIE:
            first = image
        shown = _shown(cache, captions.rows[[image, first]])
        result.append(
            FoundImage(
                caption=captions.texts[query],
                language=captions.languages[query],
                image=shown[0],
                rank=float(ranks[query]),
                cosine=float(cosines[image]),
                first=shown[1],
                first_cosine=float(cosines[first]),
            )
        )
    return result


def class_examples(
    cache: Cache,
    images: LabelledImages,
    names: Sequence[str],
    image_emb: Floats,
    class_emb: Floats,
    predictions: Predictions,
    logit_scale: float,
) -> Examples:
    """Examples of classes: an image of each, and images with their best classes, some of them taken for another.

    Args:
        cache: of the images.
        images: N of C classes.
        names: by which the classes are shown.
        image_emb: `[N, D]`.
        class_emb: `[C, D]`.
        predictions: of the images.
        logit_scale: factor on cosines before a softmax.
    """
    present, first = np.unique(images.classes, return_index=True)
    chosen = first[np.linspace(0, len(first) - 1, min(len(first), IN_MATRIX)).astype(np.int64)]
    classes = images.classes[chosen]
    wrong = np.flatnonzero(predictions.best != images.classes)
    right = np.setdiff1d(np.flatnonzero(predictions.best == images.classes), chosen)
    num_wrong = min(len(wrong), WITH_TEXTS // 2)
    shown = np.concatenate([_evenly(right, WITH_TEXTS - num_wrong), _evenly(wrong, num_wrong)])
    assert len(present)
    return Examples(
        similarity=_similarity(
            _shown(cache, images.rows[chosen]), [names[i] for i in classes], class_emb[classes] @ image_emb[chosen].T
        ),
        top_texts=[
            _top(
                _shown(cache, images.rows[[i]])[0],
                names,
                np.arange(len(names)) == images.classes[i],
                class_emb @ image_emb[i],
                logit_scale,
            )
            for i in shown.tolist()
        ],
    )


def _evenly(rows: Indices, num: int) -> Indices:
    return rows[np.linspace(0, len(rows) - 1, min(num, len(rows))).astype(np.int64)]


def _shown(cache: Cache, rows: Indices) -> list[ShownImage]:
    return [ShownImage(row=row, key=cache.keys(row, row + 1)[0]) for row in rows.tolist()]
