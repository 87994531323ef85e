"""Figures of towers on a cache: retrieval, buckets, classes, differences. No image is opened.

M captions of N images, C classes, D features.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache.progress import OnProgress
from ..cache.read.cache import Cache
from ..distill.training.diagnosis import chance_recall
from ..evals.bootstrap import Difference, difference
from ..evals.captions import (
    Captions,
    cached_captions,
    encode,
    in_translation,
    recall_differences,
    retrieve_by_language,
    retrieve_captions,
)
from ..evals.embedding_stats import alignment, anisotropy, effective_rank, uniformity
from ..evals.errors import EvalError
from ..evals.labels import LabelledImages
from ..evals.linear_probe import Labelled, ProbeReport, probe, split
from ..evals.retrieval import Retrieval, number_texts
from ..evals.zeroshot import Predictions, classification_report, predict_classes
from ..inference.prompts import class_embeddings
from ..inference.towers import Towers
from .buckets import bucketed, count_words
from .examples import caption_examples, class_examples
from .figures import EVERYTHING, CacheFigures, TowerFigures

Floats = NDArray[np.float32]
TEST_SHARE = 0.2  # of each class, to test linear probes; as `clipglot eval probe` does
MOST_SPREAD = 20_000  # captions whose spread is measured


@dataclass(frozen=True, kw_only=True)
class NamedTower:
    """A tower to measure.

    Attributes:
        name: of the subject, or of the tower that subjects are compared with.
        towers: its texts are encoded.
        is_reference: whether it is only compared with.
        translations: whether it reads the captions' translations.
    """

    name: str
    towers: Towers
    is_reference: bool = False
    translations: bool = False


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Classes as one tower reads them.

    Attributes:
        images: with the names of their classes.
        templates: with the place of the name.
    """

    images: LabelledImages
    templates: Sequence[str]


def measure_captions(
    cache: Cache, towers: Sequence[NamedTower], known: Counter[str] | None, on_progress: OnProgress
) -> CacheFigures:
    """Retrieval of towers with the captions of a cache.

    Args:
        cache: sealed, made by the image tower of all `towers`.
        towers: at least one; the first subject's examples are shown.
        known: captions that each word is in, of those that were trained on; None to count these.
        on_progress: called through the stages of each tower.

    Raises:
        EvalError: no caption of an embedded image, or not as many translations.
        CacheError: the cache is not complete, or damaged.
    """
    captions = cached_captions(cache)
    ids = number_texts(captions.texts)
    counts = count_words(captions.texts) if known is None else known
    places: list[Retrieval] = []
    figures: list[TowerFigures] = []
    for i, tower in enumerate(towers):
        read = in_translation(cache, captions) if tower.translations else captions
        text_emb = encode(tower.towers, read.texts, on_progress)
        found = retrieve_captions(read, text_emb, on_progress=on_progress)
        places.append(found)
        retrieval = {EVERYTHING: found.report(), **retrieve_by_language(read, text_emb, on_progress)}
        own = TowerFigures(
            name=tower.name,
            is_reference=tower.is_reference,
            retrieval=retrieval,
            spread=_spread(read, text_emb),
        )
        if not tower.is_reference:
            own = replace(own, buckets=bucketed(captions.texts, found.text_to_image, counts, ids))
        if i == 0:
            own = replace(own, examples=caption_examples(cache, captions, text_emb, found, tower.towers.logit_scale))
        figures.append(own)
    return CacheFigures(
        name=cache.path.name,
        path=str(cache.path),
        num_images=len(captions.rows),
        num_captions=len(captions.texts),
        chance=recall_of_chance(captions),
        facts=cache_facts(cache),
        languages=dict(Counter(tag for tag in captions.languages if tag).most_common()),
        towers=_with_differences(figures, lambda a, b: recall_differences(places[a], places[b], (1, 10))),
    )


def recall_of_chance(captions: Captions) -> dict[str, float]:
    """R@1 and R@10, text to image, of a random ranking, where equal captions have several right answers."""
    ids, num = number_texts(captions.texts), len(captions.rows)
    pairs = np.unique(ids * np.int64(num) + captions.images)
    num_right = np.bincount(pairs // num)[ids]
    return {f"r_at_{k}": chance_recall(num_right, num, k) for k in (1, 10)}


def _spread(captions: Captions, text_emb: Floats) -> dict[str, float]:
    taken = np.arange(len(text_emb))[:: -(-len(text_emb) // MOST_SPREAD)]
    emb = text_emb[taken]
    return {
        "alignment": alignment(emb, captions.image_emb[captions.images[taken]]),
        "uniformity": uniformity(emb),
        "anisotropy": anisotropy(emb, number_texts([captions.texts[i] for i in taken])),
        "effective_rank": effective_rank(emb),
    }


def measure_classes(
    cache: Cache,
    towers: Sequence[NamedTower],
    prompts: Callable[[NamedTower], Prompts],
    on_progress: OnProgress,
    *,
    shots: Sequence[int | None] = (),
    seeds: int = 3,
) -> CacheFigures:
    """Zero-shot classification of the images of a cache by towers.

    Args:
        cache: sealed, made by the image tower of all `towers`.
        towers: at least one; the first subject's examples are shown.
        prompts: classes as a tower reads them; the labels are the same for all.
        on_progress: called through the stages of each tower.
        shots: training images a class of linear probes; None for all.
        seeds: draws of few images.

    Raises:
        EvalError: embeddings are not finite, towers read other classes, or a class has too few images for a probe.
        CacheError: the cache is damaged.
    """
    first = prompts(towers[0])
    images = first.images
    image_emb = images.embeddings(cache)
    figures: list[TowerFigures] = []
    predicted: list[Predictions] = []
    for i, tower in enumerate(towers):
        own = prompts(tower)
        if own.images.labels != images.labels or not np.array_equal(own.images.rows, images.rows):
            raise EvalError(
                f"{tower.name} reads other classes than {towers[0].name}, so the two cannot be compared: give both "
                "the same labels (--classes, --against-classes)"
            )
        class_emb = class_embeddings(
            lambda texts, tower=tower: encode(tower.towers, texts, on_progress),  # type: ignore[misc]
            own.images.names,
            own.templates,
        )
        predictions = predict_classes(image_emb, images.classes, class_emb, on_progress)
        predicted.append(predictions)
        report = classification_report(predictions, images.classes, images.labels, own.images.shown)
        scored = TowerFigures(name=tower.name, is_reference=tower.is_reference, zero_shot=report)
        if i == 0:
            shown = class_examples(
                cache, images, own.images.shown, image_emb, class_emb, predictions, tower.towers.logit_scale
            )
            scored = replace(scored, examples=shown)
        figures.append(scored)

    probed = None
    if shots:
        probed, test = _probe(images, image_emb, shots, seeds, on_progress)
        figures = [
            replace(each, zero_shot_of_test=float((own.best[test] == images.classes[test]).mean()))
            for each, own in zip(figures, predicted, strict=True)
        ]

    def differences(a: int, b: int) -> list[Difference]:
        ours, theirs = ((predicted[i].best == images.classes).astype(np.float64) for i in (a, b))
        return [difference("zero-shot accuracy", ours, theirs, images.rows)]

    return CacheFigures(
        name=cache.path.name,
        path=str(cache.path),
        num_images=len(images.rows),
        num_captions=0,
        chance={"top1": 1 / len(images.labels)},
        facts=cache_facts(cache)
        | ({"images without a class": f"{images.num_unlabelled:,}"} if images.num_unlabelled else {}),
        languages={},
        towers=_with_differences(figures, differences),
        templates=list(first.templates),
        probe=probed,
    )


def _probe(
    images: LabelledImages, image_emb: Floats, shots: Sequence[int | None], seeds: int, on_progress: OnProgress
) -> tuple[ProbeReport, NDArray[np.int64]]:
    """Linear probes on a part of the images, and positions of the rest, on which they were tested."""
    present, classes = np.unique(images.classes, return_inverse=True)
    labelled = Labelled(emb=image_emb, classes=classes.astype(np.int64))
    first, second = split(labelled.classes, TEST_SHARE, seed=0)
    report = probe(labelled.take(first), labelled.take(second), len(present), shots, seeds, on_progress=on_progress)
    return report, second


def _with_differences(
    figures: Sequence[TowerFigures], differences: Callable[[int, int], list[Difference]]
) -> list[TowerFigures]:
    """Figures with the differences of each subject to the reference; without one, to the first subject."""
    reference = next((i for i, tower in enumerate(figures) if tower.is_reference), 0)
    return [
        tower if i == reference else replace(tower, differences=differences(i, reference))
        for i, tower in enumerate(figures)
    ]


def cache_facts(cache: Cache) -> dict[str, str]:
    """Where a cache came from."""
    info = cache.info
    encoder = info.encoder
    lost = {label: num for label, num in info.counts.items() if label != "embedded" and num}
    facts: dict[str, Any] = {
        "image tower": encoder.model + (f", {encoder.pretrained}" if encoder.pretrained else ""),
        "SHA-256 of its tensors": encoder.weights_sha256,
        "features": f"{encoder.dim:,}",
        "source": ", ".join(source.path for source in info.sources),
        "SHA-256 of the source": info.source.sha256,
        "images": f"{info.num_images:,}" + "".join(f", {num:,} {label}" for label, num in lost.items()),
        "captions": f"{info.num_captions:,}",
    }
    if info.num_duplicates:
        facts["images with the bytes of an earlier one"] = f"{info.num_duplicates:,}"
    if info.dropped_captions:
        facts["captions left out"] = ", ".join(f"{num:,} {why}" for why, num in info.dropped_captions.items())
    return facts
