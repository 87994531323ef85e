"""Bootstrap intervals against the normal approximation and by plain resampling."""

import numpy as np
import pytest
from clipglot.evals.bootstrap import difference


def test_the_interval_of_many_images_is_that_of_the_normal_approximation() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = (rng.random(4000) < 0.6).astype(float), (rng.random(4000) < 0.55).astype(float)
    found = difference("top-1", ours, theirs, np.arange(4000))
    half = 1.96 * (ours - theirs).std() / np.sqrt(4000)
    mean = ours.mean() - theirs.mean()
    assert found.difference == pytest.approx(mean)
    assert [found.low, found.high] == pytest.approx([mean - half, mean + half], abs=0.1 * half)


def test_captions_of_an_image_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    images = np.repeat(np.arange(300), rng.integers(1, 6, 300))
    effect = rng.normal(size=300)[images]  # all captions of an image fare alike
    found = difference("R@1", effect, np.zeros(len(effect)), images)
    sums, counts = np.bincount(images, effect), np.bincount(images)
    draws = [(lambda rows: sums[rows].sum() / counts[rows].sum())(rng.integers(0, 300, 300)) for _ in range(4000)]
    assert [found.low, found.high] == pytest.approx(np.quantile(draws, [0.025, 0.975]).tolist(), abs=0.02)
    alone = difference("R@1", effect, np.zeros(len(effect)), np.arange(len(effect)))
    assert alone.high - alone.low < 0.75 * (found.high - found.low)


def test_a_tower_against_itself_is_no_different() -> None:
    ours = np.array([0.0, 1.0, 1.0])
    same = difference("top-1", ours, ours, np.arange(3))
    assert (same.low, same.high, same.is_significant) == (0, 0, False)
    assert "cannot be told apart" in same.sentence("new", "old")


def test_a_clear_loss_is_said_plainly() -> None:
    found = difference("top-1", np.zeros(100), np.ones(100), np.arange(100))
    assert found.is_significant
    assert found.sentence("new", "old") == "top-1: new is worse than old by 100.0 points (95 % interval 100.0 to 100.0)"


def test_few_images_that_differ_tell_nothing() -> None:
    ours, theirs = np.ones(100), np.ones(100)
    theirs[:5] = 0
    found = difference("top-1", ours, theirs, np.arange(100))
    assert (found.low > 0, found.num_differing, found.is_significant) == (True, 5, False)
    alone = difference("top-1", np.ones(1), np.zeros(1), np.arange(1))
    assert "cannot be told apart on 1 images" in alone.sentence("new", "old")
