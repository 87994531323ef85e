"""Zero-shot classification: accuracy, confusions and ROC-AUC against scikit-learn."""

import json

import numpy as np
import pytest
from clipglot.evals.errors import EvalError
from clipglot.evals.zeroshot import (
    ClassificationReport,
    classification_report,
    predict_classes,
    roc_auc,
    zero_shot_accuracy,
)
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    precision_score,
    recall_score,
    roc_auc_score,
    top_k_accuracy_score,
)


def unit(emb: np.ndarray) -> np.ndarray:
    return (emb / np.linalg.norm(emb, axis=1, keepdims=True)).astype(np.float32)


def world(num_classes: int, num_images: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images about their classes, some classes without images."""
    rng = np.random.default_rng(seed)
    class_emb = unit(rng.normal(size=(num_classes, 12)))
    classes = rng.integers(0, max(2, num_classes - 1), num_images)
    return unit(class_emb[classes] + 0.4 * rng.normal(size=(num_images, 12))), classes, class_emb


def report_of(image_emb: np.ndarray, classes: np.ndarray, class_emb: np.ndarray) -> ClassificationReport:
    labels = [f"class {i:04}" for i in range(len(class_emb))]
    return classification_report(predict_classes(image_emb, classes, class_emb), classes, labels, labels)


@pytest.mark.parametrize("num_classes", [2, 3, 7, 1000])
def test_the_report_is_that_of_scikit_learn(num_classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipglot.evals.zeroshot.BLOCK_BYTES", 4 * num_classes * 97)  # several blocks, an uneven last
    image_emb, classes, class_emb = world(num_classes)
    report = report_of(image_emb, classes, class_emb)
    scores = image_emb.astype(float) @ class_emb.T.astype(float)
    best, every = scores.argmax(1), list(range(num_classes))
    assert report.top1 == pytest.approx((best == classes).mean())
    assert 0.1 < report.top1 < 1
    seen = np.unique(classes)
    assert report.mean_per_class == pytest.approx(recall_score(classes, best, labels=seen, average="macro"))
    if num_classes >= 5:
        assert report.top5 == pytest.approx(top_k_accuracy_score(classes, scores, k=5, labels=every))
    else:
        assert report.top5 is None
    assert (report.matrix() == confusion_matrix(classes, best, labels=every)).all()
    precision = precision_score(classes, best, labels=every, average=None, zero_division=np.nan)
    assert [s.precision for s in report.classes] == pytest.approx(
        [None if np.isnan(p) else p for p in precision], nan_ok=True
    )
    if num_classes == 2:
        assert report.mean_per_class == pytest.approx(balanced_accuracy_score(classes, best))
        assert report.roc_auc == pytest.approx(roc_auc_score(classes, scores[:, 1] - scores[:, 0]))
    else:
        assert report.roc_auc is None
    assert sum(cell.num_images for cell in report.confusion) == len(classes)
    json.dumps(report.to_json())


def test_the_most_confused_pairs_are_the_largest_cells_beside_the_diagonal() -> None:
    report = report_of(*world(30))
    matrix = report.matrix()
    np.fill_diagonal(matrix, 0)
    largest = np.sort(matrix.ravel())[::-1][:10]
    assert [cell.num_images for cell in report.most_confused()] == largest.tolist()
    assert all(cell.label != cell.predicted for cell in report.most_confused())


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
def test_roc_auc_with_ties_is_that_of_scikit_learn(pairs: list[tuple[int, bool]]) -> None:
    scores, positive = np.array([s for s, _ in pairs], np.float32), np.array([int(p) for _, p in pairs])
    if 0 < positive.sum() < len(pairs):
        assert roc_auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))
    else:
        assert roc_auc(scores, positive) is None


def test_of_equal_scores_the_first_class_comes_first_at_every_k() -> None:
    alike = np.ones((7, 3), np.float32)
    predictions = predict_classes(alike, np.arange(7), alike)
    assert predictions.best.tolist() == [0] * 7
    assert predictions.in_top.tolist() == [True] * 5 + [False] * 2
    assert zero_shot_accuracy(alike, np.arange(7), alike) == pytest.approx(1 / 7)


def test_a_diverged_tower_is_refused() -> None:
    image_emb, classes, class_emb = world(3)
    class_emb[1] = np.nan
    with pytest.raises(EvalError, match="the class embeddings hold NaN"):
        predict_classes(image_emb, classes, class_emb)
