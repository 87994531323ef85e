"""Linear probe: the fit and its choice of penalty against scikit-learn."""

import json

import numpy as np
import pytest
from clipglot.evals.errors import EvalError
from clipglot.evals.linear_probe import (
    PENALTIES,
    Labelled,
    choose_penalty,
    fit_logistic,
    predict,
    probe,
    split,
)
from sklearn.linear_model import LogisticRegression


def images(num_classes: int, per_class: int, seed: int, spread: float = 0.8) -> Labelled:
    """Unit embeddings about centres that all seeds share."""
    centres = np.random.default_rng(99).normal(size=(num_classes, 24))
    classes = np.repeat(np.arange(num_classes), per_class)
    emb = centres[classes] + spread * 3 * np.random.default_rng(seed).normal(size=(len(classes), 24))
    return Labelled(emb=(emb / np.linalg.norm(emb, axis=1, keepdims=True)).astype(np.float32), classes=classes)


@pytest.mark.parametrize("penalty", [0.1, 10.0, 1000.0])
@pytest.mark.parametrize("num_classes", [2, 5])
def test_weights_are_those_of_scikit_learn(penalty: float, num_classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipglot.evals.linear_probe.BLOCK_BYTES", 4 * num_classes * 33)  # an uneven last block
    train, test = images(num_classes, 40, seed=0), images(num_classes, 200, seed=1)
    ours = fit_logistic(train, num_classes, penalty, tolerance=1e-7).numpy()
    theirs = LogisticRegression(C=penalty, max_iter=10_000, tol=1e-8).fit(train.emb.astype(float), train.classes)
    if num_classes == 2:  # scikit-learn has one row of weights there, the difference of two, so with half the penalty
        theirs = LogisticRegression(C=2 * penalty, max_iter=10_000, tol=1e-8).fit(
            train.emb.astype(float), train.classes
        )
        assert ours[:-1, 1] - ours[:-1, 0] == pytest.approx(theirs.coef_[0], abs=2e-3 * np.abs(theirs.coef_).max())
    else:
        assert pytest.approx(theirs.coef_, abs=2e-3 * np.abs(theirs.coef_).max()) == ours[:-1].T
    assert (predict(fit_logistic(train, num_classes, penalty), test.emb) == theirs.predict(test.emb)).mean() > 0.998


def test_the_penalty_is_the_best_of_the_grid_on_held_out_images() -> None:
    fit, held_out = images(6, 12, seed=0), images(6, 60, seed=1)
    accuracies = {}
    for penalty in PENALTIES:
        model = LogisticRegression(C=penalty, max_iter=10_000, tol=1e-6).fit(fit.emb, fit.classes)
        accuracies[penalty] = model.score(held_out.emb, held_out.classes)
    chosen, _ = choose_penalty(fit, held_out, 6)
    assert accuracies[chosen] > max(accuracies.values()) - 0.01
    assert accuracies[chosen] > min(accuracies.values())


def test_more_shots_are_better_and_draws_have_their_spread() -> None:
    train, test = images(5, 60, seed=0), images(5, 100, seed=1)
    report = probe(train, test, 5, (1, 4, 16, None), seeds=3, zero_shot=0.5)
    means = [point.accuracy for point in report.points]
    assert means == sorted(means)
    assert [point.shots for point in report.points] == [1, 4, 16, None]
    assert [point.num_train for point in report.points] == [5, 20, 80, 300]
    assert [len(point.accuracies) for point in report.points] == [3, 3, 3, 1]
    for point in report.points:
        assert point.accuracy == pytest.approx(np.mean(point.accuracies))
        assert (point.low, point.high) == (min(point.accuracies), max(point.accuracies))
    assert probe(train, test, 5, (4,), seeds=2) == probe(train, test, 5, (4,), seeds=2)  # draws are seeded
    theirs = LogisticRegression(C=report.points[-1].penalties[0], max_iter=10_000).fit(train.emb, train.classes)
    assert report.points[-1].accuracy == pytest.approx(theirs.score(test.emb, test.classes), abs=0.004)
    json.dumps(report.to_json())


def test_images_that_are_held_out_are_none_of_the_others() -> None:
    classes = np.repeat([0, 1, 2], [40, 5, 2])
    first, second = split(classes, 0.2, seed=0)
    assert sorted([*first, *second]) == list(range(47))
    assert np.bincount(classes[second]).tolist() == [8, 1, 1]
    with pytest.raises(EvalError, match="a class has a single image"):
        split(np.array([0, 0, 1]), 0.2, seed=0)


def test_a_class_with_few_images_gives_what_it_has() -> None:
    train = images(3, 20, seed=0).take(np.r_[0:20, 20:23, 40:41])  # 20, 3 and 1 images
    report = probe(train, images(3, 50, seed=1), 3, (8, None))
    assert [point.num_train for point in report.points] == [8 + 2 + 1, 24]
