"""Zero-shot classification: the class of an image is that of the nearest class embedding. Pure numpy.

N images, C classes, D features.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache.progress import OnProgress, Progress, ignore_progress
from .errors import EvalError

BLOCK_BYTES = 32 * 2**20  # of cosines held at once
TOP = 5
DEFINITION = (
    "an image is right at k if its class is among the k of the largest cosine (of equal ones, the first by label); "
    "mean per class: of the classes that have images; ROC-AUC of two classes: by the difference of the cosines"
)


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """Results of one class.

    Attributes:
        label: of the class.
        name: by which it is shown.
        num_images: of the class.
        accuracy: share of them that are recognised; None without images.
        precision: share of the images taken for the class that are of it; None if none is.
    """

    label: str
    name: str
    num_images: int
    accuracy: float | None
    precision: float | None


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Images of one class that were taken for another, or recognised.

    Attributes:
        label: of their class.
        predicted: label of the class that they were taken for.
        num_images: of them.
    """

    label: str
    predicted: str
    num_images: int


@dataclass(frozen=True, kw_only=True)
class ClassificationReport:
    """Accuracy of a classifier over labelled images.

    Attributes:
        top1: share of the images whose class comes first.
        top5: share of those whose class is among the first five; None with fewer than five classes.
        mean_per_class: mean of the classes' accuracies.
        roc_auc: area under the ROC curve, with two classes that both have images.
        num_images: N.
        classes: results of each class, in the order of the labels.
        confusion: the non-zero cells of the confusion matrix, by class and prediction.
        chance: expected top-1 of a guess.
    """

    top1: float
    top5: float | None
    mean_per_class: float
    roc_auc: float | None
    num_images: int
    classes: list[ClassScore]
    confusion: list[Confusion]
    chance: float

    def most_confused(self, most: int = 10) -> list[Confusion]:
        """The pairs of different classes with most images."""
        wrong = [cell for cell in self.confusion if cell.label != cell.predicted]
        return sorted(wrong, key=lambda cell: -cell.num_images)[:most]

    def matrix(self) -> NDArray[np.int64]:
        """Confusion matrix `[C, C]`: a row a class, a column a prediction."""
        place = {score.label: i for i, score in enumerate(self.classes)}
        result = np.zeros((len(place), len(place)), np.int64)
        for cell in self.confusion:
            result[place[cell.label], place[cell.predicted]] = cell.num_images
        return result

    def to_json(self) -> dict[str, Any]:
        """All figures, and the definition of a right answer."""
        return asdict(self) | {"definition": DEFINITION}


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Predicted classes of N images.

    Attributes:
        best: `[N]`, the nearest class.
        in_top: `[N] bool`, whether the right class is among the first five.
        margin: `[N]`, cosine of class 1 less that of class 0, with two classes.
    """

    best: NDArray[np.int64]
    in_top: NDArray[np.bool_]
    margin: NDArray[np.float32] | None


def predict_classes(
    image_emb: NDArray[np.float32],
    classes: NDArray[np.int64],
    class_emb: NDArray[np.float32],
    on_progress: OnProgress = ignore_progress,
) -> Predictions:
    """Predicted class of each image, in blocks.

    Args:
        image_emb: `[N, D]`, unit norm.
        classes: `[N]`, class of each image.
        class_emb: `[C, D]`, unit norm.
        on_progress: called with the images of stage `classify`.

    Raises:
        EvalError: an embedding is NaN or infinite.
    """
    for what, emb in (("class", class_emb), ("image", image_emb)):
        if not np.isfinite(emb).all():
            raise EvalError(f"the {what} embeddings hold NaN or infinity: the tower that made them has diverged")
    num, num_classes = len(image_emb), len(class_emb)
    best, in_top = np.empty(num, np.int64), np.empty(num, bool)
    margin = np.empty(num, np.float32) if num_classes == 2 else None
    step = max(1, BLOCK_BYTES // (4 * num_classes))
    for start in range(0, num, step):
        block = slice(start, start + step)
        cosines = image_emb[block] @ class_emb.T
        best[block] = cosines.argmax(axis=1)
        in_top[block] = _places(cosines, classes[block]) < TOP
        if margin is not None:
            margin[block] = cosines[:, 1] - cosines[:, 0]
        on_progress(Progress("classify", min(start + step, num), num))
    return Predictions(best=best, in_top=in_top, margin=margin)


def _places(scores: NDArray[np.float32], classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Place of each row's class, from 0; of equal scores, the first class comes first."""
    own = np.take_along_axis(scores, classes[:, None], axis=1)
    before = np.arange(scores.shape[1]) < classes[:, None]
    result: NDArray[np.int64] = (scores > own).sum(1) + ((scores == own) & before).sum(1)
    return result


def classification_report(
    predictions: Predictions, classes: NDArray[np.int64], labels: Sequence[str], names: Sequence[str]
) -> ClassificationReport:
    """Accuracy, per-class results and confusions of predictions.

    Args:
        predictions: of N images.
        classes: `[N]`, class of each image.
        labels: of C classes.
        names: by which they are shown.
    """
    num_classes = len(labels)
    cells, counts = np.unique(classes * np.int64(num_classes) + predictions.best, return_counts=True)
    right = np.bincount(classes[predictions.best == classes], minlength=num_classes)
    num_images = np.bincount(classes, minlength=num_classes)
    num_predicted = np.bincount(predictions.best, minlength=num_classes)
    has_images = num_images > 0
    return ClassificationReport(
        top1=float((predictions.best == classes).mean()),
        top5=float(predictions.in_top.mean()) if num_classes >= TOP else None,
        mean_per_class=float((right[has_images] / num_images[has_images]).mean()),
        roc_auc=None if predictions.margin is None else roc_auc(predictions.margin, classes),
        num_images=len(classes),
        classes=[
            ClassScore(
                label=label,
                name=name,
                num_images=int(num_images[i]),
                accuracy=float(right[i] / num_images[i]) if num_images[i] else None,
                precision=float(right[i] / num_predicted[i]) if num_predicted[i] else None,
            )
            for i, (label, name) in enumerate(zip(labels, names, strict=True))
        ],
        confusion=[
            Confusion(label=labels[cell // num_classes], predicted=labels[cell % num_classes], num_images=count)
            for cell, count in zip(cells.tolist(), counts.tolist(), strict=True)
        ],
        chance=1 / num_classes,
    )


def roc_auc(scores: NDArray[np.float32], positive: NDArray[np.int64]) -> float | None:
    """Area under the ROC curve: the chance that a positive scores above a negative, a tie counting half.

    Args:
        scores: `[N]`.
        positive: `[N]`, 1 for positives and 0 for negatives.

    Returns:
        None without positives or without negatives.

    >>> roc_auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]))
    0.75
    """
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if not num_positive or not num_negative:
        return None
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = ((ends - counts + 1 + ends) / 2)[place]  # mean rank of equal scores, from 1
    above = ranks[positive == 1].sum() - num_positive * (num_positive + 1) / 2
    return float(above / (num_positive * num_negative))


def zero_shot_accuracy(
    image_emb: NDArray[np.float32], labels: NDArray[np.int64], class_emb: NDArray[np.float32]
) -> float:
    """Accuracy: fraction of images whose nearest prompt is that of their class.

    Args:
        image_emb: `[N, D]`, unit norm.
        labels: `[N]`, indices into `class_emb`.
        class_emb: `[C, D]`, unit norm, one prompt per class.

    >>> eye = np.eye(3, dtype=np.float32)
    >>> zero_shot_accuracy(eye, np.array([0, 1, 1]), eye)
    0.6666666666666666
    """
    return float((predict_classes(image_emb, labels, class_emb).best == labels).mean())
